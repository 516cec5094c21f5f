//! The catalogue: what changes, what stays.

use schemas::config::Attribute;

use super::*;

fn place() -> Place {
    let mut place = Place::new();
    let genre =
        Attribute { column: Some("genres".into()), separator: Some("|".into()), none: vec!["(none)".into()] };
    place.config.items.attributes.insert("genre".into(), genre);
    place
}

impl Place {
    async fn ingest_items(&mut self, name: &str, bytes: &str) -> Result<IngestReport, IngestError> {
        self.config.items.paths = vec![self.file(name, bytes)];
        self.ingest().await
    }
}

#[tokio::test]
async fn an_upsert_replaces_attributes_and_keeps_indexes() {
    let mut place = place();
    place.config.events.paths =
        vec![place.file("log.csv", "user_id,item_id,ts\nu,unknown,2\nu,b,1\nu,other,1\n")];
    let catalogue = "item_id,title,genres\nb,B,Rock| Jazz |Rock\na,A,(none)\n";
    let report = place.ingest_items("one.csv", catalogue).await.unwrap();
    let first = [
        "1 b B true genre=Rock,Jazz",
        "2 a A true genre=",
        "3 unknown - true genre=",
        "4 other - true genre=",
    ];
    assert_eq!(place.items(&["genre"]).await, first);
    let expected = CatalogueReport { added: 2, updated: 0, unchanged: 0, from_events: 2, total: 4 };
    assert_eq!(report.catalogue, expected);

    let same = place.ingest_items("one.csv", catalogue).await.unwrap();
    let expected = CatalogueReport { added: 0, updated: 0, unchanged: 2, from_events: 0, total: 4 };
    assert_eq!((same.catalogue, same.versions), (expected, report.versions));

    place.config.events.paths.clear();
    let catalogue = "item_id,title,genres,active\nnew,N,Pop,\nunknown,U,Pop,1\nb,,Folk,false\n";
    let report = place.ingest_items("two.csv", catalogue).await.unwrap();
    let expected = CatalogueReport { added: 1, updated: 2, unchanged: 0, from_events: 0, total: 5 };
    assert_eq!(report.catalogue, expected);
    assert_eq!((report.versions.items, report.versions.events), (1, Some(0)));
    let second = [
        "1 b - false genre=Folk",
        "2 a A true genre=",
        "3 unknown U true genre=Pop",
        "4 other - true genre=",
        "5 new N true genre=Pop",
    ];
    assert_eq!(place.items(&["genre"]).await, second);
    // A catalogue without these columns says nothing about them.
    place.ingest_items("three.jsonl", "{\"item_id\": \"b\", \"genres\": [\"Folk\"]}").await.unwrap();
    assert_eq!(place.items(&["genre"]).await, second);
}

#[tokio::test]
async fn the_last_of_equal_items_wins_and_a_repeat_changes_nothing() {
    let mut place = place();
    let catalogue = "item_id,title,genres\na,old,Rock\nb,B,\na,new,Pop\n";
    let report = place.ingest_items("items.csv", catalogue).await.unwrap();
    assert_eq!(
        report.items,
        RecordCounts { read: 3, accepted: 2, duplicates: 1, dead_letters: 0, forgotten: 0 }
    );
    assert_eq!(place.items(&["genre"]).await, ["1 a new true genre=Pop", "2 b B true genre="]);
    let again = place.ingest().await.unwrap();
    assert_eq!((again.versions, again.catalogue.unchanged), (report.versions, 2));
}

#[tokio::test]
async fn a_new_attribute_is_a_new_column_and_an_old_one_stays() {
    let mut place = place();
    place.ingest_items("one.csv", "item_id,genres\na,Rock\nb,Pop\n").await.unwrap();
    place.config.items.attributes.clear();
    place.config.items.attributes.insert("brand".into(), Attribute::default());
    let report = place.ingest_items("two.jsonl", "{\"item_id\": \"b\", \"brand\": \"X\"}\n{\"item_id\": \"c\", \"brand\": [\"Y\", \"\", \"Z\", \"Y\"]}").await.unwrap();
    assert_eq!(report.versions.items, 1);
    assert_eq!(
        place.items(&["brand", "genre"]).await,
        ["1 a - true brand= genre=Rock", "2 b - true brand=X genre=Pop", "3 c - true brand=Y,Z genre="]
    );
}

#[tokio::test]
async fn bad_items_are_dead_letters() {
    let mut place = place();
    place.config.events.max_dead_letter_rate = 0.7;
    let catalogue = "item_id,genres,active\n,Rock,\na,Rock,perhaps\nb,Pop,0\n";
    let report = place.ingest_items("items.csv", catalogue).await.unwrap();
    assert_eq!(
        report.items,
        RecordCounts { read: 3, accepted: 1, duplicates: 0, dead_letters: 2, forgotten: 0 }
    );
    let reasons: Vec<_> = place.dead_letters().await.into_iter().map(|(p, r, _)| (p, r)).collect();
    assert_eq!(reasons, [(0, "missing_field".to_owned()), (1, "wrong_type".to_owned())]);
    assert_eq!(place.items(&["genre"]).await, ["1 b - false genre=Pop"]);
    place.config.events.max_dead_letter_rate = 0.5;
    let error = place.ingest().await.unwrap_err().to_string();
    assert!(error.starts_with("2 of 3 item records"), "{error}");
}
