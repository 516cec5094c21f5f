//! Models that score by inner products, `φ(h, e) = hᵀe` (§3.4).
//!
//! The backbone runs once per history, branch 1 runs on all reads as one batch, then a search covers the vectors of all items.
//! Memory: `[items, d]` floats twice (tensor and search matrix) and `[reads, d]` states; with a graph, its edges too.

use std::ops::Range;

use candle_core::{Result, Tensor};
use instant_distance::Search;
use ragged::{Mat, gemm};
use rayon::prelude::*;

use super::index::{Hnsw, ItemMatrix, exact};
use super::rank::{RankQuery, Ranks, rank};
use super::recommender::{Answers, ListQuery, Read, Reading, RecommendError, Recommender};
use super::top_k::{NotFinite, Scored};
use crate::batch::HistoryBatch;
use crate::data::conditions::Carriers;
use crate::data::{ConditionRow, ItemIndex, StepItem, VectorRow};
use crate::models::{Reads, SequenceModel};

/// Inputs of [`DotProduct`] besides the model.
#[derive(Debug, Clone, Copy)]
pub struct Serving<'a> {
    /// Number of items in the catalogue.
    pub items: usize,
    /// Which items carry the conditions that reads may use; `None` if reads have none.
    pub carriers: Option<&'a Carriers>,
    /// Seed of the hash that orders items of equal scores.
    pub seed: u64,
    /// Maximum reads encoded together.
    pub batch: usize,
    /// Approximate search; `None` searches exactly.
    pub graph: Option<GraphSetting<'a>>,
}

/// Settings of the approximate search (HNSW).
#[derive(Debug, Clone, Copy)]
pub struct GraphSetting<'a> {
    /// Items found per search, before the filter.
    pub ef: usize,
    /// Whether an item is in the graph, by item index.
    pub retrievable: &'a [bool],
}

/// A model and the vectors of all items.
#[derive(Debug)]
pub struct DotProduct<'a> {
    model: &'a SequenceModel,
    carriers: Option<&'a Carriers>,
    /// `e_i` of all items, `[items, d]`, on the model's device.
    vectors: Tensor,
    candidates: ItemMatrix,
    graph: Option<Hnsw>,
    /// Factor of the scores under each condition; empty if the model has none.
    sharpness: Vec<f32>,
    batch: usize,
}

impl<'a> DotProduct<'a> {
    /// Prepares `model` for serving with its own item vectors.
    ///
    /// # Errors
    ///
    /// An item's vector is not finite, or a tensor operation fails.
    pub fn new(model: &'a SequenceModel, serving: Serving<'a>) -> std::result::Result<Self, RecommendError> {
        let items: Vec<ItemIndex> = ItemIndex::all(serving.items).collect();
        Self::with_vectors(model, model.item_vectors(&items)?.vectors.detach(), serving)
    }

    /// Prepares `model` with `vectors` (`[items, d]`) in place of its own.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn with_vectors(
        model: &'a SequenceModel,
        vectors: Tensor,
        serving: Serving<'a>,
    ) -> std::result::Result<Self, RecommendError> {
        let Serving { carriers, seed, batch, graph, .. } = serving;
        let rows = model.candidates(&vectors)?.flatten_all()?.to_vec1::<f32>()?;
        let candidates = ItemMatrix::new(rows, vectors.dim(1)?, seed)?;
        let graph = graph.map(|GraphSetting { ef, retrievable }| {
            eprintln!("building the graph of {} items", candidates.items());
            Hnsw::new(&candidates, retrievable, ef)
        });
        Ok(Self { model, carriers, vectors, candidates, graph, sharpness: model.sharpness()?, batch })
    }

    /// Writes the state of each read to its answer's place in `states`, `[d]` each.
    fn encode(&self, parts: &[Part<'_, '_>], states: &mut [f32]) -> Result<()> {
        let mut known: Vec<ItemIndex> = parts.iter().flat_map(|part| part.shown().iter().copied()).collect();
        known.sort_unstable();
        known.dedup();
        let mut batch = HistoryBatch::new(self.model.mask());
        let mut plain = Vec::new();
        let mut reads = Reads::default();
        for Part { reading, reads: of_part } in parts {
            for same in self.sequences(of_part) {
                let length = same.last().map_or(0, |(_, read)| read.length);
                let (items, ts) = (&reading.items[..length], &reading.ts[..length]);
                let local = items
                    .iter()
                    .map(|item| VectorRow::from(StepItem::new(known.partition_point(|k| k < item) as u32)));
                let first = batch.push(local, ts, &reading.visible[..length]);
                for (_, read) in same {
                    let token = first.behind(read.length);
                    let Some(condition) = read.condition else {
                        plain.push(token);
                        continue;
                    };
                    let Some(carriers) = self.carriers else {
                        candle_core::bail!("a condition is asked for, and nobody said which items carry it");
                    };
                    reads.tokens.push(token);
                    reads.conditions.push(condition);
                    let (items, ts) = (&items[..read.length], &ts[..read.length]);
                    carriers.push_matches(&mut reads.matches, condition, items, ts);
                }
            }
        }
        let tokens = batch.into_tokens();
        let rows: Vec<u32> = known.iter().map(|item| item.get() - 1).collect();
        let n = rows.len();
        let items = self.vectors.index_select(&Tensor::from_vec(rows, n, self.vectors.device())?, 0)?;
        let histories = self.model.histories(&tokens, &items, None);
        let flat = |rows: Tensor| rows.detach().flatten_all()?.to_vec1::<f32>();
        let plain = match plain.is_empty() {
            true => Vec::new(),
            false => flat(self.model.read_plain(1, &histories, &plain)?)?,
        };
        let instructed = match reads.tokens.is_empty() {
            true => Vec::new(),
            false => flat(self.model.read(1, &histories, &reads)?)?,
        };
        let d = self.candidates.d();
        let (mut plain, mut instructed) = (plain.chunks_exact(d), instructed.chunks_exact(d));
        for (answer, read) in parts.iter().flat_map(|part| part.reads) {
            let state = if read.condition.is_none() { plain.next() } else { instructed.next() };
            if let Some(state) = state {
                states[answer * d..][..d].copy_from_slice(state);
            }
        }
        Ok(())
    }

    /// Groups reads that share one sequence of tokens.
    ///
    /// Causal masks encode a history once for all of its reads. In mask mode `row` the reading token sees its whole context while
    /// the other tokens keep their training mask, so each length needs its own sequence.
    fn sequences<'r>(&self, reads: &'r [(usize, Read)]) -> impl Iterator<Item = &'r [(usize, Read)]> {
        let apart = self.model.mask() == schemas::config::MaskMode::Row;
        reads.chunk_by(move |(_, a), (_, b)| !apart || a.length == b.length)
    }
}

