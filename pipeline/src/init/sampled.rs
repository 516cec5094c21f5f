//! Reads a sample of a file whose format is not known, and describes its columns.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use schemas::config::{Dialect, Format};
use schemas::memory::MemorySize;

use super::text::{self, Header, Unrecognized, Written};
use super::{InitAnswers, InitQuestion};
use crate::records::{Fields, Need, Rejection, Value, Wanted};
use crate::source::{
    Accepted, At, ByteCount, InputFile, ReadOptions, SampleLimits, SourceError, Unpacking, Visit, one_file,
    open, parquet_columns, sample,
};

/// Bytes of text that decide the dialect.
const HEAD_BYTES: usize = 1 << 20;
/// Records that describe the columns.
const RECORDS_MAX: usize = 10_000;
/// Objects whose keys are the columns.
const OBJECTS_MAX: usize = 1_000;

/// A file as far as it was looked at.
#[derive(Debug)]
pub(super) struct SampledFile {
    /// As given.
    pub(super) path: String,
    pub(super) input: InputFile,
    /// The format and the dialect that the file's name stands for.
    pub(super) named_format: Option<Format>,
    pub(super) named_dialect: Dialect,
    pub(super) columns: Vec<ColumnProfile>,
    pub(super) rows: usize,
    pub(super) is_whole: bool,
    /// Whether columns have names, from the file or from `--names`.
    pub(super) is_named: bool,
    /// Names that several columns have.
    pub(super) duplicates: Vec<String>,
    /// Estimated number of records.
    pub(super) rows_estimate: u64,
    pub(super) evidence: Vec<String>,
}

/// A column of the sample.
#[derive(Debug, Clone)]
pub(super) struct ColumnProfile {
    pub(super) name: String,
    /// Its type in a typed header.
    pub(super) kind: Option<String>,
    pub(super) values: Vec<Value<'static>>,
    pub(super) facts: Facts,
}

/// What the values of a column are.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// Values that are there.
    pub(super) filled: usize,
    pub(super) distinct: usize,
    pub(super) numbers: usize,
    /// Whole numbers, also as text.
    pub(super) wholes: usize,
    pub(super) lists: usize,
    pub(super) instants: usize,
    pub(super) booleans: usize,
    /// Values that are none of these and no text.
    pub(super) others: usize,
    /// Most characters of a text.
    pub(super) longest: usize,
    pub(super) example: Option<String>,
}

impl ColumnProfile {
    pub(super) fn new(name: String, kind: Option<String>, values: Vec<Value<'static>>) -> Self {
        let mut profile = Self { name, kind, values, facts: Facts::default() };
        profile.count();
        profile
    }

    /// Counts the facts again.
    pub(super) fn count(&mut self) {
        let mut facts = Facts::default();
        let mut distinct = BTreeSet::new();
        for value in self.values.iter().filter(|value| is_filled(value)) {
            facts.filled += 1;
            match value {
                Value::Text(text) => {
                    let text = text.trim();
                    facts.wholes += usize::from(text.parse::<i64>().is_ok());
                    facts.numbers += usize::from(text.parse::<f64>().is_ok_and(f64::is_finite));
                    facts.longest = facts.longest.max(text.chars().count());
                }
                Value::Int(_) => {
                    facts.wholes += 1;
                    facts.numbers += 1;
                }
                Value::Float(number) => {
                    facts.wholes += usize::from(number.fract() == 0.0);
                    facts.numbers += 1;
                }
                Value::Single(number) => {
                    facts.wholes += usize::from(number.fract() == 0.0);
                    facts.numbers += 1;
                }
                Value::Decimal(_) => facts.numbers += 1,
                Value::List(_) => facts.lists += 1,
                Value::Instant(_) | Value::OutOfRange => facts.instants += 1,
                Value::Bool(_) => facts.booleans += 1,
                _ => facts.others += 1,
            }
            let shown = value.shown();
            facts.example.get_or_insert_with(|| shown.clone());
            distinct.insert(shown);
        }
        facts.distinct = distinct.len();
        self.facts = facts;
    }

