//! Which files are read: directories, patterns, Delta tables, and the values in their paths.

use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use deltalake::DeltaTable;
use deltalake::kernel::transaction::CommitProperties;
use schemas::config::{Attribute, Format};

use super::*;

const HEADER: &str = "user_id,item_id,ts\n";

impl Place {
    /// Writes a file and the directories above it.
    fn deep(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    async fn error(&mut self, path: &str) -> String {
        self.config.events.paths = vec![self.at(path)];
        let error = self.ingest().await.unwrap_err();
        assert_eq!(self.files(), 0);
        error.to_string()
    }
}

fn row(user: &str) -> String {
    format!("{HEADER}{user},i,1\n")
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn users(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split(' ').next().unwrap()).collect()
}

#[tokio::test]
async fn a_directory_is_all_files_in_it_that_have_a_format() {
    let mut place = Place::new();
    for name in ["log/b.csv", "log/a/z.csv", "log/a/y/x.csv.gz", "log/_k=1/w.csv", "log/C.CSV"] {
        let text = row(&name.replace('/', "-"));
        let packed = || {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut out, text.as_bytes()).unwrap();
            out.finish().unwrap()
        };
        place.deep(name, if name.ends_with(".gz") { packed() } else { text.clone().into_bytes() });
    }
    let garbage =
        ["log/_SUCCESS", "log/.b.csv.crc", "log/.hidden/a.csv", "log/_temporary/0/a.csv", "log/README.md"];
    garbage.iter().for_each(|name| drop(place.deep(name, "garbage")));
    place.config.events.paths = vec![place.at("log")];
    let report = place.ingest().await.unwrap();
    let all = ["log-C.CSV", "log-_k=1-w.csv", "log-a-y-x.csv.gz", "log-a-z.csv", "log-b.csv"];
    let sources: Vec<_> = report.files.iter().map(|file| file.source.clone()).collect();
    assert!(sources.is_sorted(), "{sources:?}");
    let stored = place.lines().await;
    let mut found = users(&stored);
    found.sort_unstable();
    assert_eq!(found, all);
    // The same files by a pattern, by the directory with a slash, and by name: each once.
    place.config.events.paths = vec![place.at("log/"), place.at("log/**/*.csv"), place.at("log/b.csv")];
    let again = place.ingest().await.unwrap();
    assert_eq!((again.events.read, again.events.duplicates), (5, 5));
}

#[tokio::test]
async fn patterns_reach_into_directories_and_read_them() {
    let mut place = Place::new();
    let names = [
        "log/dt=1/a.csv",
        "log/dt=2/deep/b.csv",
        "log/dt=3/c.csv",
        "log/dt=3/_temporary/d.csv",
        "log/top.csv",
    ];
    for name in names {
        place.deep(name, row(&name.replace('/', "-")));
    }
    for (pattern, expected) in [
        ("log/**/*.csv", &["log-dt=1-a.csv", "log-dt=2-deep-b.csv", "log-dt=3-c.csv", "log-top.csv"][..]),
        ("log/*/*.csv", &["log-dt=1-a.csv", "log-dt=3-c.csv"]),
        ("log/dt=[12]", &["log-dt=1-a.csv", "log-dt=2-deep-b.csv"]),
        ("log/**/_temporary/*.csv", &[]),
        ("log/dt=3/_temporary/*.csv", &["log-dt=3-_temporary-d.csv"]),
        ("log/dt=9*", &[]),
    ] {
        let mut other = Place::new();
        std::fs::remove_dir(other.dir.path().join("root")).ok();
        other.config.events.paths = vec![place.at(pattern)];
        match other.ingest().await {
            Ok(_) => {
                let stored = other.lines().await;
                let mut found = users(&stored);
                found.sort_unstable();
                assert_eq!(found, expected, "{pattern}");
            }
            Err(error) => {
                assert!(
                    expected.is_empty() && error.to_string().contains("no file matches"),
                    "{pattern}: {error}"
                );
            }
        }
    }
    // Files of one name in two directories are told apart by their paths.
    place.config.events.paths = vec![place.at("log")];
    assert_eq!(place.ingest().await.unwrap().files.len(), 4);
}

