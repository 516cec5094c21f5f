//! Whole proposals: of odd files, which are read right or asked about, and of published layouts, whose configuration is run.

use std::path::Path;

use schemas::config::{Config, TimeUnit};
use store::Root;
use terminal::Interrupt;

use super::*;
use crate::ingest::{IngestReport, run};

/// A directory of inputs.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn request(&self, paths: &[&str]) -> InitRequest {
        InitRequest {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            out: self.0.path().join("my.toml"),
            ..InitRequest::default()
        }
    }

    /// Writes the proposed configuration and runs it unchanged.
    async fn ingest(&self, request: &InitRequest) -> (Config, IngestReport) {
        let report = propose(request);
        let text = report.configuration.as_ref().unwrap_or_else(|| panic!("{report}"));
        std::fs::write(&request.out, text).unwrap();
        let config = Config::load(&request.out, &[]).unwrap();
        assert!(Path::new(&config.root).starts_with(self.0.path()));
        let root = Root::new(&config.root).unwrap();
        let ingested =
            run(&config, &root, &Interrupt::default()).await.unwrap_or_else(|e| panic!("{e}\n{text}"));
        (config, ingested)
    }
}

/// The configuration that one file alone leads to, or the options of the questions.
fn of(name: &str, bytes: impl AsRef<[u8]>, answers: InitAnswers) -> Result<Config, String> {
    let folder = Folder::new();
    let path = folder.file(name, bytes);
    let request = InitRequest { answers, ..folder.request(&[&path]) };
    let report = propose(&request);
    match &report.configuration {
        Some(text) => {
            assert!(report.questions.is_empty());
            Ok(Config::parse(text, &request.out, &[]).unwrap_or_else(|e| panic!("{e}\n{text}")))
        }
        None => {
            assert!(!report.questions.is_empty(), "{report}");
            let questions = report.questions.iter().map(|q| format!("{}: {}", q.option, q.question));
            Err(questions.collect::<Vec<_>>().join("\n"))
        }
    }
}

fn read(name: &str, bytes: impl AsRef<[u8]>) -> Config {
    of(name, bytes, InitAnswers::default()).unwrap_or_else(|questions| panic!("{name}: {questions}"))
}

fn columns(config: &Config) -> [&str; 3] {
    let columns = &config.events.columns;
    [&columns.user_id, &columns.item_id, &columns.ts]
}

/// Rows of a log: user, item, time in seconds.
fn rows(delimiter: &str, n: u32) -> String {
    (0..n)
        .map(|at| format!("u{}{delimiter}i{}{delimiter}{}\n", at % 7, at % 11, 1_700_000_000 + at * 977))
        .collect()
}

