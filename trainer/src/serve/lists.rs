//! From requests to lists: the model part, then the search; popular items for users of whom nothing is visible.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use instant_distance::Search;
use rayon::prelude::*;
use schemas::config::MaskMode;
use serde::Serialize;

use super::RetrieveError;
use super::encode::{Asked, hidden};
use super::histories::History;
use super::index::{Candidates, Hnsw, Question, Scored};
use super::report::Report;
use crate::data::conditions::Carriers;
use crate::judge::Popularity;
use crate::models::ClimberPilot;

/// What is asked for one user.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The user.
    pub user_id: String,
    /// The line of standard input that it came from, from 1.
    pub line: Option<usize>,
    /// Its time (epoch milliseconds), from which derived conditions count.
    pub at: i64,
    /// All that is visible of the user.
    pub history: History,
    /// The lists to retrieve.
    pub asks: Vec<Ask>,
}

/// One list that is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    /// The row of its condition; `None` for a list without one.
    pub condition: Option<u32>,
    /// The weight of its instruction.
    pub weight: f32,
}

impl Ask {
    /// A list without a condition.
    pub const PLAIN: Self = Self { condition: None, weight: 1.0 };
}

/// How a list came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// By the model.
    Model,
    /// By training counts: nothing was visible of the user.
    Popular,
}

impl Origin {
    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Popular => "popular",
        }
    }
}

/// One retrieved list, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// The row of its condition.
    pub condition: Option<u32>,
    /// The weight of its instruction.
    pub weight: f32,
    /// The factor that the model has learned for the condition's scores; 1 without one.
    pub sharpness: f32,
    /// How it came about.
    pub origin: Origin,
    /// At most `k` items.
    pub items: Vec<Scored>,
}

/// What lists may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Length of a list.
    pub k: usize,
    /// Whether a list with a condition is limited to the items that carry it.
    pub only: bool,
    /// Whether items stay that the user has seen.
    pub keep_seen: bool,
}

/// Answers requests.
#[derive(Debug)]
pub struct Retriever<'a> {
    /// The model.
    pub model: &'a ClimberPilot,
    /// The mask that it was trained with.
    pub mask: MaskMode,
    /// The most events it reads.
    pub max_len: usize,
    /// The vectors of all items, `[items, d]`.
    pub vectors: &'a Tensor,
    /// What hidden states are multiplied with.
    pub candidates: Candidates,
    /// The graph, where the search is not exact.
    pub graph: Option<Hnsw>,
    /// Which items carry which conditions.
    pub carriers: &'a Carriers,
    /// By item index, whether it may be in any list.
    pub retrievable: Vec<bool>,
    /// Training events by item index.
    pub counts: Vec<u32>,
    /// What orders items as these counts do.
    popularity: Popularity,
    /// By condition, the factor of its scores; empty where there is none.
    sharpness: Vec<f32>,
    /// What lists may hold.
    pub limits: Limits,
    /// By condition, which items carry it at some times.
    pools: BTreeMap<u32, Vec<Pool>>,
}

/// Pools that are kept of one condition, at most: requests come at growing times.
const POOLS: usize = 4;

/// The carriers of a condition at certain times.
#[derive(Debug, Clone)]
struct Pool {
    times: Range<i64>,
    carries: Vec<bool>,
    /// Those that may be in a list.
    retrievable: Arc<Vec<bool>>,
    size: usize,
}

