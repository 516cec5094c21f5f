//! Recognizes how delimited text is written: delimiter, quotes, comments, and whether the first line names the columns.

use std::collections::BTreeMap;

use super::vocabulary::{Role, plain};

/// Delimiters that are tried; the blank only where no other fits.
const DELIMITERS: [&str; 6] = [",", "\t", ";", "|", "::", "\u{1}"];
/// Records that are looked at.
const RECORDS_MAX: usize = 2_000;
/// Share of the records that have as many fields as most: others become dead letters, of which a run allows a hundredth.
const SHARE_MIN: f64 = 0.99;

/// How delimited text is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Written {
    pub(super) delimiter: String,
    pub(super) has_quotes: bool,
    pub(super) comment: Option<String>,
    pub(super) header: Header,
    /// Fields of the first record.
    pub(super) first: Vec<String>,
    /// Fields of some further records.
    pub(super) rows: Vec<Vec<String>>,
    pub(super) evidence: String,
}

/// What the first record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Names,
    /// Names with types, as in `user_id:token`.
    Typed,
    /// A record like all others.
    None,
    /// Names or a record: the text does not say.
    Unclear,
}

/// What keeps text from being recognized; the question, and the option that answers it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unrecognized {
    pub(super) option: &'static str,
    pub(super) problem: String,
}

fn unrecognized<T>(option: &'static str, problem: impl Into<String>) -> Result<T, Unrecognized> {
    Err(Unrecognized { option, problem: problem.into() })
}

/// Recognizes how `text`, the beginning of a file, is written. `is_whole` says that it is the whole file; `asked` is the delimiter
/// that the caller names, and `by_name` the one that the file's name stands for.
pub(super) fn recognize(
    text: &str,
    is_whole: bool,
    asked: Option<&str>,
    by_name: Option<&str>,
) -> Result<Written, Unrecognized> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let comment = comment_of(text);
    let scan_as = |delimiter: &str| Scan::best(text, delimiter, comment.as_deref(), is_whole);
    let (scan, evidence) = match asked {
        Some(asked) => {
            let scan = scan_as(asked);
            match scan.width {
                0 | 1 => {
                    return unrecognized("--delimiter", format!("{asked:?} does not occur in most lines"));
                }
                _ => (scan, "as asked for".to_owned()),
            }
        }
        None => {
            choose(DELIMITERS.iter().map(|delimiter| scan_as(delimiter)).collect(), by_name, || scan_as(" "))?
        }
    };
    if scan.share() < SHARE_MIN {
        let problem = format!(
            "{} of {} lines do not have {} fields between {:?}; mixed delimiters, or damage",
            scan.records.len() + scan.malformed - scan.agreeing,
            scan.records.len() + scan.malformed,
            scan.width,
            scan.delimiter
        );
        return unrecognized("--delimiter", problem);
    }
    let Scan { delimiter, has_quotes, mut records, width, .. } = scan;
    let first = records.remove(0);
    records.retain(|record| record.len() == width);
    let header = if first.len() == width { header_of(&first, &records) } else { Header::Unclear };
    Ok(Written { delimiter, has_quotes, comment, header, first, rows: records, evidence })
}

/// The scan whose delimiter the text has, and why.
fn choose(
    scans: Vec<Scan>,
    by_name: Option<&str>,
    blanks: impl FnOnce() -> Scan,
) -> Result<(Scan, String), Unrecognized> {
    let mut fit: Vec<Scan> = scans.into_iter().filter(|scan| scan.width > 1).collect();
    if fit.is_empty() {
        let blanks = blanks();
        if blanks.width > 2 && blanks.share() >= SHARE_MIN {
            fit.push(blanks);
        } else {
            return unrecognized("--delimiter", "no delimiter: its lines have one column");
        }
    }
    // A delimiter whose first line is as wide as the others goes before one that merely occurs.
    let consistent = |scan: &Scan| scan.share() >= SHARE_MIN && scan.first_agrees;
    if fit.iter().any(consistent) {
        fit.retain(consistent);
    }
    fit.sort_by(|a, b| {
        let named = |scan: &Scan| Some(scan.delimiter.as_str()) == by_name;
        named(b).cmp(&named(a)).then(b.width.cmp(&a.width)).then(b.share().total_cmp(&a.share()))
    });
    let best = fit.remove(0);
    if let Some(other) = fit.into_iter().find(|other| best.is_rivalled_by(other)) {
        let problem = format!(
            "{:?} cuts its lines into {} fields, and {:?} into {}",
            best.delimiter, best.width, other.delimiter, other.width
        );
        return unrecognized("--delimiter", problem);
    }
    let evidence = format!("{} of {} lines have {} fields", best.agreeing, best.records.len(), best.width);
    Ok((best, evidence))
}

/// The beginning of lines before the data that are comments.
fn comment_of(text: &str) -> Option<String> {
    ["#", "%"].into_iter().find(|mark| text.starts_with(mark)).map(str::to_owned)
}

