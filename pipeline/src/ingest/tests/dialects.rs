//! Delimited text as others write it: any delimiter, quote and comment sign, with or without a header, and its times.

use proptest::prelude::*;
use schemas::config::{Dialect, TimeFormat, Zone};

use super::*;

fn dialect(delimiter: &str) -> Dialect {
    Dialect { delimiter: Some(delimiter.into()), ..Dialect::default() }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn the_same_events_from_every_dialect() {
    let files: [(&str, Dialect, &str); 8] = [
        ("log.tsv", Dialect::default(), "user_id\titem_id\tts\nu 1\ta,b\t100\nu2\t\"c\td\"\t101\n"),
        ("log.csv", dialect("\t"), "user_id\titem_id\tts\nu 1\ta,b\t100\nu2\t\"c\td\"\t101"),
        ("log.csv", dialect(";"), "user_id;item_id;ts\r\nu 1;a,b;100\r\nu2;c\td;101\r\n"),
        ("log.csv", dialect("::"), "user_id::item_id::ts\nu 1::a,b::100\n\"u2\"::c\td::101\n"),
        (
            "log.csv",
            Dialect { names: names(&["ts", "user_id", "item_id"]), ..dialect("|") },
            "100|u 1|a,b\n101|u2|c\td\n",
        ),
        (
            "log.csv",
            Dialect { quote: Some("'".into()), comment: Some("#".into()), ..Dialect::default() },
            "# by hand\nuser_id,item_id,ts\n#\n'u 1','a,b',100\n\n# more\nu2,c\td,101\n# end",
        ),
        (
            "log.inter",
            Dialect::default(),
            "item_id:token\tuser_id:token\tts:float\na,b\tu 1\t100.0\nc d\tu2\t101\n",
        ),
        (
            "log.csv",
            Dialect { quote: Some(String::new()), ..dialect("\t") },
            "user_id\titem_id\tts\nu 1\ta,b\t100\nu2\t\"c d\"\t101\n",
        ),
    ];
    for (name, csv, text) in files {
        let mut place = Place::new();
        place.config.events.csv = csv.clone();
        let report = place.ingest_file(name, text).await.unwrap();
        assert_eq!((report.events.read, report.events.accepted), (2, 2), "{csv:?}");
        let lines = place.lines().await;
        assert_eq!(lines[0], format!("u 1 a,b 100000 event None None None {name}:0"), "{csv:?}");
        let second = match (name, &csv.quote) {
            ("log.inter", _) => "c d",
            (_, Some(quote)) if quote.is_empty() => "\"c d\"",
            _ => "c\td",
        };
        assert_eq!(lines[1], format!("u2 {second} 101000 event None None None {name}:1"), "{csv:?}");
    }
}

#[tokio::test]
async fn a_file_without_a_header_loses_no_record_to_its_first_line() {
    let mut place = Place::new();
    place.config.events.csv = Dialect { names: names(&["user_id", "item_id", "ts"]), ..Dialect::default() };
    let report = place.ingest_file("log.csv", "u1,i1,100\nu1,i2\nu2,i1,101,9\n").await.unwrap_err();
    assert!(report.to_string().contains("2 fields instead of 3"), "{report}");
    place.config.events.max_dead_letter_rate = 1.0;
    let report = place.ingest().await.unwrap();
    assert_eq!((report.events.read, report.events.accepted, report.events.dead_letters), (3, 1, 2));
}

/// What a table of random texts holds: no text has a line end alone, and none is empty.
fn cell() -> impl Strategy<Value = String> {
    "[a-z0-9 ,;:|\t'\"#ü\\n]{0,8}".prop_map(|text| format!("x{text}"))
}

/// The text as a field: enclosed wherever that may be needed.
fn field(text: &str, quote: char) -> String {
    format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn random_tables_come_back_from_every_dialect(
        rows in proptest::collection::vec((cell(), cell(), 0i64..2_000_000_000), 1..20),
        delimiter in prop_oneof![Just(","), Just("\t"), Just(";"), Just("|"), Just("::"), Just(" || ")],
        quote in prop_oneof![Just('"'), Just('\'')],
        has_comments: bool,
        has_header: bool,
        line_end in prop_oneof![Just("\n"), Just("\r\n")],
        block_bytes in 1usize..200,
    ) {
        let mut place = Place::new();
        place.config.events.csv = Dialect {
            quote: Some(quote.into()),
            comment: has_comments.then(|| "#".into()),
            names: if has_header { Vec::new() } else { names(&["user_id", "ts", "item_id"]) },
            ..dialect(delimiter)
        };
        let mut text = String::new();
        if has_header {
            text += &format!("user_id{delimiter}ts{delimiter}item_id{line_end}");
        }
        for (user, item, ts) in &rows {
            if has_comments {
                text += &format!("# {quote}{line_end}");
            }
            text += &[field(user, quote), ts.to_string(), field(item, quote)].join(delimiter);
            text += line_end;
        }
        place.config.events.paths = vec![place.file("log.csv", text)];
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let limits = Limits { block_bytes, ..Limits::default() };
            run_within(&place.config, &place.root, limits, &Interrupt::default()).await.unwrap();
            let expected: Vec<String> = rows.iter().enumerate().map(|(at, (user, item, ts))| {
                format!("{user} {item} {} event None None None log.csv:{at}", ts * 1_000)
            }).collect();
            let mut found = place.events().await.into_iter().map(|(_, line)| line).collect::<Vec<_>>();
            found.sort_by_key(|line| line.rsplit_once(':').unwrap().1.parse::<u64>().unwrap());
            assert_eq!(found, expected);
        });
    }
}

