//! Compares the tables with what was sent to a topic.

use std::collections::{BTreeMap, HashMap};

use super::Position;

/// The fate of a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// It becomes the event with this id and user.
    Event(String, String),
    /// It is rejected; the key is kept.
    DeadLetter(String),
}

/// A sent message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) position: Position,
    pub(crate) fate: Fate,
}

/// (`source`, `position`) of a row.
pub(crate) type Place = (String, i64);
/// Place → the fates of its rows.
pub(crate) type Stored = BTreeMap<Place, Vec<Fate>>;

/// Returns all mistakes of tables that together hold `stored`: they must hold each message of `sent` exactly once, of messages
/// with one id the first, and nothing else.
pub(crate) fn differences(topic: &str, sent: &[Sent], mut stored: Stored) -> Vec<String> {
    // Messages with one id are in one partition.
    let mut first: HashMap<&str, Position> = HashMap::new();
    for Sent { position, fate } in sent {
        if let Fate::Event(id, _) = fate {
            let first = first.entry(id).or_insert(*position);
            *first = (*first).min(*position);
        }
    }
    let mut wrong = Vec::new();
    for Sent { position, fate } in sent {
        let found = stored.remove(&(format!("{topic}-{}", position.0), position.1)).unwrap_or_default();
        let again = matches!(fate, Fate::Event(id, _) if first[id.as_str()] != *position);
        let expected = if again { &[][..] } else { std::slice::from_ref(fate) };
        if found != expected {
            wrong.push(format!("{position:?} should be {expected:?}, is {found:?}"));
        }
    }
    wrong.extend(stored.into_iter().map(|(at, fates)| format!("{at:?} was never sent, is {fates:?}")));
    wrong
}

#[test]
fn a_lost_a_doubled_and_a_foreign_row_are_found() {
    let event = |id: &str| Fate::Event(id.into(), "u".into());
    let sent = [
        Sent { position: (0, 0), fate: event("a") },
        Sent { position: (0, 1), fate: Fate::DeadLetter("u".into()) },
        Sent { position: (0, 2), fate: event("a") },
        Sent { position: (1, 0), fate: event("b") },
    ];
    let at = |partition: i32, offset| (format!("t-{partition}"), offset);
    let right = Stored::from([
        (at(0, 0), vec![event("a")]),
        (at(0, 1), vec![Fate::DeadLetter("u".into())]),
        (at(1, 0), vec![event("b")]),
    ]);
    let differ = |change: &dyn Fn(&mut Stored)| {
        let mut stored = right.clone();
        change(&mut stored);
        differences("t", &sent, stored).len()
    };
    assert_eq!(differ(&|_| ()), 0);
    assert_eq!(differ(&|stored| drop(stored.remove(&at(1, 0)))), 1);
    assert_eq!(differ(&|stored| stored.get_mut(&at(0, 0)).unwrap().push(event("a"))), 1);
    assert_eq!(differ(&|stored| drop(stored.insert(at(0, 2), vec![event("a")]))), 1);
    assert_eq!(differ(&|stored| drop(stored.insert(at(0, 3), vec![event("c")]))), 1);
    assert_eq!(differ(&|stored| drop(stored.insert(at(0, 1), vec![event("a")]))), 1);
}