/// A history and some of its reads, by ascending length, each with the index of its answer.
struct Part<'a, 'b> {
    reading: &'a Reading<'a>,
    reads: &'b [(usize, Read)],
}

impl<'a> Part<'a, '_> {
    /// Returns the events that at least one read uses.
    fn shown(&self) -> &'a [ItemIndex] {
        &self.reading.items[..self.reads.last().map_or(0, |(_, read)| read.length)]
    }
}

impl Recommender for DotProduct<'_> {
    fn items(&self) -> usize {
        self.candidates.items()
    }

    fn seed(&self) -> u64 {
        self.candidates.seed()
    }

    fn read<'a>(&'a self, readings: &[Reading<'_>]) -> Result<Box<dyn Answers + 'a>> {
        let mut reads = Vec::new();
        for reading in readings {
            let first = reads.len();
            reads.extend(reading.reads.iter().zip(first..).map(|(&read, answer)| (answer, read)));
            // The operations ask for ascending lengths.
            reads[first..].sort_by_key(|(_, read)| read.length);
        }
        let (mut parts, mut left) = (Vec::new(), &reads[..]);
        for reading in readings {
            let reads;
            (reads, left) = left.split_at(reading.reads.len());
            parts.extend(reads.chunks(self.batch.max(1)).map(|reads| Part { reading, reads }));
        }
        let mut states = vec![0.0; reads.len() * self.candidates.d()];
        let mut left = &parts[..];
        while !left.is_empty() {
            let mut reads = 0;
            let together = left.iter().take_while(|part| {
                reads += part.reads.len();
                reads <= self.batch
            });
            let (now, later) = left.split_at(together.count().max(1));
            self.encode(now, &mut states)?;
            left = later;
        }
        Ok(Box::new(States { of: self, states }))
    }

    fn sharpness(&self, condition: ConditionRow) -> f32 {
        self.sharpness.get(condition.index()).copied().unwrap_or(1.0)
    }
}

/// Hidden states of the answers, `[answers, d]`, flat.
struct States<'a> {
    of: &'a DotProduct<'a>,
    states: Vec<f32>,
}

impl States<'_> {
    /// Fills `scores` with `φ(h, e)` of all items for `answers`: `[answers, items]`.
    fn score(&self, answers: Range<usize>, scores: &mut [f32]) {
        let (d, items) = (self.of.candidates.d(), self.of.candidates.items());
        let states = Mat::new(&self.states[answers.start * d..answers.end * d], answers.len(), d, d);
        gemm(scores, items, false, states, Mat::new(self.of.candidates.vectors(), items, d, d).t());
    }

    fn state(&self, answer: usize) -> &[f32] {
        let d = self.of.candidates.d();
        &self.states[answer * d..][..d]
    }

    fn vectors<'b>(&'b self, questions: &[ListQuery<'b>]) -> Vec<exact::VectorQuery<'b>> {
        let of = |question: &ListQuery<'b>| exact::VectorQuery {
            vector: self.state(question.answer),
            filters: question.filters,
        };
        questions.iter().map(of).collect()
    }
}

impl Answers for States<'_> {
    fn recommender(&self) -> &dyn Recommender {
        self.of
    }

    fn len(&self) -> usize {
        self.states.len() / self.of.candidates.d()
    }

    fn best(
        &self,
        questions: &[ListQuery<'_>],
        k: usize,
    ) -> std::result::Result<Vec<Vec<Scored>>, NotFinite> {
        self.of.candidates.search(&self.vectors(questions), k)
    }

    fn ranks(&self, queries: &[RankQuery], active: &[bool]) -> std::result::Result<Vec<Ranks>, NotFinite> {
        rank(queries, active, self.of.candidates.seed(), |answers, scores| self.score(answers, scores))
    }

    fn approximate(&self, questions: &[ListQuery<'_>], k: usize) -> Option<Vec<Option<Vec<Scored>>>> {
        let graph = self.of.graph.as_ref()?;
        let found: Vec<Vec<Option<Vec<Scored>>>> = questions
            .par_iter()
            .map_init(Search::default, |search, question| {
                let state = self.state(question.answer);
                question.filters.iter().map(|filter| graph.search(state, filter, k, search)).collect()
            })
            .collect();
        Some(found.concat())
    }
}
