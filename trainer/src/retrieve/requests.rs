//! Sources of requests: the users of table `sequences`, or JSON Lines on standard input.
//!
//! ```json
//! {"user_id": "u1", "history": [{"item_id": "42", "ts": 1716400000000}], "conditions": ["genre=Rock"], "at": 1716486400000}
//! ```
//!
//! Times are epoch milliseconds or RFC 3339; `conditions` and `at`, the time of the request, are optional. Lines are answered as
//! soon as they arrive, at most one batch at a time, so another program can exchange requests and answers through two pipes. An
//! invalid line is answered with its number and the error; the other lines are answered as usual.
//!
//! Memory: at most two batches of lines, each line at most 16 MiB.

use std::collections::HashMap;
use std::io::{self, BufRead, Read as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use chrono::DateTime;
use schemas::history::DeltaTau;
use serde::{Deserialize, Serialize};
use terminal::Interrupt;

use super::RetrieveError;
use super::histories::{Stored, VisibleHistory, visible_at};
use super::instructions::{Instructions, resolve};
use super::report::RetrieveReport;
use super::retriever::{Ask, ListRequest, Retriever};
use crate::data::ItemIndex;
use crate::data::conditions::KnownConditions;

/// Maximum requests answered together.
pub const BATCH: usize = 128;

/// Maximum bytes of a line: bounds memory if a client never ends a line.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Builds requests from users and lines.
#[derive(Debug)]
pub(super) struct Requests<'a> {
    /// Histories of the tables.
    pub stored: Stored<'a>,
    /// Item index by item id.
    pub items: HashMap<&'a str, ItemIndex>,
    /// Safe margin `Δτ`.
    pub delta_tau: DeltaTau,
    /// Time of all requests, epoch milliseconds. `None` shows all stored events and computes ages from the time each request is
    /// read.
    pub at: Option<i64>,
    /// Conditions that the model knows.
    pub conditions: &'a KnownConditions,
    /// Minimum number of retrievable carriers of a condition.
    pub min_pool: usize,
    /// Lists to make for each user.
    pub instructions: Instructions,
}

/// One line of standard input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    user_id: String,
    history: Vec<Event>,
    conditions: Option<Vec<String>>,
    at: Option<Time>,
}

/// A line of standard input that cannot be answered with a list; this record is its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Line number, from 1; empty lines count.
    pub line: usize,
    /// User id, if the line has one.
    pub user_id: Option<String>,
    /// Error message.
    pub error: String,
}

impl Refusal {
    /// Returns the refusal of a request whose lists are all empty; `None` if it did not come from standard input.
    pub(super) fn nothing_left(request: &ListRequest) -> Option<Self> {
        let error = "no item is left that its lists may have".to_owned();
        Some(Self { line: request.line?, user_id: Some(request.user_id.clone()), error })
    }

    fn new(line: usize, text: &[u8], error: String) -> Self {
        let user = serde_json::from_slice::<serde_json::Value>(text).ok();
        let user_id = user.and_then(|value| value.get("user_id")?.as_str().map(str::to_owned));
        Self { line, user_id, error }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    item_id: String,
    ts: Time,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a time must be epoch milliseconds, or a text such as \"2026-01-31T12:00:00Z\""
)]
enum Time {
    Ms(i64),
    Text(String),
}

impl Time {
    /// Returns epoch milliseconds.
    ///
    /// # Errors
    ///
    /// The time is not RFC 3339, or is outside the range of dates, where differences would overflow.
    fn ms(self) -> Result<i64, String> {
        match self {
            Self::Ms(ms) if DateTime::from_timestamp_millis(ms).is_some() => Ok(ms),
            Self::Ms(ms) => Err(format!("{ms} is not a time in epoch milliseconds")),
            Self::Text(text) => parse_time(&text),
        }
    }
}

/// Returns the current time, epoch milliseconds.
pub(super) fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// Parses an RFC 3339 time into epoch milliseconds.
///
/// # Errors
///
/// `text` is not RFC 3339; the message gives an example.
pub fn parse_time(text: &str) -> Result<i64, String> {
    let parsed = DateTime::parse_from_rfc3339(text);
    parsed.map(|time| time.timestamp_millis()).map_err(|e| {
        format!("`{text}` is not a time ({e}); write it as RFC 3339 does, such as 2026-01-31T12:00:00Z")
    })
}