    /// Whether the column may hold ids: text or whole numbers in nearly all rows.
    pub(super) fn may_be_id(&self) -> bool {
        let Facts { filled, numbers, wholes, lists, instants, booleans, others, longest, .. } = self.facts;
        let is_fraction = numbers == filled && wholes < filled;
        filled > 0
            && filled * 100 >= self.values.len() * 99
            && lists + instants + booleans + others == 0
            && !is_fraction
            && longest <= 256
    }

    pub(super) fn is_numeric(&self) -> bool {
        self.facts.filled > 0 && self.facts.numbers == self.facts.filled
    }

    pub(super) fn is_list(&self) -> bool {
        self.facts.filled > 0 && self.facts.lists == self.facts.filled
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.values.iter().filter_map(|value| match value {
            Value::Text(text) if !text.trim().is_empty() => Some(text.trim()),
            _ => None,
        })
    }

    /// The column in words, for a question.
    pub(super) fn described(&self) -> String {
        let Facts { filled, distinct, ref example, .. } = self.facts;
        let example = example.as_deref().map(crate::records::shortened).unwrap_or_default();
        match filled {
            0 => format!("`{}` (empty)", self.name),
            _ => format!("`{}` ({distinct} different in {filled}, such as `{example}`)", self.name),
        }
    }
}

/// Whether a value is there.
pub(super) fn is_filled(value: &Value<'_>) -> bool {
    match value {
        Value::Absent | Value::Null => false,
        Value::Text(text) => !text.trim().is_empty(),
        Value::Float(number) => !number.is_nan(),
        Value::Single(number) => !number.is_nan(),
        Value::List(elements) => !elements.is_empty(),
        _ => true,
    }
}

impl SampledFile {
    pub(super) fn column(&self, name: &str) -> Option<&ColumnProfile> {
        self.columns.iter().find(|column| column.name == name)
    }
}

fn question(path: &str, option: &'static str, problem: impl std::fmt::Display) -> InitQuestion {
    InitQuestion { option: option.into(), question: format!("{path}: {problem}") }
}

/// Settings of the reading, as a run has them without a configuration.
fn reading() -> ReadOptions {
    ReadOptions {
        max_record_bytes: 1 << 20,
        block_bytes: 256 << 10,
        unpacking: Unpacking {
            limit: MemorySize::bytes(16 << 30),
            directory: terminal::scratch::directory(),
        },
        check_times: false,
    }
}

/// Looks at the beginning of the file at `path`.
///
/// # Errors
///
/// The question that has to be answered before the file can be read.
pub(super) fn look_at(path: &str, answers: &InitAnswers) -> Result<SampledFile, InitQuestion> {
    let fail = |error: SourceError| question(path, "PATH", terminal::with_causes(&error).replace(path, ""));
    if !Path::new(path).is_file() {
        let found = if Path::new(path).exists() { "is not a file" } else { "no such file" };
        return Err(question(path, "PATH", found));
    }
    let one = |format: Option<Format>| one_file(Path::new(path), format, &Dialect::default()).map_err(fail);
    let by_name = one(None).ok();
    let mut input = match &by_name {
        Some(input) => input.clone(),
        None => one(Some(Format::Csv))?,
    };
    let (named_format, named_dialect) = (by_name.as_ref().map(|input| input.format), input.dialect.clone());
    let mut head = Vec::new();
    let io = |error: std::io::Error| question(path, "PATH", error);
    if input.bytes == 0 {
        return Err(question(path, "PATH", "is empty"));
    }
    File::open(&input.source).and_then(|file| file.take(4).read_to_end(&mut head)).map_err(io)?;
    if head == b"PAR1" {
        input.format = Format::Parquet;
    } else {
        input.format = Format::Csv;
        head.clear();
        let opened = open(&input, &ByteCount::default()).map_err(fail)?;
        opened.take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(io)?;
        if head.starts_with(b"PAR1") {
            input.format = Format::Parquet;
        }
    }
    let file = SampledFile {
        path: path.to_owned(),
        input,
        named_format,
        named_dialect,
        columns: Vec::new(),
        rows: 0,
        is_whole: false,
        is_named: true,
        duplicates: Vec::new(),
        rows_estimate: 0,
        evidence: Vec::new(),
    };
    match file.input.format {
        Format::Parquet => parquet(file),
        _ => text_file(file, &head, answers),
    }
}

