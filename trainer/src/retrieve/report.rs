//! What a run of `trainer retrieve` came to.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::serve::Scored;

/// Counts of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RetrieveReport {
    /// Requests that were answered.
    pub users: usize,
    /// Those of whom nothing was visible; their lists are popular items.
    pub without_history: usize,
    /// Asked for, and not in `sequences`.
    pub unknown_users: CountedExamples,
    /// Events of items that the catalogue does not have.
    pub dropped_events: CountedExamples,
    /// Stored instructions that the model does not follow.
    pub unknown_instructions: CountedExamples,
    /// Stored instructions that too few items carry.
    pub small_pools: CountedExamples,
    /// Users asked for that have no stored instructions left: one list without a condition.
    pub without_instructions: usize,
    /// Lists, before merging.
    pub lists: usize,
    /// Those with fewer than `k` items.
    pub short_lists: usize,
    /// Those of popular items.
    pub popular_lists: usize,
    /// Lines of standard input that were no request that can be answered; each was answered by its error.
    pub refused: usize,
    /// Rows of the result.
    pub rows: usize,
    /// Length asked for.
    pub k: usize,
    /// CC@K (Eq. 8): the mean over the model's lists with a condition of the share of items that carry it.
    #[serde(rename = "cc@k")]
    pub compliance: Mean,
    /// What an approximate search came to.
    #[serde(skip_serializing_if = "GraphReport::is_unused")]
    pub graph: GraphReport,
}

/// Something that is counted, with the first few.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CountedExamples {
    /// How often.
    pub count: usize,
    /// The first different ones.
    pub examples: Vec<String>,
}

impl CountedExamples {
    const SHOWN: usize = 3;

    /// One more.
    pub fn add(&mut self, example: &str) {
        self.count += 1;
        if self.examples.len() < Self::SHOWN && !self.examples.iter().any(|known| known == example) {
            self.examples.push(example.to_owned());
        }
    }
}

impl fmt::Display for CountedExamples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.count > self.examples.len() { ", …" } else { "" };
        write!(f, "{} ({}{more})", self.count, self.examples.join(", "))
    }
}

/// A mean of shares; absent where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    sum: f64,
    n: usize,
}

impl Mean {
    /// One more share; nothing of nothing is none.
    pub fn add(&mut self, part: usize, whole: usize) {
        if whole > 0 {
            self.sum += part as f64 / whole as f64;
            self.n += 1;
        }
    }

    /// The mean.
    pub fn value(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }
}

impl Serialize for Mean {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

/// What an approximate search came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GraphReport {
    /// Searches.
    pub searches: usize,
    /// Those that were left with too few items, and repeated exactly.
    pub exact_instead: usize,
    /// How many of the others were compared with the exact search.
    pub sampled: usize,
    /// Of these, the mean share of the exact list that was found.
    #[serde(rename = "recall@k")]
    pub recall: Mean,
    /// Batches so far.
    #[serde(skip)]
    batches: usize,
}

impl GraphReport {
    /// Searches compared in one batch, at most.
    const IN_BATCH: usize = 64;
    /// All of the first batches are looked at, then those with the numbers 8, 16, 32, …
    const BATCHES: usize = 8;

    fn is_unused(&self) -> bool {
        self.searches == 0
    }

    /// Which of a batch's `answered` searches, those that the graph answered itself, are to be compared with the exact search:
    /// evenly from first to last.
    pub(super) fn sample<'a>(&self, answered: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
        let looked_at = self.batches < Self::BATCHES || self.batches.is_power_of_two();
        let n = if looked_at { answered.len().min(Self::IN_BATCH) } else { 0 };
        (0..n).map(move |i| answered[i * answered.len() / n])
    }

    /// Adds one batch; `pairs` are what the graph found and what there is, of the sample.
    pub(super) fn add<'a>(
        &mut self,
        searches: usize,
        exact_instead: usize,
        pairs: impl Iterator<Item = (&'a Vec<Scored>, &'a Vec<Scored>)>,
    ) {
        self.batches += 1;
        self.searches += searches;
        self.exact_instead += exact_instead;
        for (found, exact) in pairs {
            let hit = |e: &&Scored| found.iter().any(|f| f.item == e.item);
            self.recall.add(exact.iter().filter(hit).count(), exact.len());
            self.sampled += 1;
        }
    }
}

impl fmt::Display for RetrieveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let k = self.k;
        writeln!(
            f,
            "{} users, {} without visible history; {} lists, {} of popular items, {} shorter than {k}; {} rows",
            self.users, self.without_history, self.lists, self.popular_lists, self.short_lists, self.rows
        )?;
        if self.refused > 0 {
            writeln!(f, "lines that were answered by an error: {}", self.refused)?;
        }
        if let Some(compliance) = self.compliance.value() {
            writeln!(f, "CC@{k} {compliance:.4}")?;
        }
        if !self.graph.is_unused() {
            let GraphReport { searches, exact_instead, sampled, recall, .. } = &self.graph;
            let recall = recall.value().map_or_else(|| "–".into(), |recall| format!("{recall:.4}"));
            writeln!(
                f,
                "hnsw: recall@{k} {recall} on {sampled} of the {} searches that the graph answered; {exact_instead} were \
                 searched exactly instead",
                searches - exact_instead
            )?;
        }
        for (what, examples) in [
            ("users that `sequences` does not have", &self.unknown_users),
            ("events of items that the catalogue does not have", &self.dropped_events),
            ("instructions that the model does not follow", &self.unknown_instructions),
            ("instructions that too few items carry", &self.small_pools),
        ] {
            if examples.count > 0 {
                writeln!(f, "{what}: {examples}")?;
            }
        }
        if self.without_instructions > 0 {
            writeln!(f, "users without instructions, given one list without: {}", self.without_instructions)?;
        }
        Ok(())
    }
}
