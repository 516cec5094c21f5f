//! Published layouts: files without a header that are recognized by their records, and presets.

use std::path::Path;

use clap::ValueEnum;

use super::InitAnswers;
use super::sampled::SampledFile;

/// Data sets whose format is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// MovieLens: ratings.csv and movies.csv, or ratings.dat and movies.dat, or u.data.
    Movielens,
    /// Amazon reviews of 2014: JSON Lines, or user,item,rating,timestamp without a header.
    #[value(name = "amazon-2014")]
    Amazon2014,
    /// Amazon reviews of 2023: JSON Lines, or CSV with a header.
    #[value(name = "amazon-2023")]
    Amazon2023,
    /// MIND: behaviors.tsv and news.tsv.
    Mind,
    /// EB-NeRD: behaviors.parquet and articles.parquet.
    Ebnerd,
    /// RecBole's atomic files: .inter and .item.
    Recbole,
    /// KuaiRand: log_*.csv and video_features_basic_*.csv.
    Kuairand,
    /// Yambda: cannot be expressed, as its times count 5 s from an unknown beginning.
    Yambda,
}

/// A layout as its publication describes it.
struct Layout {
    user: Option<&'static str>,
    item: Option<&'static str>,
    time: Option<&'static str>,
    request: Option<&'static str>,
    action: Option<&'static str>,
    value: Option<&'static str>,
    ts_format: Option<&'static str>,
    /// Columns of files without a header, by their number.
    names: &'static [&'static [&'static str]],
    /// Beginnings of the names of files of the log, and of the catalogue.
    log: &'static [&'static str],
    catalogue: &'static [&'static str],
}

const NONE: Layout = Layout {
    user: None,
    item: None,
    time: None,
    request: None,
    action: None,
    value: None,
    ts_format: None,
    names: &[],
    log: &[],
    catalogue: &[],
};

const RATINGS: &[&str] = &["userId", "movieId", "rating", "timestamp"];
const MOVIES: &[&str] = &["movieId", "title", "genres"];
const USERS: &[&str] = &["userId", "gender", "age", "occupation", "zip"];
const BEHAVIORS: &[&str] = &["impression_id", "user_id", "time", "history", "impressions"];
const NEWS: &[&str] = &[
    "news_id",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "abstract_entities",
];

impl Preset {
    fn layout(self) -> Layout {
        match self {
            Self::Movielens => Layout {
                user: Some("userId"),
                item: Some("movieId"),
                time: Some("timestamp"),
                value: Some("rating"),
                ts_format: Some("s"),
                names: &[RATINGS, MOVIES, USERS],
                log: &["ratings", "u."],
                catalogue: &["movies"],
                ..NONE
            },
            Self::Amazon2014 => Layout {
                user: Some("reviewerID"),
                item: Some("asin"),
                time: Some("unixReviewTime"),
                value: Some("overall"),
                ts_format: Some("s"),
                names: &[&["reviewerID", "asin", "overall", "unixReviewTime"]],
                catalogue: &["meta"],
                ..NONE
            },
            Self::Amazon2023 => Layout {
                user: Some("user_id"),
                item: Some("parent_asin"),
                time: Some("timestamp"),
                value: Some("rating"),
                ts_format: Some("ms"),
                names: &[&["user_id", "parent_asin", "rating", "timestamp"]],
                catalogue: &["meta"],
                ..NONE
            },
            Self::Mind => Layout {
                user: Some("user_id"),
                item: Some("impressions"),
                time: Some("time"),
                request: Some("impression_id"),
                ts_format: Some("%m/%d/%Y %I:%M:%S %p"),
                names: &[BEHAVIORS, NEWS],
                log: &["behaviors"],
                catalogue: &["news"],
                ..NONE
            },
            Self::Ebnerd => Layout {
                user: Some("user_id"),
                item: Some("article_ids_inview"),
                time: Some("impression_time"),
                request: Some("impression_id"),
                log: &["behaviors"],
                catalogue: &["articles"],
                ..NONE
            },
            Self::Recbole | Self::Yambda => NONE,
            Self::Kuairand => Layout {
                user: Some("user_id"),
                item: Some("video_id"),
                time: Some("time_ms"),
                action: Some("is_click"),
                value: Some("play_time_ms"),
                ts_format: Some("ms"),
                log: &["log_"],
                catalogue: &["video_features_basic"],
                ..NONE
            },
        }
    }