#[tokio::test]
async fn a_directory_without_files_is_an_error_that_says_what_was_looked_for() {
    let mut place = Place::new();
    place.deep("log/part-0", row("u"));
    place.deep("log/_SUCCESS", "");
    let error = place.error("log").await;
    assert!(
        error.contains(".parquet") && error.contains(".bz2 or .xz") && error.contains("`format`"),
        "{error}"
    );
    place.config.events.format = Some(Format::Csv);
    assert_eq!(place.ingest().await.unwrap().events.accepted, 1);
    std::fs::create_dir_all(place.dir.path().join("empty/.git")).unwrap();
    place.config.events.paths = vec![place.at("empty")];
    let error = place.ingest().await.unwrap_err().to_string();
    assert!(error.contains("is a directory without a file;"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn links_in_directories_are_followed_but_not_in_circles() {
    let mut place = Place::new();
    place.deep("elsewhere/a.csv", row("u"));
    place.deep("log/b.csv", row("v"));
    std::os::unix::fs::symlink(place.at("elsewhere"), place.at("log/linked")).unwrap();
    std::os::unix::fs::symlink(place.at("elsewhere/a.csv"), place.at("log/same.csv")).unwrap();
    place.config.events.paths = vec![place.at("log")];
    assert_eq!(place.ingest().await.unwrap().events.read, 2);
    std::os::unix::fs::symlink(place.at("log"), place.at("log/linked/log")).unwrap();
    let error = place.ingest().await.unwrap_err().to_string();
    assert!(
        error.contains("linked/log is a link to a directory above it") || error.contains("log: is a link"),
        "{error}"
    );
}

/// Files of each format, all with `user_id`, `item_id` and `ts`.
fn every_format(extra: bool) -> Vec<(&'static str, Vec<u8>)> {
    let extra_column = || Arc::new(StringArray::from(vec!["own", "own"])) as ArrayRef;
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("user_id", Arc::new(StringArray::from(vec!["u", "v"]))),
        ("item_id", Arc::new(StringArray::from(vec!["i", "j"]))),
        ("ts", Arc::new(Int64Array::from(vec![1, 2]))),
    ];
    columns.extend(extra.then(|| ("kind", extra_column())));
    let (head, tail, key) = if extra { (",kind", ",own", ",\"kind\":\"own\"") } else { ("", "", "") };
    vec![
        ("f.csv", format!("user_id,item_id,ts{head}\nu,i,1{tail}\nv,j,2{tail}\n").into()),
        (
            "f.jsonl",
            format!(
                "{{\"user_id\":\"u\",\"item_id\":\"i\",\"ts\":1{key}}}\n{{\"user_id\":\"v\",\"item_id\":\"j\",\"ts\":2{key}}}\n"
            )
            .into(),
        ),
        ("f.parquet", parquet(columns)),
    ]
}

#[tokio::test]
async fn the_values_in_a_path_are_columns_of_every_format() {
    for extra in [false, true] {
        for (name, bytes) in every_format(extra) {
            let mut place = Place::new();
            place.config.events.columns.action = Some("kind".into());
            place.config.events.columns.value = Some("stars".into());
            place.deep(&format!("log/kind=cl%69ck%2Fx/stars=4.5/{name}"), &bytes);
            place.deep(&format!("log/stars=__HIVE_DEFAULT_PARTITION__/kind=view/{name}"), &bytes);
            for path in ["log", "log/*/*/*", "log/**/*"] {
                place.config.events.paths = vec![place.at(path)];
                let report = place.ingest().await.unwrap();
                assert_eq!((report.events.read, report.warnings), (4, vec![]), "{name}");
            }
            // Where the file has the column too, the path's value counts.
            let file =
                |line: &str| format!("{line} None None {name}:{}", if line.starts_with('u') { 0 } else { 1 });
            let mut lines = place.lines().await;
            lines.sort();
            assert_eq!(
                lines,
                [
                    file("u i 1000 click/x Some(4.5)"),
                    file("u i 1000 view None"),
                    file("v j 2000 click/x Some(4.5)"),
                    file("v j 2000 view None"),
                ],
                "{name}"
            );
            // What stands before the directory or the pattern is no column.
            place.config.events.paths = vec![place.at("log/kind=cl%69ck%2Fx")];
            match place.ingest().await {
                Ok(_) => assert!(extra || name == "f.jsonl"),
                Err(error) if name == "f.jsonl" => assert!(error.to_string().contains("kind"), "{error}"),
                Err(error) => assert!(!extra && error.to_string().contains("`kind`"), "{error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_time_and_a_required_field_may_be_in_the_path() {
    let mut place = Place::new();
    place.config.events.ts_format = "auto".to_owned().try_into().unwrap();
    place.config.events.max_dead_letter_rate = 1.0;
    place.config.events.columns.ts = "dt".into();
    place.deep("log/dt=2024-05-01%2010%3A00%3A00/item_id=a%2Cb/x.csv", "user_id\nu\n,\n");
    place.deep("log/dt=2024-05-02/item_id=__HIVE_DEFAULT_PARTITION__/x.jsonl", "{\"user_id\": 7}\n");
    place.config.events.paths = vec![place.at("log")];
    let report = place.ingest().await.unwrap();
    assert_eq!((report.events.accepted, report.events.dead_letters), (1, 2));
    assert!(place.lines().await[0].starts_with("u a,b 1714557600000 "), "{:?}", place.lines().await);
    let reasons: Vec<_> =
        place.dead_letters().await.into_iter().map(|(_, reason, value)| (reason, value)).collect();
    assert!(reasons.contains(&("missing_field".to_owned(), b"{\"user_id\": 7}".to_vec())), "{reasons:?}");
}

#[tokio::test]
async fn users_are_not_read_from_paths() {
    let mut place = Place::new();
    place.deep("log/user_id=u/x.csv", "item_id,ts\ni,1\n");
    let error = place.error("log").await;
    assert!(error.contains("`user_id`") && error.contains("pipeline forget"), "{error}");
    for wrong in ["two/dt=1/dt=2/x.csv", "bytes/dt=%ff/x.csv"] {
        place.deep(wrong, row("u"));
        let error = place.error(wrong.split('/').next().unwrap()).await;
        assert!(error.contains("two values of `dt`") || error.contains("not UTF-8"), "{error}");
    }
}

#[tokio::test]
async fn a_catalogue_has_the_values_of_its_paths_too() {
    let mut place = Place::new();
    place.deep("items/genre=Sci%2DFi%7CDrama/a.csv", "item_id,title\n1,One\n");
    place.deep("items/genre=__HIVE_DEFAULT_PARTITION__/b.jsonl", "{\"item_id\": 2, \"title\": \"Two\"}\n");
    let genre = Attribute { separator: Some("|".into()), ..Attribute::default() };
    place.config.items.attributes.insert("genre".into(), genre);
    place.config.items.paths = vec![place.at("items")];
    let report = place.ingest().await.unwrap();
    assert_eq!(report.warnings, Vec::<String>::new());
    assert_eq!(place.items(&["genre"]).await, ["1 1 One true genre=Sci-Fi,Drama", "2 2 Two true genre="]);
}

/// A Delta table as another program writes it, partitioned by `kind`.
async fn delta(path: &str) -> DeltaTable {
    use deltalake::kernel::{DataType, PrimitiveType};
    std::fs::create_dir_all(path).unwrap();
    let column =
        |name: &str, of| deltalake::kernel::StructField::new(name.to_owned(), DataType::Primitive(of), true);
    let (root, name) = path.rsplit_once('/').unwrap();
    let empty = Root::new(root).unwrap().table_builder(name).unwrap().build().unwrap();
    empty
        .create()
        .with_columns([
            column("user_id", PrimitiveType::String),
            column("item_id", PrimitiveType::String),
            column("ts", PrimitiveType::Long),
            column("kind", PrimitiveType::String),
        ])
        .with_partition_columns(["kind"])
        .await
        .unwrap()
}

/// Commits one file of one row, and removes `gone`.
async fn commit(table: &mut DeltaTable, directory: &str, name: &str, kind: Option<&str>, gone: Option<&str>) {
    use deltalake::kernel::transaction::CommitBuilder;
    use deltalake::kernel::{Action, Add, Remove};
    use deltalake::protocol::{DeltaOperation, SaveMode};
    let user = name.rsplit('/').next().unwrap().trim_end_matches(".parquet");
    let bytes = parquet(vec![
        ("user_id", Arc::new(StringArray::from(vec![user]))),
        ("item_id", Arc::new(StringArray::from(vec!["i"]))),
        ("ts", Arc::new(Int64Array::from(vec![1]))),
    ]);
    let path = Path::new(directory).join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let add = Action::Add(Add {
        path: name.into(),
        size: bytes.len() as i64,
        data_change: true,
        partition_values: [("kind".to_owned(), kind.map(str::to_owned))].into(),
        ..Add::default()
    });
    let remove =
        gone.map(|path| Action::Remove(Remove { path: path.into(), data_change: true, ..Remove::default() }));
    let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
    CommitBuilder::from(CommitProperties::default())
        .with_actions([add].into_iter().chain(remove).collect())
        .build(Some(table.snapshot().unwrap()), table.log_store(), operation)
        .await
        .unwrap();
    table.update_state().await.unwrap();
}

#[tokio::test]
async fn a_delta_table_is_read_at_a_version() {
    let mut place = Place::new();
    place.config.events.columns.action = Some("kind".into());
    place.config.events.constants.insert("action".into(), "none".into());
    let path = place.at("other team/ev%20ents");
    let mut table = delta(&path).await;
    assert!(place.error("other team/ev%20ents").await.contains("no rows at version 0"));
    commit(&mut table, &path, "kind=a/first.parquet", Some("a"), None).await;
    commit(&mut table, &path, "anywhere/second.parquet", Some("play now"), Some("kind=a/first.parquet"))
        .await;
    commit(&mut table, &path, "third.parquet", None, None).await;
    std::fs::write(Path::new(&path).join("not committed.parquet"), "garbage").unwrap();
    let kinds = |lines: Vec<String>| -> Vec<String> {
        lines.iter().map(|line| line.split(" None").next().unwrap().to_owned()).collect()
    };
    place.config.events.paths = vec![path.clone()];
    let report = place.ingest().await.unwrap();
    assert_eq!(report.events.accepted, 2);
    assert_eq!(kinds(place.lines().await), ["second i 1000 play now", "third i 1000 none"]);
    place.config.events.paths = vec![format!("{path}@1")];
    assert_eq!(place.ingest().await.unwrap().events.accepted, 1);
    assert_eq!(place.ingest().await.unwrap().events.duplicates, 1);
    for wrong in ["@7", "@x"] {
        place.config.events.paths = vec![format!("{path}{wrong}")];
        let error = place.ingest().await.unwrap_err().to_string();
        assert!(error.contains(&format!("ev%20ents{wrong}")), "{error}");
    }
    // As a directory among others it would be read without its log.
    place.config.events.paths = vec![place.at("other team")];
    let error = place.ingest().await.unwrap_err().to_string();
    assert!(error.contains("is a Delta table"), "{error}");
}

#[tokio::test]
async fn standard_input_needs_a_format_and_is_read_once() {
    let mut place = Place::new();
    place.config.events.paths = vec!["-".into()];
    let error = place.ingest().await.unwrap_err().to_string();
    assert!(error.contains("events.format=jsonl"), "{error}");
    place.config.events.format = Some(Format::Csv);
    place.config.events.paths.push("-".into());
    assert!(place.ingest().await.unwrap_err().to_string().contains("read once"));
    place.config.events.paths.pop();
    place.config.items.paths = vec!["-".into()];
    place.config.items.format = Some(Format::Csv);
    assert!(place.ingest().await.unwrap_err().to_string().contains("read once"));
}