#[tokio::test]
async fn times_are_recognized_and_the_report_says_how() {
    let logs = [
        ("1573438486", "seconds since 1970"),
        ("1573438486000", "milliseconds since 1970"),
        ("1.573438486e9", "seconds since 1970"),
        ("1573438486000000", "microseconds since 1970"),
        ("1573438486000000000", "nanoseconds since 1970"),
        ("2019-11-11 02:14:46", "ISO 8601"),
        ("2019-11-11T02:14:46Z", "ISO 8601"),
    ];
    for (written, recognized) in logs {
        let mut place = Place::new();
        place.config.events.ts_format = TimeFormat::Auto;
        let report =
            place.ingest_file("log.csv", format!("user_id,item_id,ts\nu,i,{written}\n")).await.unwrap();
        assert_eq!(report.files[0].times, Some(recognized), "{written}");
        assert!(report.to_string().contains(&format!("times: read as {recognized}")), "{report}");
        assert_eq!(place.lines().await, ["u i 1573438486000 event None None None log.csv:0"], "{written}");
    }
    let mut place = Place::new();
    place.config.events.ts_format = TimeFormat::Auto;
    let mixed = "user_id,item_id,ts\nu,i,1573438486\nu,j,1573438486\nu,k,2019-11-11\n";
    let report = place.ingest_file("log.csv", mixed).await.unwrap();
    assert_eq!(report.files[0].times, None);
    assert!(report.warnings[0].contains("2 as seconds since 1970, 1 as ISO 8601"), "{:?}", report.warnings);
}

#[tokio::test]
async fn a_pattern_a_zone_and_a_time_of_day_of_its_own() {
    let mut place = Place::new();
    let events = &mut place.config.events;
    events.ts_format = TimeFormat::try_from("%m/%d/%Y %I:%M:%S %p".to_owned()).unwrap();
    events.ts_zone = Some(Zone::try_from("America/New_York".to_owned()).unwrap());
    events.columns.ts = "date".into();
    events.columns.time_of_day = Some("clock".into());
    events.max_dead_letter_rate = 1.0;
    let log = "user_id,item_id,date,clock\nu,i,11/10/2019,9:14:46 PM\nu,skipped,3/10/2019,2:30:00 AM\nu,j,11/10/2019,\n";
    let report = place.ingest_file("log.csv", log).await.unwrap();
    assert_eq!(place.lines().await, ["u i 1573438486000 event None None None log.csv:0"]);
    assert!(report.examples.contains("skip 2019-03-10 02:30:00"), "{}", report.examples);
    let reasons: Vec<_> = place.dead_letters().await.into_iter().map(|(_, reason, _)| reason).collect();
    assert_eq!(reasons, ["invalid_time", "missing_field"]);
}
