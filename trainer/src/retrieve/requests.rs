//! Where requests come from: the users of table `sequences`, or JSON Lines on standard input.
//!
//! ```json
//! {"user_id": "u1", "history": [{"item_id": "42", "ts": 1716400000000}], "conditions": ["genre=Rock"]}
//! ```
//!
//! `ts` is in epoch milliseconds, or RFC 3339; `conditions` may be left out. What has arrived is answered at once, a
//! batch at most: another program can talk to this one through two pipes.

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use chrono::DateTime;
use schemas::cli::Interrupt;
use schemas::history::DeltaTau;
use serde::Deserialize;

use super::RetrieveError;
use super::histories::{History, Stored, visible_at};
use super::instructions::{Instructions, resolve};
use super::lists::{Ask, Request, Retriever};
use super::report::Report;
use crate::conditions::Conditions;

/// Requests that are answered together, at most.
pub const BATCH: usize = 128;

/// Makes requests.
#[derive(Debug)]
pub(super) struct Requests<'a> {
    /// The histories of the tables.
    pub stored: Stored<'a>,
    /// By item id, its index.
    pub items: HashMap<&'a str, u32>,
    /// The safe margin.
    pub delta_tau: DeltaTau,
    /// The time of all requests, epoch milliseconds; without one, all that is stored is visible.
    pub at: Option<i64>,
    /// The conditions that the model knows.
    pub conditions: &'a Conditions,
    /// Smallest number of carriers of a condition.
    pub min_pool: usize,
    /// Which lists each user is given.
    pub instructions: Instructions,
}

/// A line of standard input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    user_id: String,
    history: Vec<Event>,
    conditions: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    item_id: String,
    ts: Time,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "`ts` must be epoch milliseconds, or a text such as \"2026-01-31T12:00:00Z\"")]
enum Time {
    Ms(i64),
    Text(String),
}

/// Epoch milliseconds of an RFC 3339 time.
pub fn parse_time(text: &str) -> Result<i64, String> {
    let parsed = DateTime::parse_from_rfc3339(text);
    parsed.map(|time| time.timestamp_millis()).map_err(|e| {
        format!("`{text}` is not a time ({e}); write it as RFC 3339 does, such as 2026-01-31T12:00:00Z")
    })
}

impl Requests<'_> {
    /// The request of a user of the tables; one that they do not have is counted and has no history.
    pub(super) fn user(&self, user_id: &str, report: &mut Report) -> Request {
        let history = self.stored.history(user_id);
        if history.is_none() {
            report.unknown_users.add(user_id);
        }
        let asks = self.instructions.of(user_id, report);
        self.request(user_id.to_owned(), history.unwrap_or_default(), asks)
    }

    /// The request of a line; an event of an unknown item is dropped and counted.
    pub(super) fn line(
        &self,
        line: &str,
        retriever: &mut Retriever<'_>,
        report: &mut Report,
    ) -> Result<Request, String> {
        let Line { user_id, history, conditions } = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let mut events = Vec::with_capacity(history.len());
        for Event { item_id, ts } in history {
            let ts = match ts {
                Time::Ms(ms) => ms,
                Time::Text(text) => parse_time(&text)?,
            };
            match self.items.get(item_id.as_str()) {
                Some(&item) => events.push((item, ts)),
                None => report.dropped_events.add(&item_id),
            }
        }
        let asks = match conditions {
            None => self.instructions.of(&user_id, report),
            Some(texts) if texts.is_empty() => vec![Ask::PLAIN],
            Some(texts) => {
                // A condition that is asked for twice is one list.
                let once = |i: &usize| !texts[..*i].contains(&texts[*i]);
                (0..texts.len())
                    .filter(once)
                    .map(|i| resolve(&texts[i], self.conditions, self.min_pool, retriever))
                    .collect::<Result<_, _>>()?
            }
        };
        Ok(self.request(user_id, History::from_events(events, self.delta_tau), asks))
    }

    fn request(&self, user_id: String, history: History, asks: Vec<Ask>) -> Request {
        let history = match self.at {
            Some(at) => {
                let visible = visible_at(&history.ts, at, self.delta_tau);
                history.prefix(visible)
            }
            None => history,
        };
        Request { user_id, history, asks }
    }
}

/// Lines as they arrive, with their numbers from 1.
#[derive(Debug)]
pub(super) struct Lines(Receiver<(usize, std::io::Result<String>)>);

impl Lines {
    /// Reads `input` on a thread of its own, not far ahead.
    pub(super) fn new(input: impl BufRead + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(BATCH);
        std::thread::spawn(move || {
            for line in (1..).zip(input.lines()) {
                // Nobody listens any more.
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self(receiver)
    }

    /// Waits for a line, and takes what else has arrived; empty at the end, or when interrupted.
    pub(super) fn batch(&self, interrupt: &Interrupt) -> Result<Vec<(usize, String)>, RetrieveError> {
        const LOOK: Duration = Duration::from_millis(100);
        let mut batch = Vec::new();
        loop {
            let next = if batch.is_empty() {
                match self.0.recv_timeout(LOOK) {
                    Err(RecvTimeoutError::Timeout) if !interrupt.requested() => continue,
                    next => next.ok(),
                }
            } else {
                self.0.try_recv().ok()
            };
            let Some((number, line)) = next else { return Ok(batch) };
            let line = line.map_err(|e| RetrieveError::line("standard input", number, e.to_string()))?;
            if !line.trim().is_empty() {
                batch.push((number, line));
            }
            if batch.len() == BATCH {
                return Ok(batch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_in_batches_with_their_numbers() {
        let text: String =
            (1..=300).map(|i| if i % 10 == 0 { "\n".into() } else { format!("{i}\n") }).collect();
        let lines = Lines::new(std::io::Cursor::new(text));
        let mut all = Vec::new();
        loop {
            let batch = lines.batch(&Interrupt::default()).unwrap();
            assert!(batch.len() <= BATCH);
            if batch.is_empty() {
                break;
            }
            all.extend(batch);
        }
        assert_eq!(all.len(), 270);
        assert!(all.iter().all(|(number, line)| *line == number.to_string()));
    }

    #[test]
    fn an_interrupt_ends_the_waiting() {
        let (_open, receiver) = sync_channel(1);
        let interrupt = Interrupt::default();
        interrupt.request();
        assert!(Lines(receiver).batch(&interrupt).unwrap().is_empty());
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(parse_time("1970-01-01T00:00:01.5+00:00"), Ok(1_500));
        assert!(parse_time("yesterday").unwrap_err().contains("2026-01-31T12:00:00Z"));
    }
}