fn parquet(mut file: SampledFile) -> Result<SampledFile, InitQuestion> {
    let fail = |error: SourceError| {
        question(&file.path, "PATH", terminal::with_causes(&error).replace(&file.input.source, ""))
    };
    let (columns, rows) = parquet_columns(&file.input, &reading()).map_err(fail)?;
    let unreadable: Vec<String> = columns
        .iter()
        .filter(|column| !column.is_readable)
        .map(|column| format!("`{}`", column.name))
        .collect();
    let names =
        columns.into_iter().filter(|column| column.is_readable).map(|column| (column.name, None)).collect();
    file.evidence.push("Parquet by its first bytes".into());
    if !unreadable.is_empty() {
        file.evidence.push(format!("no column for events: {}", unreadable.join(", ")));
    }
    fill(&mut file, names)?;
    file.rows_estimate = rows;
    Ok(file)
}

fn text_file(mut file: SampledFile, head: &[u8], answers: &InitAnswers) -> Result<SampledFile, InitQuestion> {
    let ask = |option, problem: &str| Err(question(&file.path, option, problem));
    let is_whole = head.len() < HEAD_BYTES;
    if head.is_empty() {
        return ask("PATH", "is empty");
    }
    if head.contains(&0) {
        return ask(
            "PATH",
            "is binary (it has zero bytes): no CSV, JSON Lines or Parquet; if it is UTF-16, convert it to UTF-8",
        );
    }
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A character that the end of the sample cuts.
        Err(error) if !is_whole && error.valid_up_to() + 4 > head.len() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => "",
    };
    let lossy = String::from_utf8_lossy(head);
    let text = if valid.is_empty() { &*lossy } else { valid };
    if valid.is_empty() {
        let lines = head.split(|&byte| byte == b'\n');
        let (mut all, mut bad) = (0, 0);
        lines.for_each(|line| {
            all += 1;
            bad += usize::from(std::str::from_utf8(line).is_err());
        });
        if bad * 100 > all {
            let problem = format!(
                "{bad} of {all} lines are not UTF-8; if it is Latin-1: iconv -f latin1 -t utf-8 FILE > FILE.utf8"
            );
            return Err(question(&file.path, "PATH", problem));
        }
        file.evidence.push(format!("{bad} of {all} lines are not UTF-8: they become dead letters"));
    }
    if text.chars().filter(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{1}')).count() * 100
        > text.len()
    {
        return ask("PATH", "is binary: no CSV, JSON Lines or Parquet");
    }
    let trimmed = text.trim_start_matches('\u{feff}').trim_start();
    if trimmed.is_empty() {
        return ask("PATH", "has no record");
    }
    let line = trimmed.lines().next().unwrap_or_default();
    if !trimmed.contains('\n') && !is_whole {
        return ask("PATH", "its first line is longer than 1 MiB, the longest record");
    }
    let may_be_json = matches!(line.as_bytes().first(), Some(b'{' | b'['));
    let names = if may_be_json && answers.delimiter.is_none() {
        if line.starts_with('[')
            && (line.trim_end() == "[" || line.trim_start_matches('[').trim_start().starts_with('{'))
        {
            return ask("PATH", "is one JSON array; write one object a line");
        }
        let Some(names) = keys(trimmed) else {
            return ask(
                "PATH",
                "begins like JSON, and its first line is no JSON object; JSON Lines has one whole object a line (a Python \
                 dictionary is none)",
            );
        };
        file.input.format = Format::Jsonl;
        file.evidence.push("JSON Lines: its lines are JSON objects".into());
        names.into_iter().map(|name| (name, None)).collect()
    } else {
        delimited(&mut file, text, is_whole, answers)?
    };
    let lines = text.bytes().filter(|&byte| byte == b'\n').count().max(1) as u64;
    let per_line = (head.len() as u64 / lines).max(1);
    let unpacked = match file.input.packing {
        crate::source::Packing::Plain => file.input.bytes,
        _ => file.input.bytes * 4,
    };
    fill(&mut file, names)?;
    file.rows_estimate =
        if file.is_whole { file.rows as u64 } else { (unpacked / per_line).max(file.rows as u64) };
    Ok(file)
}