impl Requests<'_> {
    /// Returns the request of a user of the tables. An unknown user is counted in `report` and gets an empty history.
    pub(super) fn user(
        &self,
        user_id: &str,
        retriever: &mut Retriever<'_>,
        report: &mut RetrieveReport,
    ) -> ListRequest {
        let history = self.stored.history(user_id);
        if history.is_none() {
            report.unknown_users.add(user_id);
        }
        let at = self.at.unwrap_or_else(now);
        let asks = self.instructions.of(user_id, self.min_pool, at, retriever, report);
        self.request(user_id.to_owned(), self.at, history.unwrap_or_default(), asks)
    }

    /// Parses a line into a request. Events of unknown items are dropped and counted in `report`.
    ///
    /// # Errors
    ///
    /// The line is not a valid request, or names an unusable condition; the refusal is the answer to send.
    pub(super) fn line(
        &self,
        number: usize,
        line: &LineBytes,
        retriever: &mut Retriever<'_>,
        report: &mut RetrieveReport,
    ) -> Result<ListRequest, Refusal> {
        let request = match line {
            Ok(line) => self.parsed(line, retriever, report),
            Err(problem) => Err(problem.clone()),
        };
        let text = line.as_deref().unwrap_or_default();
        request.map(|request| ListRequest { line: Some(number), ..request }).map_err(|error| {
            report.refused += 1;
            Refusal::new(number, text, error)
        })
    }

    fn parsed(
        &self,
        line: &[u8],
        retriever: &mut Retriever<'_>,
        report: &mut RetrieveReport,
    ) -> Result<ListRequest, String> {
        let Line { user_id, history, conditions, at } =
            serde_json::from_slice(line).map_err(|e| e.to_string())?;
        let at = at.map(Time::ms).transpose()?.or(self.at);
        let mut events = Vec::with_capacity(history.len());
        for Event { item_id, ts } in history {
            let ts = ts.ms()?;
            match self.items.get(item_id.as_str()) {
                Some(&item) => events.push((item, ts)),
                None => report.dropped_events.add(&item_id),
            }
        }
        let asks = match conditions {
            None => {
                let at = at.unwrap_or_else(now);
                self.instructions.of(&user_id, self.min_pool, at, retriever, report)
            }
            Some(texts) if texts.is_empty() => vec![Ask::PLAIN],
            Some(texts) => {
                // A repeated condition gives one list.
                let once = |i: &usize| !texts[..*i].contains(&texts[*i]);
                (0..texts.len())
                    .filter(once)
                    .map(|i| {
                        let at = at.unwrap_or_else(now);
                        resolve(&texts[i], self.conditions, self.min_pool, retriever, at)
                    })
                    .collect::<Result<_, _>>()?
            }
        };
        Ok(self.request(user_id, at, VisibleHistory::from_events(events, self.delta_tau), asks))
    }

    fn request(
        &self,
        user_id: String,
        at: Option<i64>,
        history: VisibleHistory,
        asks: Vec<Ask>,
    ) -> ListRequest {
        let history = match at {
            Some(at) => {
                let visible = visible_at(&history.ts, at, self.delta_tau);
                history.prefix(visible)
            }
            None => history,
        };
        ListRequest { user_id, line: None, at: at.unwrap_or_else(now), history, asks }
    }
}

/// The bytes of a line, or the reason to refuse it.
pub(super) type LineBytes = Result<Vec<u8>, String>;

/// Lines as they arrive, numbered from 1.
#[derive(Debug)]
pub(super) struct Lines(Receiver<(usize, io::Result<LineBytes>)>);

impl Lines {
    /// Reads `input` on its own thread, at most one batch of lines ahead.
    pub(super) fn new(input: impl BufRead + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(BATCH);
        std::thread::spawn(move || {
            let mut input = input;
            for number in 1.. {
                let Some(line) = next_line(&mut input, LINE_BYTES_MAX).transpose() else { break };
                let failed = line.is_err();
                // The receiver may be dropped.
                if sender.send((number, line)).is_err() || failed {
                    break;
                }
            }
        });
        Self(receiver)
    }

    /// Waits for one line, then takes all lines that have arrived, up to [`BATCH`]; empty at the end of input or when
    /// interrupted.
    ///
    /// # Errors
    ///
    /// Reading the input fails.
    pub(super) fn batch(&self, interrupt: &Interrupt) -> Result<Vec<(usize, LineBytes)>, RetrieveError> {
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
            let line = line.map_err(|source| RetrieveError::Input { line: number, source })?;
            if !line.as_ref().is_ok_and(|line| line.trim_ascii().is_empty()) {
                batch.push((number, line));
            }
            if batch.len() == BATCH {
                return Ok(batch);
            }
        }
    }
}

/// Reads the next line, without its newline; `None` at the end of the input. Skips a line of more than `most` bytes and returns
/// the reason.
fn next_line(input: &mut impl BufRead, most: usize) -> io::Result<Option<LineBytes>> {
    let mut line = Vec::new();
    let read = input.by_ref().take(most as u64 + 1).read_until(b'\n', &mut line)?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > most {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(format!("the line has more than {most} bytes"))));
    }
    Ok(Some(Ok(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_read_over() {
        let mut input = io::Cursor::new("1234\n12345\n123456789\n\n123\n12345678");
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input, 4).unwrap() {
            lines.push(line.map(|line| String::from_utf8(line).unwrap()).map_err(|e| e.contains("4 bytes")));
        }
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(lines, [ok("1234"), Err(true), Err(true), ok(""), ok("123"), Err(true)]);
    }

    #[test]
    fn a_refusal_names_the_user_where_it_can() {
        let refusal = |text: &str| Refusal::new(3, text.as_bytes(), "why".into()).user_id;
        assert_eq!(refusal(r#"{"user_id": "x", "more": 1}"#).as_deref(), Some("x"));
        assert_eq!(refusal(r#"{"user_id": 7}"#), None);
        assert_eq!(refusal("{"), None);
    }

    #[test]
    fn times_can_be_computed_with() {
        assert_eq!(Time::Ms(-5).ms(), Ok(-5));
        for wrong in [i64::MIN, i64::MAX] {
            assert!(Time::Ms(wrong).ms().unwrap_err().contains("is not a time"));
        }
    }

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
        assert!(all.iter().all(|(number, line)| *line == Ok(number.to_string().into_bytes())));
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