#[test]
fn odd_files_are_read_right() {
    let header = "user_id,item_id,timestamp\n";
    let plain = format!("{header}{}", rows(",", 50));
    let expected = ["user_id", "item_id", "timestamp"];
    assert_eq!(columns(&read("log.csv", &plain)), expected);
    // A name that says nothing, or something else, and a byte-order mark.
    for name in ["log.data", "log", "log.tsv", "log.jsonl"] {
        let config = read(name, &plain);
        assert_eq!(columns(&config), expected, "{name}");
        assert_eq!(config.events.ts_format, TimeUnit::S.into(), "{name}");
    }
    assert_eq!(columns(&read("bom.csv", format!("\u{feff}{plain}"))), expected);
    assert_eq!(columns(&read("crlf.csv", plain.replace('\n', "\r\n"))), expected);
    // Other delimiters.
    for delimiter in [";", "|", "\t", "::", "\u{1}"] {
        let text = format!("{}{}", header.replace(',', delimiter), rows(delimiter, 50));
        let config = read("log.txt", text);
        assert_eq!(config.events.csv.delimiter.as_deref(), Some(delimiter));
        assert_eq!(columns(&config), expected);
    }
    // Ids with leading zeros stay text; a record that is too long is a dead letter.
    let zeros: String = (0..200).map(|at| format!("00{at},000{},170000{:04}\n", at % 9, at)).collect();
    assert_eq!(columns(&read("zeros.csv", format!("{header}{zeros}"))), expected);
    let long = format!("{header}{}u,{},1700000000\n", rows(",", 300), "x".repeat(2 << 20));
    assert_eq!(columns(&read("long.csv", long)), expected);
    // A column without a name, as data frames write it, and one named twice that nothing needs.
    let index: String =
        rows(",", 20).lines().enumerate().map(|(at, line)| format!("{at},{line}\n")).collect();
    assert_eq!(columns(&read("index.csv", format!(",{header}{index}"))), expected);
    let twice: String = rows(",", 20).lines().map(|line| format!("{line},a,b\n")).collect();
    assert_eq!(columns(&read("twice.csv", format!("user_id,item_id,timestamp,x,x\n{twice}"))), expected);
    // Quoted fields with delimiters and line ends.
    let quoted: String = rows(",", 30).lines().map(|line| format!("{line},\"a, \"\"b\"\"\nc\"\n")).collect();
    assert_eq!(
        columns(&read("quoted.csv", format!("user_id,item_id,timestamp,comment\n{quoted}"))),
        expected
    );
    // A date and, beside it, the time of day.
    let days: String = (1..28).map(|d| format!("u{d},i{d},2024-03-{d:02},1{}:30\n", d % 10)).collect();
    let config = read("days.csv", format!("user,item,date,time\n{days}"));
    assert_eq!(columns(&config), ["user", "item", "date"]);
    assert_eq!(config.events.columns.time_of_day.as_deref(), Some("time"));
    // The same time twice: the finer one counts.
    let both: String = (0..40)
        .map(|n| format!("u{n},i{n},{},2023-11-1{}\n", 1_699_747_200 + n % 8 * 86_400 + n, 2 + n % 8))
        .collect();
    let config = read("both.csv", format!("user,item,unixReviewTime,reviewTime\n{both}"));
    assert_eq!(columns(&config), ["user", "item", "unixReviewTime"]);
    // Objects inside objects, and a clicked list beside a shown one.
    let nested =
        "{\"user\": {\"id\": 1}, \"item\": {\"id\": \"a\"}, \"time\": \"2024-01-01T00:00:00Z\"}\n".repeat(3);
    assert_eq!(columns(&read("nested.jsonl", nested)), ["user.id", "item.id", "time"]);
    let shown = "{\"user_id\": 1, \"time\": \"2024-01-01T00:00:00Z\", \"article_ids_inview\": [1, 2], \"article_ids_clicked\": [2]}\n";
    let config = read("shown.jsonl", shown.repeat(3));
    assert_eq!(config.events.explode.columns, ["article_ids_inview"]);
    assert_eq!(config.events.explode.chosen.unwrap().column, "article_ids_clicked");
    assert_eq!(config.sequences.actions, ["click"]);
    // A flag is an action.
    let flags: String =
        rows(",", 20).lines().enumerate().map(|(at, line)| format!("{line},{}\n", at % 2)).collect();
    let config = read("flags.csv", format!("user_id,item_id,timestamp,is_click\n{flags}"));
    assert_eq!(config.events.action_names["1"], "click");
    assert_eq!(config.sequences.actions, ["click"]);
}

