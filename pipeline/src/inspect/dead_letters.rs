//! Rejected records: `dead_letters`.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use serde::Serialize;
use store::Snapshot;
use terminal::shown::steers;

use super::error::InspectError;

/// Characters shown of a rejected record.
const SHOWN: usize = 100;

/// Rejected records by reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeadLettersContents {
    /// The most frequent first.
    pub reasons: Vec<ReasonCount>,
}

/// The rejected records of one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReasonCount {
    /// The code.
    pub reason: String,
    /// Number of rejected records.
    pub count: u64,
    /// The source of the first of them, in order of source and position.
    pub source: String,
    /// Its position there.
    pub position: i64,
    /// The message of its rejection.
    pub message: String,
    /// The beginning of its bytes, as text.
    pub value: String,
}

pub(super) async fn read(snapshot: &Snapshot) -> Result<DeadLettersContents, InspectError> {
    let mut reasons: BTreeMap<String, ReasonCount> = BTreeMap::new();
    for shard in snapshot.shards() {
        let columns = ["reason", "source", "position", "message", "value"];
        for batch in snapshot.read_shard(shard, &columns).await? {
            let text = |column: usize, row| batch.column(column).as_string::<i32>().value(row).to_owned();
            let positions = batch.column(2).as_primitive::<Int64Type>();
            let values = batch.column(4).as_binary::<i32>();
            for row in 0..batch.num_rows() {
                let found = ReasonCount {
                    reason: text(0, row),
                    count: 1,
                    source: text(1, row),
                    position: positions.value(row),
                    message: text(3, row),
                    value: shown(values.value(row)),
                };
                match reasons.get_mut(&found.reason) {
                    None => _ = reasons.insert(found.reason.clone(), found),
                    Some(first) => {
                        let count = first.count + 1;
                        if (&found.source, found.position) < (&first.source, first.position) {
                            *first = found;
                        }
                        first.count = count;
                    }
                }
            }
        }
    }
    let mut reasons: Vec<ReasonCount> = reasons.into_values().collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
    Ok(DeadLettersContents { reasons })
}

/// The beginning of a record on one line; control characters and bytes that are not UTF-8 escaped.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]);
    let mut shown: String = text.chars().take(SHOWN).flat_map(escaped).collect();
    if text.chars().count() > SHOWN || bytes.len() > 4 * SHOWN {
        shown.push('…');
    }
    shown
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let steers = steers(c);
    c.escape_default().filter(move |_| steers).chain((!steers).then_some(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_shown_on_one_line() {
        assert_eq!(shown(b"1,\x00\n\xff,\"x\""), "1,\\u{0}\\n\u{fffd},\"x\"");
        assert_eq!(shown(&[b'x'; 200]), format!("{}…", "x".repeat(100)));
    }
}