    /// Why the present configuration cannot express the set, if it cannot.
    pub(super) fn refusal(self) -> Option<&'static str> {
        (self == Self::Yambda).then_some(
            "Yambda counts its times in units of 5 s from an unknown beginning, which no ts_format expresses; write a column \
             of seconds (1600000000 + 5 * timestamp), and run init on that file without a preset",
        )
    }

    /// Gives the answers that the layout has and the caller did not give.
    pub(super) fn complete(self, answers: &mut InitAnswers) {
        let layout = self.layout();
        let given = [
            (&mut answers.user, layout.user),
            (&mut answers.item, layout.item),
            (&mut answers.time, layout.time),
            (&mut answers.request, layout.request),
            (&mut answers.action, layout.action),
            (&mut answers.value, layout.value),
            (&mut answers.ts_format, layout.ts_format),
        ];
        for (answer, published) in given {
            if answer.is_none() {
                *answer = published.map(str::to_owned);
            }
        }
        answers
            .names
            .extend(layout.names.iter().map(|names| names.iter().map(|&name| name.to_owned()).collect()));
    }

    /// Whether the values of a log without a header are not those of the set.
    pub(super) fn contradicts(self, log: &SampledFile) -> bool {
        const ASIN_CHARS: usize = 10;
        let Some(items) = log.column("asin").filter(|_| self == Self::Amazon2014) else { return false };
        let is_asin = |text: &&str| text.len() == ASIN_CHARS;
        let fit = items.texts().filter(is_asin).count();
        !log.input.dialect.names.is_empty() && fit * 100 < items.texts().count() * 95
    }

    /// Whether the set names a file of its log so; none if its files have any name.
    pub(super) fn is_log(self, path: &str) -> Option<bool> {
        begins(path, self.layout().log)
    }

    /// Whether the set names a file of its catalogue so.
    pub(super) fn is_catalogue(self, path: &str) -> Option<bool> {
        begins(path, self.layout().catalogue)
    }
}

fn begins(path: &str, names: &[&str]) -> Option<bool> {
    let name = file_name(path);
    (!names.is_empty()).then(|| names.iter().any(|begin| name.starts_with(begin)))
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// The published layout that a file without a header has, by its name and its records, and the names of its columns.
pub(super) fn names_of(
    path: &str,
    first: &[String],
    rows: &[Vec<String>],
) -> Option<(&'static str, Vec<String>)> {
    let name = file_name(path);
    let all = |at: usize, is: &dyn Fn(&str) -> bool| {
        std::iter::once(first)
            .chain(rows.iter().map(Vec::as_slice))
            .all(|row| row.get(at).is_some_and(|f| is(f)))
    };
    let is_whole = |text: &str| text.parse::<u64>().is_ok();
    let is_rating = |text: &str| text.parse::<f64>().is_ok_and(|rating| (0.0..=5.0).contains(&rating));
    let is_seconds =
        |text: &str| text.parse::<u64>().is_ok_and(|s| (631_152_000..4_102_444_800).contains(&s));
    let is_clock = |text: &str| text.ends_with("AM") || text.ends_with("PM");
    let is_news = |text: &str| text.strip_prefix('N').is_some_and(is_whole);
    let is_shown = |text: &str| {
        text.split(' ')
            .all(|part| part.strip_suffix("-0").or_else(|| part.strip_suffix("-1")).is_some_and(is_news))
    };
    let (layout, names) = match first.len() {
        4 if (name.starts_with("ratings.dat") || name.starts_with("u.data"))
            && all(0, &is_whole)
            && all(1, &is_whole)
            && all(2, &is_rating)
            && all(3, &is_seconds) =>
        {
            ("MovieLens", RATINGS)
        }
        3 if name.starts_with("movies.dat") && all(0, &is_whole) => ("MovieLens", MOVIES),
        5 if name.starts_with("users.dat") && all(0, &is_whole) => ("MovieLens", USERS),
        5 if all(2, &is_clock) && all(4, &is_shown) => ("MIND", BEHAVIORS),
        8 if name.starts_with("news") && all(0, &is_news) => ("MIND", NEWS),
        _ => return None,
    };
    Some((layout, names.iter().map(|&name| name.to_owned()).collect()))
}