#[test]
fn odd_files_are_asked_about() {
    let log = rows(",", 50);
    let header = "user_id,item_id,timestamp\n";
    let utf16: Vec<u8> =
        [0xff, 0xfe].into_iter().chain(header.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let dates = |order: &str| format!("user,item,date\n{}", order.repeat(5));
    let extra = |name: &str, value: &str| {
        let rows: String = log.lines().map(|line| format!("{line},{value}\n")).collect();
        format!("user_id,item_id,timestamp,{name}\n{rows}")
    };
    let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("empty.csv", Vec::new(), "PATH", "is empty"),
        ("blank.csv", b"\n\n\n".to_vec(), "PATH", "no record"),
        ("binary.csv", (0..=255).cycle().take(4_096).collect(), "PATH", "binary"),
        ("utf16.csv", utf16, "PATH", "UTF-16"),
        (
            "latin1.csv",
            format!("{header}{log}").bytes().map(|b| if b == b'u' { 0xfc } else { b }).collect(),
            "PATH",
            "UTF-8",
        ),
        ("header.csv", header.into(), "PATH", "no record"),
        ("one.csv", b"alpha\nbeta\ngamma\n".to_vec(), "--delimiter", "one column"),
        ("headless.csv", log.clone().into_bytes(), "--names", "no header"),
        ("words.csv", b"alpha,beta\ngamma,delta\nepsilon,zeta\n".to_vec(), "--names", "does the first line"),
        (
            "mixed.csv",
            format!("{header}{log}{}", rows(";", 50)).into_bytes(),
            "--delimiter",
            "mixed delimiters",
        ),
        ("times.csv", extra("event_time", "1600000000").into_bytes(), "--time", "may each be the time"),
        ("users.csv", extra("customer_id", "c5").into_bytes(), "--user", "may each be the user"),
        ("items.csv", extra("product_id", "p5").into_bytes(), "--item", "may each be the item"),
        ("twice.csv", extra("user_id", "u5").into_bytes(), "--user", "no column is named like a user"),
        (
            "no_time.csv",
            b"user,item,rating\n1,2,3\n1,3,4\n2,2,5\n".to_vec(),
            "--time",
            "no column holds times",
        ),
        (
            "no_user.csv",
            b"who,item,timestamp\na,x,1700000000\na,x,1700000009\nb,x,1700000100\n".to_vec(),
            "--user",
            "`who`",
        ),
        (
            "no_item.csv",
            b"user,thing,timestamp\na,x,1700000000\na,y,1700000009\n".to_vec(),
            "--item",
            "`thing`",
        ),
        ("order.csv", dates("a,b,03/04/2024\n").into_bytes(), "--ts-format", "%d/%m/%Y or %m/%d/%Y"),
        (
            "relative.csv",
            b"uid,item_id,timestamp\n1,2,5\n1,3,900\n2,3,1200\n".to_vec(),
            "--time",
            "no times since 1970",
        ),
        (
            "float.csv",
            b"user,item,time\n1,2,noon\n1,3,dusk\n".to_vec(),
            "--ts-format",
            "no numbers, ISO 8601 or common dates",
        ),
        ("array.jsonl", b"[{\"user\": 1}]\n".to_vec(), "PATH", "one JSON array"),
        ("dict.jsonl", b"{'user': 1}\n".to_vec(), "PATH", "Python"),
        ("pretty.jsonl", b"{\n  \"user\": 1\n}\n".to_vec(), "PATH", "one whole object a line"),
        ("torn.parquet", b"PAR1 and no more of it".to_vec(), "PATH", "Parquet"),
        ("named.csv.gz", format!("{header}{log}").into_bytes(), "PATH", "gzip"),
        ("line.csv", vec![b'x'; 3 << 20], "PATH", "longer than 1 MiB"),
        ("ids.csv", extra("event_id", "same").into_bytes(), "PATH", "event_id"),
        ("value.csv", extra("value", "good").into_bytes(), "PATH", "is not a number"),
    ];
    for (name, bytes, option, words) in cases {
        match of(name, bytes, InitAnswers::default()) {
            Err(questions) => {
                assert!(questions.starts_with(option) && questions.contains(words), "{name}: {questions}");
            }
            Ok(config) => panic!("{name}: {}", config.to_toml()),
        }
    }
    let nothing = propose(&InitRequest { paths: vec!["/nowhere/log.csv".into()], ..InitRequest::default() });
    assert!(nothing.configuration.is_none() && nothing.questions[0].question.contains("no such file"));
    let yambda = propose(&InitRequest { preset: Some(Preset::Yambda), ..InitRequest::default() });
    assert!(yambda.questions[0].question.contains("5 s"));
}

#[test]
fn answers_are_taken() {
    let some = |text: &str| Some(text.to_owned());
    let names = vec![vec!["user".to_owned(), "item".into(), "time".into()]];
    let config = of("headless.csv", rows(",", 50), InitAnswers { names, ..InitAnswers::default() }).unwrap();
    assert_eq!(config.events.csv.names, ["user", "item", "time"]);
    let dates = "user,item,date\na,b,03/04/2024\nb,c,05/04/2024\n";
    let ts_format = some("%d/%m/%Y");
    let config = of("order.csv", dates, InitAnswers { ts_format, ..InitAnswers::default() }).unwrap();
    assert_eq!(config.events.ts_format.to_string(), "%d/%m/%Y");
    let wrong = InitAnswers { ts_format: some("%Y"), ..InitAnswers::default() };
    assert!(of("wrong.csv", dates, wrong).is_err());
    let two = "who,what,when\na,b,2024-03-04\nb,c,2024-03-05\n";
    let answers = InitAnswers { user: some("who"), item: some("what"), ..InitAnswers::default() };
    assert_eq!(columns(&of("two.csv", two, answers).unwrap()), ["who", "what", "when"]);
    let wrong = InitAnswers { user: some("nobody"), item: some("what"), ..InitAnswers::default() };
    assert!(of("two.csv", two, wrong).unwrap_err().contains("does not have `nobody`"));
}

#[tokio::test]
async fn recbole_files_are_ingested_as_proposed() {
    let folder = Folder::new();
    let inter: String = (0..500)
        .map(|n| format!("{}\t{}\t{}\t{}\n", n % 40, n % 31, n % 5 + 1, 981_250_949 + n * 500))
        .collect();
    let item: String = (0..31)
        .map(|n| format!("{n}\tFilm {n}\t{}\n", ["Action Comedy", "Drama", "Comedy"][n % 3]))
        .collect();
    let header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n";
    let inter = folder.file("ml.inter", format!("{header}{inter}"));
    let item =
        folder.file("ml.item", format!("item_id:token\tmovie_title:token_seq\tclass:token_seq\n{item}"));
    let (config, report) = folder.ingest(&folder.request(&[&inter, &item])).await;
    assert_eq!((report.events.read, report.events.accepted), (500, 500));
    assert_eq!((report.items.accepted, report.catalogue.from_events), (31, 0));
    assert_eq!(config.items.attributes["class"].separator.as_deref(), Some(" "));
    assert_eq!(config.events.constants["action"], "rating");
}