impl<'a> Retriever<'a> {
    /// One that searches exactly; `vectors` are those of all items.
    pub fn new(
        (model, mask, max_len): (&'a ClimberPilot, MaskMode, usize),
        vectors: &'a Tensor,
        carriers: &'a Carriers,
        (retrievable, counts): (Vec<bool>, Vec<u32>),
        (limits, seed): (Limits, u64),
    ) -> Result<Self, RetrieveError> {
        let rows = model.candidates(vectors)?.flatten_all()?.to_vec1::<f32>()?;
        let candidates = Candidates::new(rows, vectors.dim(1)?, seed)?;
        let (graph, pools) = (None, BTreeMap::new());
        Ok(Self {
            model,
            mask,
            max_len,
            vectors,
            candidates,
            graph,
            carriers,
            retrievable,
            popularity: Popularity::new(&counts),
            counts,
            sharpness: model.sharpness()?,
            limits,
            pools,
        })
    }

    /// Makes the condition of `row` ready to be asked for at the time `at`; gives the number of retrievable items that carry it
    /// then.
    pub fn prepare(&mut self, row: u32, at: i64) -> usize {
        // The one that was asked for last is the last to go.
        let pools = self.pools.entry(row).or_default();
        if let Some(place) = pools.iter().position(|pool| pool.times.contains(&at)) {
            let pool = pools.remove(place);
            let size = pool.size;
            pools.push(pool);
            return size;
        }
        let carries = self.carriers.pool(row, at);
        let both = carries.iter().zip(&self.retrievable).map(|(&carries, &may)| carries && may);
        let both: Vec<bool> = both.collect();
        let size = both.iter().filter(|&&may| may).count();
        let times = self.carriers.unchanged(row, at);
        let pools = self.pools.entry(row).or_default();
        if pools.len() == POOLS {
            pools.remove(0);
        }
        pools.push(Pool { times, carries, size, retrievable: Arc::new(both) });
        size
    }

    fn pool(&self, row: u32, at: i64) -> Option<&Pool> {
        self.pools.get(&row)?.iter().find(|pool| pool.times.contains(&at))
    }

    /// The items that may be in a list that is asked for at the time `at`.
    fn allowed(&self, condition: Option<u32>, at: i64, only: bool) -> &[bool] {
        match condition.and_then(|row| self.pool(row, at)) {
            Some(pool) if only => &pool.retrievable,
            _ => &self.retrievable,
        }
    }

    /// The lists of each request, in the order asked.
    pub fn lists(
        &mut self,
        requests: &[Request],
        report: &mut Report,
    ) -> Result<Vec<Vec<List>>, RetrieveError> {
        let (mut lists, mut first) = (Vec::with_capacity(requests.len()), 0);
        // By condition, where the times of the pools begin that these requests need.
        let mut needed: BTreeMap<u32, BTreeSet<i64>> = BTreeMap::new();
        for (next, request) in requests.iter().enumerate() {
            let rows: BTreeSet<u32> = request.asks.iter().filter_map(|ask| ask.condition).collect();
            let begin = |row: u32| match self.pool(row, request.at) {
                Some(pool) => pool.times.start,
                None => self.carriers.unchanged(row, request.at).start,
            };
            let wanted: Vec<(u32, i64)> = rows.iter().map(|&row| (row, begin(row))).collect();
            let is_too_much = |(row, begin): &(u32, i64)| {
                needed.get(row).is_some_and(|begins| begins.len() == POOLS && !begins.contains(begin))
            };
            // Requests whose pools do not fit together are answered in several turns.
            if wanted.iter().any(is_too_much) {
                lists.extend(self.prepared_lists(&requests[first..next], report)?);
                first = next;
                needed.clear();
            }
            for (row, begin) in wanted {
                self.prepare(row, request.at);
                needed.entry(row).or_default().insert(begin);
            }
        }
        lists.extend(self.prepared_lists(&requests[first..], report)?);
        Ok(lists)
    }

    fn prepared_lists(
        &self,
        requests: &[Request],
        report: &mut Report,
    ) -> Result<Vec<Vec<List>>, RetrieveError> {
        let Limits { only, keep_seen, .. } = self.limits;
        let read: Vec<History> = requests.iter().map(|r| r.history.newest(self.max_len)).collect();
        let conditions: Vec<Vec<Option<u32>>> =
            requests.iter().map(|r| r.asks.iter().map(|ask| ask.condition).collect()).collect();
        let asked: Vec<Asked<'_>> = read
            .iter()
            .zip(&conditions)
            .filter(|(history, conditions)| !history.is_empty() && !conditions.is_empty())
            .map(|(history, conditions)| Asked { history, conditions })
            .collect();
        let states = match &asked[..] {
            [] => Vec::new(),
            asked => hidden(self.model, (self.mask, self.carriers), self.vectors, asked)?,
        };
        let seen: Vec<Vec<u32>> = requests
            .iter()
            .map(|request| if keep_seen { Vec::new() } else { request.history.seen() })
            .collect();
        let with_history = requests.iter().zip(&seen).filter(|(request, _)| !request.history.is_empty());
        let questions: Vec<Question<'_>> = with_history
            .flat_map(|(request, seen)| request.asks.iter().map(move |ask| (ask.condition, request.at, seen)))
            .zip(states.chunks_exact(self.candidates.d()))
            .map(|((condition, at, seen), vector)| Question {
                vector,
                allowed: self.allowed(condition, at, only),
                seen,
            })
            .collect();
        let mut found = self.search(&questions, report)?.into_iter();
        let mut lists = Vec::with_capacity(requests.len());
        for request in requests {
            let of_user = request.asks.iter().map(|ask| {
                let (origin, items) = match request.history.is_empty() {
                    true => (Origin::Popular, self.popular(ask.condition, request.at)),
                    false => (Origin::Model, found.next().unwrap_or_default()),
                };
                let sharpness = match (origin, ask.condition) {
                    (Origin::Model, Some(row)) => self.sharpness.get(row as usize).copied().unwrap_or(1.0),
                    _ => 1.0,
                };
                List { condition: ask.condition, weight: ask.weight, sharpness, origin, items }
            });
            lists.push(of_user.collect::<Vec<List>>());
        }
        for (request, lists) in requests.iter().zip(&lists) {
            lists.iter().for_each(|list| self.count(list, request.at, report));
        }
        Ok(lists)
    }

    /// The popular items among those that carry the condition, if there is one.
    fn popular(&self, condition: Option<u32>, at: i64) -> Vec<Scored> {
        let allowed = self.allowed(condition, at, true);
        let places = self.popularity.places();
        let placed = (1..allowed.len() as u32)
            .filter(|&item| allowed[item as usize])
            .map(|item| Scored { item, score: places[item as usize] });
        let best = self.candidates.best(placed, self.limits.k).into_iter();
        best.map(|Scored { item, .. }| Scored { item, score: self.counts[item as usize] as f32 }).collect()
    }

    fn search(
        &self,
        questions: &[Question<'_>],
        report: &mut Report,
    ) -> Result<Vec<Vec<Scored>>, RetrieveError> {
        let k = self.limits.k;
        let Some(graph) = &self.graph else { return Ok(self.candidates.search(questions, k)?) };
        let found: Vec<Option<Vec<Scored>>> = questions
            .par_iter()
            .map_init(Search::default, |search, question| graph.search(question, k, search))
            .collect();
        let missing: Vec<Question<'_>> =
            questions.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(&q, _)| q).collect();
        let answered: Vec<usize> =
            found.iter().enumerate().filter(|(_, found)| found.is_some()).map(|(i, _)| i).collect();
        let mut exact = self.candidates.search(&missing, k)?.into_iter();
        let found: Vec<Vec<Scored>> =
            found.into_iter().map(|found| found.or_else(|| exact.next()).unwrap_or_default()).collect();
        let sample: Vec<usize> = report.graph.sample(&answered).collect();
        let asked: Vec<Question<'_>> = sample.iter().map(|&i| questions[i]).collect();
        let exact = self.candidates.search(&asked, k)?;
        let pairs = sample.iter().map(|&i| &found[i]).zip(&exact);
        report.graph.add(questions.len(), missing.len(), pairs);
        Ok(found)
    }

    fn count(&self, list: &List, at: i64, report: &mut Report) {
        report.lists += 1;
        report.short_lists += usize::from(list.items.len() < self.limits.k);
        if list.origin == Origin::Popular {
            report.popular_lists += 1;
        } else if let Some(pool) = list.condition.and_then(|row| self.pool(row, at)) {
            let carried = list.items.iter().filter(|scored| pool.carries[scored.item as usize]).count();
            report.compliance.add(carried, list.items.len());
        }
    }
}
