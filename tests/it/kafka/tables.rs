//! Rows of the tables that came from a topic.

use std::path::Path;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow::util::display::array_value_to_string;
use schemas::tables::{DEAD_LETTERS, EVENTS};
use store::Root;

use super::tally::{Fate, Place, Sent, Stored, differences};

fn read(root: &Path, table: &str, columns: &[&str]) -> Vec<RecordBatch> {
    let root = Root::new(root.to_str().unwrap()).unwrap();
    let read = async {
        match root.snapshot(table).await.unwrap() {
            Some(snapshot) => snapshot.read(columns).await.unwrap(),
            None => Vec::new(),
        }
    };
    tokio::runtime::Runtime::new().unwrap().block_on(read)
}

/// Returns the rows of batches whose first two columns are `source` and `position`.
fn rows(batches: &[RecordBatch], fate: impl Fn(&RecordBatch, usize) -> Fate) -> Vec<(Place, Fate)> {
    let mut rows = Vec::new();
    for batch in batches {
        let positions = batch.column(1).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let source = array_value_to_string(batch.column(0), row).unwrap();
            rows.push(((source, positions.value(row)), fate(batch, row)));
        }
    }
    rows
}

/// Returns the rows of `events`.
pub(crate) fn events(root: &Path) -> Vec<(Place, Fate)> {
    let text = |batch: &RecordBatch, column, row| array_value_to_string(batch.column(column), row).unwrap();
    rows(&read(root, EVENTS, &["source", "position", "event_id", "user_id"]), |batch, row| {
        Fate::Event(text(batch, 2, row), text(batch, 3, row))
    })
}

/// Returns the rows of `dead_letters`.
pub(crate) fn dead_letters(root: &Path) -> Vec<(Place, Fate)> {
    rows(&read(root, DEAD_LETTERS, &["source", "position", "key"]), |batch, row| {
        let keys = batch.column(2).as_binary::<i32>();
        let key = if keys.is_null(row) { b"(none)" } else { keys.value(row) };
        Fate::DeadLetter(String::from_utf8_lossy(key).into_owned())
    })
}

/// Asserts that the tables hold what [`differences`] requires.
pub(crate) fn check(root: &Path, topic: &str, sent: &[Sent]) {
    let mut stored = Stored::new();
    for (at, fate) in events(root).into_iter().chain(dead_letters(root)) {
        stored.entry(at).or_default().push(fate);
    }
    let wrong = differences(topic, sent, stored);
    let some = wrong.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {} messages, such as\n{some}", wrong.len(), sent.len());
}

/// A row of `dead_letters`, without the message for people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeadLetter {
    pub(crate) source: String,
    pub(crate) position: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Vec<u8>,
    pub(crate) reason: String,
}

/// Returns all rows of `dead_letters`, by source and position.
pub(crate) fn letters(root: &Path) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    for batch in read(root, DEAD_LETTERS, &["source", "position", "key", "value", "reason"]) {
        let bytes = |column: usize| batch.column(column).as_binary::<i32>().iter();
        let texts = |column: usize| batch.column(column).as_string::<i32>().iter().flatten();
        let positions = batch.column(1).as_primitive::<Int64Type>().values();
        let rows = texts(0).zip(positions).zip(bytes(2).zip(bytes(3).flatten())).zip(texts(4));
        letters.extend(rows.map(|(((source, &position), (key, value)), reason)| DeadLetter {
            source: source.into(),
            position,
            key: key.map(<[u8]>::to_vec),
            value: value.to_vec(),
            reason: reason.into(),
        }));
    }
    letters.sort();
    letters
}

/// Returns these columns of all rows of a table, as text.
pub(crate) fn rows_as_text(root: &Path, table: &str, columns: &[&str]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for batch in read(root, table, columns) {
        let text = |row, column| array_value_to_string(batch.column(column), row).unwrap();
        rows.extend((0..batch.num_rows()).map(|row| (0..columns.len()).map(|c| text(row, c)).collect()));
    }
    rows
}