/// The keys of the objects in the first lines, and those of the objects inside; none if the first line is no object.
fn keys(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut add = |name: String| {
        if !names.contains(&name) {
            names.push(name);
        }
    };
    for (at, line) in text.lines().take(OBJECTS_MAX).enumerate() {
        match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line) {
            Ok(object) => {
                for (key, value) in object {
                    match value {
                        serde_json::Value::Object(inside) => {
                            inside.into_iter().for_each(|(field, _)| add(format!("{key}.{field}")));
                        }
                        _ => add(key),
                    }
                }
            }
            Err(_) if at == 0 => return None,
            Err(_) => {}
        }
    }
    Some(names)
}

/// Recognizes the dialect and returns the columns' names and types.
fn delimited(
    file: &mut SampledFile,
    text: &str,
    is_whole: bool,
    answers: &InitAnswers,
) -> Result<Vec<(String, Option<String>)>, InitQuestion> {
    let by_name = file.named_dialect.delimiter.clone();
    let recognize = |asked: Option<&str>| text::recognize(text, is_whole, asked, by_name.as_deref());
    // The delimiter of one file need not be that of the others.
    let asked = answers.delimiter.as_deref();
    let written = match recognize(asked) {
        Err(_) if asked.is_some() => recognize(None),
        found => found,
    };
    let ask = |Unrecognized { option, problem }: Unrecognized| question(&file.path, option, problem);
    let Written { delimiter, has_quotes, comment, mut header, first, rows, evidence } =
        written.map_err(ask)?;
    file.input.format = Format::Csv;
    let dialect = &mut file.input.dialect;
    dialect.delimiter = Some(delimiter.clone());
    dialect.comment = comment;
    if !has_quotes {
        dialect.quote = Some(String::new());
    }
    let mut found = vec![format!("delimited by {}: {evidence}", called(&delimiter))];
    let width = first.len();
    let named = answers.names.iter().find(|names| names.len() == width);
    if named.is_some() && matches!(header, Header::Unclear | Header::None) {
        header = Header::None;
    } else if answers.has_header && header == Header::Unclear {
        header = Header::Names;
    }
    let first_of = |count: usize| first.iter().take(count).map(|field| crate::records::shortened(field));
    let names = match header {
        Header::Typed => {
            dialect.typed_header = Some(true);
            found.push("its header has types (RecBole)".into());
            first
                .iter()
                .map(|field| match text::typed(field) {
                    Some((name, kind)) => (name.to_owned(), Some(kind.to_owned())),
                    None => (field.clone(), None),
                })
                .collect()
        }
        Header::Names => {
            dialect.typed_header = dialect.typed_header.map(|_| false);
            found.push("its first line names the columns".into());
            first.iter().map(|field| (field.clone(), None)).collect()
        }
        Header::None => {
            dialect.typed_header = None;
            let names = match (named, super::layouts::names_of(&file.path, &first, &rows)) {
                (Some(names), _) => {
                    found.push("no header; columns named as asked for".into());
                    names.clone()
                }
                (None, Some((layout, names))) => {
                    found.push(format!("no header; columns as in {layout}"));
                    names
                }
                (None, None) => {
                    file.is_named = false;
                    found.push("no header".into());
                    (1..=width).map(|at| format!("column_{at}")).collect()
                }
            };
            dialect.names.clone_from(&names);
            names.into_iter().map(|name| (name, None)).collect()
        }
        Header::Unclear => {
            let begins: Vec<String> = first_of(6).collect();
            return Err(InitQuestion {
                option: "--names".into(),
                question: format!(
                    "{}: does the first line ({}) name the columns? If so: --header; if not, name them: --names a,b,…",
                    file.path,
                    begins.join(", ")
                ),
            });
        }
    };
    file.evidence.extend(found);
    Ok(names)
}

