//! What the scan learns about the whole log: the part of a build that its streams share.
//!
//! Memory: the codes of sources and of items that the catalogue lacks, and the suspected duplicates within their share.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex};

use terminal::Progress;

use super::codes::{Codes, ItemCodes};
use super::counts::Counts;
use crate::engine::Suspects;

/// What the scan learns about the whole log, shared by its streams.
#[derive(Debug)]
pub(super) struct Learned {
    pub sources: Codes,
    pub items: ItemCodes,
    pub suspects: Arc<Suspects>,
    pub counts: Mutex<Counts>,
    /// The time of the newest event, in epoch milliseconds.
    pub newest: AtomicI64,
    /// Events of which more was decoded than what a filter asks.
    pub decoded: AtomicU64,
    pub progress: Mutex<Progress>,
}