/// Records of a text, cut by one delimiter.
struct Scan {
    delimiter: String,
    has_quotes: bool,
    records: Vec<Vec<String>>,
    /// Records whose quotes do not pair up.
    malformed: usize,
    /// Number of fields that most records have.
    width: usize,
    /// Records with that many.
    agreeing: usize,
    first_agrees: bool,
}

impl Scan {
    /// The scan with quotes, unless more records agree without.
    fn best(text: &str, delimiter: &str, comment: Option<&str>, is_whole: bool) -> Self {
        let [quoted, plain] =
            [true, false].map(|quotes| Self::new(text, delimiter, quotes, comment, is_whole));
        let is_better = plain.share() > quoted.share() && plain.width >= quoted.width.min(2);
        if is_better { plain } else { quoted }
    }

    fn new(text: &str, delimiter: &str, has_quotes: bool, comment: Option<&str>, is_whole: bool) -> Self {
        let (mut records, mut malformed) = (Vec::new(), 0);
        let mut rest = text;
        while !rest.is_empty() && records.len() < RECORDS_MAX {
            let line_end = rest.find(['\n', '\r']);
            let line = &rest[..line_end.unwrap_or(rest.len())];
            if line.is_empty() || comment.is_some_and(|comment| line.starts_with(comment)) {
                rest = rest.get(line.len() + 1..).unwrap_or("");
                continue;
            }
            match record(rest, delimiter, has_quotes) {
                // The text ends inside a record.
                Some((_, end)) if end == rest.len() && !is_whole => break,
                Some((fields, end)) => {
                    records.push(fields);
                    rest = rest.get(end + 1..).unwrap_or("");
                }
                None if line_end.is_none() && !is_whole => break,
                None => {
                    malformed += 1;
                    rest = rest.get(line.len() + 1..).unwrap_or("");
                }
            }
        }
        let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
        records.iter().for_each(|record| *widths.entry(record.len()).or_default() += 1);
        let most = widths.into_iter().max_by_key(|(width, n)| (*n, *width));
        let (width, agreeing) = most.unwrap_or((0, 0));
        let first_agrees = records.first().is_some_and(|first| first.len() == width);
        Self {
            delimiter: delimiter.to_owned(),
            has_quotes,
            records,
            malformed,
            width,
            agreeing,
            first_agrees,
        }
    }

    fn share(&self) -> f64 {
        self.agreeing as f64 / (self.records.len() + self.malformed).max(1) as f64
    }

    /// Whether the other delimiter might be meant: it is not just inside one of the fields.
    fn is_rivalled_by(&self, other: &Self) -> bool {
        let inside = |record: &Vec<String>| {
            record.iter().filter(|field| field.contains(&other.delimiter)).count() <= 1
        };
        let agrees = other.share() >= SHARE_MIN && other.first_agrees;
        agrees && (self.width <= other.width || !self.records.iter().all(inside))
    }
}

/// The fields of the record at the beginning of `text` and the position of its line end; none if its quotes do not pair up.
fn record(text: &str, delimiter: &str, has_quotes: bool) -> Option<(Vec<String>, usize)> {
    let (mut fields, mut at) = (Vec::new(), 0);
    loop {
        let rest = &text[at..];
        let mut field = String::new();
        if has_quotes && rest.starts_with('"') {
            let mut inside = &rest[1..];
            loop {
                let end = inside.find('"')?;
                field.push_str(&inside[..end]);
                inside = &inside[end + 1..];
                match inside.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        inside = more;
                    }
                    None => break,
                }
            }
            at = text.len() - inside.len();
            let ends = inside.is_empty() || inside.starts_with(['\n', '\r']) || inside.starts_with(delimiter);
            if !ends {
                return None;
            }
        } else {
            let line = &rest[..rest.find(['\n', '\r']).unwrap_or(rest.len())];
            let end = line.find(delimiter).unwrap_or(line.len());
            field.push_str(&line[..end]);
            at += end;
        }
        fields.push(field);
        match text[at..].strip_prefix(delimiter) {
            Some(more) => at = text.len() - more.len(),
            None => return Some((fields, at)),
        }
    }
}

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Empty,
    Number,
    /// Text that begins with a digit and has few letters: a date, a time, a version.
    Figures,
    Word,
}

fn look(text: &str) -> Look {
    let text = text.trim();
    if text.is_empty() {
        Look::Empty
    } else if text.parse::<f64>().is_ok_and(f64::is_finite) {
        Look::Number
    } else if text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().filter(|c| c.is_alphabetic()).count() <= 4
    {
        Look::Figures
    } else {
        Look::Word
    }
}

/// Types of RecBole's typed headers.
const TYPES: [&str; 4] = ["token", "token_seq", "float", "float_seq"];

/// The name and the type of a field of a typed header.
pub(super) fn typed(field: &str) -> Option<(&str, &str)> {
    field.rsplit_once(':').filter(|(name, kind)| !name.is_empty() && TYPES.contains(kind))
}