/// What a delimiter is called.
pub(super) fn called(delimiter: &str) -> String {
    match delimiter {
        "\t" => "tabs".into(),
        "," => "commas".into(),
        " " => "blanks".into(),
        other => format!("`{}`", other.escape_debug()),
    }
}

/// Keeps the values of the first records.
struct Keep {
    columns: Vec<Vec<Value<'static>>>,
}

impl Visit for Keep {
    type Error = SourceError;

    fn record(&mut self, record: &impl Fields, _at: At) -> Result<Result<Accepted, Rejection>, SourceError> {
        if self.columns.first().is_none_or(|values| values.len() < RECORDS_MAX) {
            for (slot, values) in self.columns.iter_mut().enumerate() {
                values.push(record.value(slot).into_owned());
            }
        }
        Ok(Ok(Accepted::New))
    }
}

/// Reads the columns of the first records, as a run reads them.
fn fill(file: &mut SampledFile, names: Vec<(String, Option<String>)>) -> Result<(), InitQuestion> {
    let mut unique: Vec<(String, Option<String>)> = Vec::new();
    for (name, kind) in names {
        if name.trim().is_empty() {
            continue;
        }
        match unique.iter().any(|(other, _)| *other == name) {
            true => file.duplicates.push(name),
            false => unique.push((name, kind)),
        }
    }
    unique.retain(|(name, _)| !file.duplicates.contains(name));
    let wanted = unique.iter().map(|(name, _)| Wanted {
        key: String::new(),
        column: name.clone(),
        need: Need::IfPresent,
    });
    let wanted: Vec<Wanted> = wanted.collect();
    let mut keep = Keep { columns: vec![Vec::new(); wanted.len()] };
    let limits = SampleLimits { records: RECORDS_MAX as u64, bytes: 4 << 20 };
    let sampled = sample(&file.input, &wanted, None, &reading(), limits, &mut keep).map_err(|error| {
        question(&file.path, "PATH", terminal::with_causes(&error).replace(&file.input.source, ""))
    })?;
    file.rows = keep.columns.first().map_or(0, Vec::len);
    file.is_whole = sampled.is_whole && sampled.counts.read <= RECORDS_MAX as u64;
    if file.rows == 0 {
        let problem = match sampled.rejected.first() {
            Some((_, rejection, _)) => format!("has no record that can be read: {}", rejection.message),
            None => "has a header and no record".into(),
        };
        return Err(question(&file.path, "PATH", problem));
    }
    if sampled.counts.dead_letters * 100 > sampled.counts.read {
        let (position, rejection, _) = &sampled.rejected[0];
        let problem = format!(
            "{} of {} records cannot be read, more than a run allows; the first, at {position}: {}",
            sampled.counts.dead_letters, sampled.counts.read, rejection.message
        );
        return Err(question(&file.path, "PATH", problem));
    }
    if sampled.counts.dead_letters > 0 {
        let n = sampled.counts.dead_letters;
        file.evidence.push(format!("{n} of {} records cannot be read: dead letters", sampled.counts.read));
    }
    let columns = unique.into_iter().zip(keep.columns);
    file.columns = columns.map(|((name, kind), values)| ColumnProfile::new(name, kind, values)).collect();
    Ok(())
}
