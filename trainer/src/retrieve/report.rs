//! Counts of a run of `trainer retrieve`, written as JSON and as text.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::serve::Scored;

/// Counts of one run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RetrieveReport {
    /// Requests answered.
    pub users: usize,
    /// Requests without visible events; their lists are popular items.
    pub without_history: usize,
    /// Requested users that are not in `sequences`.
    pub unknown_users: CountedExamples,
    /// Events of items that are not in the catalogue.
    pub dropped_events: CountedExamples,
    /// Stored instructions whose condition the model does not know.
    pub unknown_instructions: CountedExamples,
    /// Stored instructions whose condition has too few carriers.
    pub small_pools: CountedExamples,
    /// Users without a usable stored instruction; each gets one list without a condition.
    pub without_instructions: usize,
    /// Lists, before merging.
    pub lists: usize,
    /// Lists with fewer than `k` items.
    pub short_lists: usize,
    /// Lists of popular items.
    pub popular_lists: usize,
    /// Invalid lines of standard input, each answered with an error.
    pub refused: usize,
    /// Rows of the result.
    pub rows: usize,
    /// Maximum length of a list.
    pub k: usize,
    /// CC@K (Eq. 8): the share of items that carry the condition, averaged over the model's lists with a condition.
    #[serde(rename = "cc@k")]
    pub compliance: Mean,
    /// Results of the approximate search.
    #[serde(skip_serializing_if = "GraphReport::is_unused")]
    pub graph: GraphReport,
}

/// A count with its first distinct examples.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CountedExamples {
    /// Number of occurrences.
    pub count: usize,
    /// First distinct examples, at most 3.
    pub examples: Vec<String>,
}

impl CountedExamples {
    const SHOWN: usize = 3;

    /// Counts one occurrence of `example`.
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

/// A mean of shares; `None` without any.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    sum: f64,
    n: usize,
}

impl Mean {
    /// Adds the share `part / whole`; ignored if `whole` is 0.
    pub fn add(&mut self, part: usize, whole: usize) {
        if whole > 0 {
            self.sum += part as f64 / whole as f64;
            self.n += 1;
        }
    }

    /// Returns the mean; `None` if no share was added.
    pub fn value(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }
}

impl Serialize for Mean {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

/// Counts and recall of the approximate search.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GraphReport {
    /// Number of searches.
    pub searches: usize,
    /// Searches left with too few items after the filter, and repeated exactly.
    pub exact_instead: usize,
    /// Searches answered by the graph that were compared with the exact search.
    pub sampled: usize,
    /// Mean share of the exact list that the sampled searches found.
    #[serde(rename = "recall@k")]
    pub recall: Mean,
    /// Number of batches so far.
    #[serde(skip)]
    batches: usize,
}

impl GraphReport {
    /// Maximum searches compared per batch.
    const IN_BATCH: usize = 64;
    /// The first batches are all sampled, then batches 8, 16, 32, …
    const BATCHES: usize = 8;

    fn is_unused(&self) -> bool {
        self.searches == 0
    }

    /// Returns which of `answered`, the searches of a batch that the graph answered itself, to compare with the exact search:
    /// evenly spaced from first to last.
    pub(super) fn sample<'a>(&self, answered: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
        let looked_at = self.batches < Self::BATCHES || self.batches.is_power_of_two();
        let n = if looked_at { answered.len().min(Self::IN_BATCH) } else { 0 };
        (0..n).map(move |i| answered[i * answered.len() / n])
    }

    /// Adds one batch; `pairs` are the found and the exact list of each sampled search.
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