/// What the first record is, judged by the others.
fn header_of(first: &[String], rows: &[Vec<String>]) -> Header {
    if first.iter().all(|field| typed(field).is_some()) {
        return Header::Typed;
    }
    // Data frames without names write their columns' numbers.
    if first.len() > 1 && first.iter().enumerate().all(|(at, field)| field.trim() == at.to_string()) {
        return Header::Names;
    }
    let looks: Vec<Look> = first.iter().map(|field| look(field)).collect();
    if looks.iter().any(|look| matches!(look, Look::Number | Look::Figures)) {
        return Header::None;
    }
    let column = |at: usize| rows.iter().filter_map(move |row| row.get(at));
    let typical = |at: usize| {
        let mut looks: BTreeMap<u8, usize> = BTreeMap::new();
        column(at).for_each(|field| *looks.entry(look(field) as u8).or_default() += 1);
        looks.into_iter().max_by_key(|(_, n)| *n).map(|(look, _)| look)
    };
    let differs = |at: usize| {
        looks[at] == Look::Word
            && typical(at).is_some_and(|t| t == Look::Number as u8 || t == Look::Figures as u8)
    };
    if (0..first.len()).any(differs) {
        return Header::Names;
    }
    let known = first.iter().filter(|field| is_known(field)).count();
    if known >= 2 {
        return Header::Names;
    }
    // A value that occurs again in its column, or is built like the others there, is a value.
    let repeats = |at: usize| looks[at] == Look::Word && column(at).any(|field| *field == first[at]);
    let alike = |at: usize| {
        let shape = shape(&first[at]);
        let n = column(at).filter(|field| self::shape(field) == shape).count();
        shape.contains('9') && n * 2 > rows.len()
    };
    if !rows.is_empty() && (0..first.len()).any(|at| repeats(at) || alike(at)) {
        return Header::None;
    }
    Header::Unclear
}

/// Whether a name says what its column is.
fn is_known(name: &str) -> bool {
    let roles = [Role::User, Role::Item, Role::Time, Role::Value, Role::Action, Role::Title, Role::Request];
    roles.iter().any(|role| role.rank(name).is_some())
        || super::vocabulary::GROUPS.contains(&plain(name).as_str())
        || super::vocabulary::FLAGS.contains(&plain(name).as_str())
}

/// Text with `a` for each run of letters and `9` for each run of digits.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in text.chars() {
        let c = match c {
            c if c.is_ascii_digit() => '9',
            c if c.is_alphabetic() => 'a',
            c => c,
        };
        if !shape.ends_with(c) {
            shape.push(c);
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<(String, bool, Header), String> {
        recognize(text, true, None, None)
            .map(|written| (written.delimiter, written.has_quotes, written.header))
            .map_err(|unrecognized| unrecognized.problem)
    }

    #[test]
    fn delimiters_and_headers_are_recognized() {
        for (text, delimiter, header) in [
            ("userId,movieId,rating\n1,2,3.5\n1,3,4\n", ",", Header::Names),
            ("1::1193::5::978300760\n1::661::3::978302109\n", "::", Header::None),
            ("196\t242\t3\t881250949\n186\t302\t3\t891717742\n", "\t", Header::None),
            ("user_id:token\titem_id:token\n1\t2\n", "\t", Header::Typed),
            ("user;item;price\nu1;i1;4,5\nu2;i2;3,5\n", ";", Header::Names),
            ("movieId,title,genres\n1,\"Kid, The\",A|B\n2,Up,C\n", ",", Header::Names),
            (
                "N1\tlifestyle\troyals\tA \"title\nN2\tlifestyle\troyals\t\"Quote\" first\n",
                "\t",
                Header::None,
            ),
            ("u i t\n1 2 3\n1 3 4\n", " ", Header::Names),
            ("0,1,2\nu1,i1,5\nu2,i2,6\n", ",", Header::Names),
            ("a,\"b\nc\",1\n\"d\",e,2\n", ",", Header::None),
        ] {
            let (found, _, at) = written(text).unwrap_or_else(|problem| panic!("{text:?}: {problem}"));
            assert_eq!((found.as_str(), at), (delimiter, header), "{text:?}");
        }
        assert!(
            !written("N1\tx\t\"Q\" a\nN2\ty\t\"R\nN3\tz\tplain\n").unwrap().1,
            "stray quotes are characters"
        );
    }

    #[test]
    fn what_is_not_clear_is_asked() {
        assert!(written("alpha\nbeta\n").unwrap_err().contains("one column"));
        assert!(written("a,b;c\n1,2;3\n4,5;6\n").unwrap_err().contains("cuts its lines"));
        assert!(written("a,b,c\n1,2,3\n1;2;3\n4,5,6\n1,2\n").unwrap_err().contains("do not have 3 fields"));
        assert_eq!(written("alpha,beta\ngamma,delta\n").unwrap().2, Header::Unclear);
    }
}
