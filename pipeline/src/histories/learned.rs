//! State that the streams of a scan share: facts about the whole log.
//!
//! Memory: the codes of sources and of items that the catalogue lacks, and the suspected duplicates within their budget.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex};

use terminal::Progress;

use super::codes::{Codes, ItemCodes};
use super::counts::Counts;
use crate::engine::Suspects;

/// Codes, suspected duplicates and counters of the whole log, filled by all streams of the scan.
#[derive(Debug)]
pub(super) struct Learned {
    pub sources: Codes,
    pub items: ItemCodes,
    pub suspects: Arc<Suspects>,
    pub counts: Mutex<Counts>,
    /// The time of the newest event, in epoch milliseconds.
    pub newest: AtomicI64,
    /// Events for which the scan decoded more columns than its row filter reads.
    pub decoded: AtomicU64,
    pub progress: Mutex<Progress>,
}
