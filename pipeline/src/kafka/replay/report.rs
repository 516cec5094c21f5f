//! The report of a replay, as text and as JSON.

use std::fmt::{self, Display};

use serde::Serialize;

/// One run of `pipeline dead-letters replay`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// The topic that records were sent to.
    pub topic: String,
    /// Whether nothing was sent.
    pub dry_run: bool,
    /// By reason and source.
    pub groups: Vec<ReplayGroup>,
    /// Records that the filter selects.
    pub selected: u64,
    /// Selected records that an earlier replay sent to this topic; this one did not send them again.
    pub sent_before: u64,
    /// Records that were sent and acknowledged; with `dry_run`, those that would be sent.
    pub sent: u64,
    /// Why not all were sent.
    pub problem: Option<String>,
}

/// Records of one reason and source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplayGroup {
    /// The reason's code.
    pub reason: String,
    /// Where they came from.
    pub source: String,
    /// As in [`ReplayReport`].
    pub selected: u64,
    /// As in [`ReplayReport`].
    pub sent_before: u64,
    /// As in [`ReplayReport`].
    pub sent: u64,
}

impl Display for ReplayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.groups.is_empty() {
            return write!(f, "no record of dead_letters is selected; nothing was sent");
        }
        let done = if self.dry_run { "to send" } else { "sent" };
        writeln!(f, "{:<18} {:>10} {:>12} {done:>10}  source", "reason", "selected", "sent before")?;
        for ReplayGroup { reason, source, selected, sent_before, sent } in &self.groups {
            writeln!(f, "{reason:<18} {selected:>10} {sent_before:>12} {sent:>10}  {source}")?;
        }
        let Self { topic, selected, sent_before, sent, .. } = self;
        write!(f, "{:<18} {selected:>10} {sent_before:>12} {sent:>10}  topic {topic}", "all")
    }
}