#[tokio::test]
async fn times_before_2000_are_confirmed() {
    let folder = Folder::new();
    let rows: String = (0..60)
        .map(|n| format!("{}\t{}\t{}\t{}\n", n % 9, n % 7, n % 5 + 1, 881_250_949 + n * 500))
        .collect();
    let path = folder.file("u.data", rows);
    let mut request = folder.request(&[&path]);
    assert!(propose(&request).questions[0].question.contains("before the year 2000"));
    request.preset = Some(Preset::Movielens);
    let (config, report) = folder.ingest(&request).await;
    assert!(!config.events.check_times && report.events.accepted == 60);
}

#[test]
fn columns_in_another_order_than_published_are_noticed() {
    let folder = Folder::new();
    let of = |user: &str, item: &str| {
        (0..30)
            .map(|n| format!("{user}{},{item}{},5.0,{}\n", n % 9, n % 7, 1_369_699_200 + n * 500))
            .collect::<String>()
    };
    for (name, rows, fits) in [
        ("ratings_2014.csv", of("A1YJEY40YUW4S", "780639705"), true),
        ("ratings_2018.csv", of("780639705", "A1YJEY40YUW4S"), false),
    ] {
        let path = folder.file(name, rows);
        let request = InitRequest { preset: Some(Preset::Amazon2014), ..folder.request(&[&path]) };
        let report = propose(&request);
        assert_eq!(report.configuration.is_some(), fits, "{report}");
    }
}

#[tokio::test]
async fn mind_files_are_ingested_as_proposed() {
    let folder = Folder::new();
    let mut behaviors = String::new();
    for n in 0..90 {
        let shown: Vec<String> =
            (0..4).map(|at| format!("N{}-{}", (n * 3 + at) % 50, u32::from(at == n % 4))).collect();
        let past = if n % 5 == 0 { String::new() } else { format!("N{} N{}", n % 50, (n + 7) % 50) };
        let (day, hour, shown) = (9 + n % 6, 1 + n % 12, shown.join(" "));
        behaviors.push_str(&format!("{n}\tU{}\t11/{day}/2019 {hour}:05:58 AM\t{past}\t{shown}\n", n % 20));
    }
    let news: String = (0..50)
        .map(|n| {
            format!(
                "N{n}\t{}\tworld\t\"Title\" {n}, of news\tAbstract\thttps://a/{n}\t[]\t[]\n",
                ["news", "sports"][n % 2]
            )
        })
        .collect();
    let paths = [folder.file("behaviors.tsv", behaviors), folder.file("news.tsv", news)];
    let mut request = folder.request(&[&paths[0], &paths[1]]);
    for preset in [None, Some(Preset::Mind)] {
        request.preset = preset;
        let (config, report) = folder.ingest(&request).await;
        assert_eq!(report.events.read, 360);
        assert_eq!(report.events.dead_letters, 0);
        assert_eq!((report.items.accepted + report.items.duplicates, report.catalogue.from_events), (50, 0));
        assert_eq!(config.events.ts_format.to_string(), "%m/%d/%Y %I:%M:%S %p");
        assert_eq!(config.events.columns.request_id.as_deref(), Some("impression_id"));
        assert_eq!(config.sequences.actions, ["click"]);
    }
}

#[tokio::test]
async fn movielens_is_ingested_as_proposed() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/movielens-latest-small");
    let folder = Folder::new();
    let (ratings, movies) = (data.join("ratings.csv"), data.join("movies.csv"));
    let request = folder.request(&[ratings.to_str().unwrap(), movies.to_str().unwrap()]);
    let (config, report) = folder.ingest(&request).await;
    assert_eq!(
        (report.events.read, report.events.accepted, report.events.dead_letters),
        (100_836, 100_836, 0)
    );
    assert_eq!(report.items.accepted, 9_742);
    assert_eq!(columns(&config), ["userId", "movieId", "timestamp"]);
    assert_eq!(config.events.columns.value.as_deref(), Some("rating"));
    let genre = &config.items.attributes["genre"];
    assert_eq!(
        (genre.separator.as_deref(), genre.none.as_slice()),
        (Some("|"), &["(no genres listed)".to_owned()][..])
    );
}
