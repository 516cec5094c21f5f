//! From requests to lists: the model reads the histories, then the search finds the items; users without visible events get
//! popular items. Memory: a batch of answers, and two masks over all items per pool, at most four pools per condition.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::histories::VisibleHistory;
use super::report::RetrieveReport;
use crate::data::conditions::Carriers;
use crate::data::{ConditionRow, ItemIndex};
use crate::serve::{
    Answers, List, ListFilter, ListQuery, Origin, PopularityOrder, Read, Reading, RecommendError,
    Recommender, Scored, TopK,
};

/// A request: the lists wanted for one user.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// User id.
    pub user_id: String,
    /// Line of standard input that it came from, from 1.
    pub line: Option<usize>,
    /// Time of the request, epoch milliseconds; derived conditions are evaluated at this time.
    pub at: i64,
    /// Events of the user that are visible to the request.
    pub history: VisibleHistory,
    /// Lists to retrieve.
    pub asks: Vec<Ask>,
}

/// One list to retrieve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    /// Condition of the list; `None` for a list without one.
    pub condition: Option<ConditionRow>,
    /// Weight of its instruction.
    pub weight: f32,
}

impl Ask {
    /// The list without a condition, weight 1.
    pub const PLAIN: Self = Self { condition: None, weight: 1.0 };
}

/// Limits on the content of lists.
#[derive(Debug, Clone, Copy)]
pub struct ListLimits {
    /// Maximum length of a list.
    pub k: usize,
    /// Whether a list with a condition contains only items that carry it.
    pub only: bool,
    /// Whether lists may contain items that the user has seen.
    pub keep_seen: bool,
}

/// Answers requests with lists.
#[derive(Debug)]
pub struct Retriever<'a> {
    /// The recommender that scores.
    pub recommender: &'a dyn Recommender,
    /// Maximum events of a history that the model reads, from the newest.
    pub max_len: usize,
    /// Which items carry which conditions.
    pub carriers: &'a Carriers,
    /// Whether an item may be in any list, by item index.
    pub retrievable: Vec<bool>,
    /// Number of training events, by item index.
    pub counts: Vec<u32>,
    /// Order of the items by `counts`.
    popularity: PopularityOrder,
    /// Limits on the content of lists.
    pub limits: ListLimits,
    /// Carriers of each condition, per interval of time; the most recently used last.
    pools: BTreeMap<ConditionRow, Vec<Pool>>,
}

/// Maximum pools cached per condition; request times mostly ascend.
const POOLS: usize = 4;

/// Carriers of a condition during an interval of time.
#[derive(Debug, Clone)]
struct Pool {
    times: Range<i64>,
    carries: Vec<bool>,
    /// Carriers that are retrievable.
    retrievable: Arc<Vec<bool>>,
    size: usize,
}

impl<'a> Retriever<'a> {
    /// Builds a retriever for lists of `retrievable` items; `counts` are the numbers of training events. Both are by item index.
    pub fn new(
        recommender: &'a dyn Recommender,
        max_len: usize,
        carriers: &'a Carriers,
        retrievable: Vec<bool>,
        counts: Vec<u32>,
        limits: ListLimits,
    ) -> Self {
        let (popularity, pools) = (PopularityOrder::new(&counts), BTreeMap::new());
        Self { recommender, max_len, carriers, retrievable, counts, popularity, limits, pools }
    }

    /// Caches the carriers of condition `row` at time `at` (epoch milliseconds) and returns the number that is retrievable.
    pub fn prepare(&mut self, row: ConditionRow, at: i64) -> usize {
        // Least recently used first.
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

    fn pool(&self, row: ConditionRow, at: i64) -> Option<&Pool> {
        self.pools.get(&row)?.iter().find(|pool| pool.times.contains(&at))
    }

    /// Returns the mask of items that a list at time `at` may contain.
    fn allowed(&self, condition: Option<ConditionRow>, at: i64, only: bool) -> &[bool] {
        match condition.and_then(|row| self.pool(row, at)) {
            Some(pool) if only => &pool.retrievable,
            _ => &self.retrievable,
        }
    }

    /// Returns the lists of each request, in the order of its asks.
    ///
    /// # Errors
    ///
    /// A score is not finite, or a tensor operation fails.
    pub fn lists(
        &mut self,
        requests: &[ListRequest],
        report: &mut RetrieveReport,
    ) -> Result<Vec<Vec<List>>, RecommendError> {
        let (mut lists, mut first) = (Vec::with_capacity(requests.len()), 0);
        // Starts of the cached intervals that these requests need, by condition.
        let mut needed: BTreeMap<ConditionRow, BTreeSet<i64>> = BTreeMap::new();
        for (next, request) in requests.iter().enumerate() {
            let rows: BTreeSet<ConditionRow> = request.asks.iter().filter_map(|ask| ask.condition).collect();
            let begin = |row: ConditionRow| match self.pool(row, request.at) {
                Some(pool) => pool.times.start,
                None => self.carriers.unchanged(row, request.at).start,
            };
            let wanted: Vec<(ConditionRow, i64)> = rows.iter().map(|&row| (row, begin(row))).collect();
            let is_too_much = |(row, begin): &(ConditionRow, i64)| {
                needed.get(row).is_some_and(|begins| begins.len() == POOLS && !begins.contains(begin))
            };
            // If more pools are needed than fit the cache, the requests so far are answered first.
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
        requests: &[ListRequest],
        report: &mut RetrieveReport,
    ) -> Result<Vec<Vec<List>>, RecommendError> {
        let ListLimits { only, keep_seen, .. } = self.limits;
        let read: Vec<VisibleHistory> = requests.iter().map(|r| r.history.newest(self.max_len)).collect();
        let asked: Vec<(&ListRequest, &VisibleHistory)> =
            requests.iter().zip(&read).filter(|(_, history)| !history.is_empty()).collect();
        let reads = |&(request, history): &(&ListRequest, &VisibleHistory)| -> Vec<Read> {
            let length = history.items.len();
            request.asks.iter().map(|ask| Read { length, condition: ask.condition }).collect()
        };
        let reads: Vec<Vec<Read>> = asked.iter().map(reads).collect();
        let readings: Vec<Reading<'_>> = asked
            .iter()
            .zip(&reads)
            .map(|((_, history), reads)| Reading {
                items: &history.items,
                ts: &history.ts,
                visible: &history.visible,
                reads,
            })
            .collect();
        let answers = self.recommender.read(&readings)?;
        let seen = |(request, _): &(&ListRequest, &VisibleHistory)| match keep_seen {
            true => Vec::new(),
            false => request.history.seen(),
        };
        let seen: Vec<Vec<ItemIndex>> = asked.iter().map(seen).collect();
        let filters: Vec<[ListFilter<'_>; 1]> = asked
            .iter()
            .zip(&seen)
            .flat_map(|((request, _), seen)| {
                request.asks.iter().map(move |ask| {
                    [ListFilter {
                        allowed: self.allowed(ask.condition, request.at, only),
                        seen,
                        carrying: None,
                    }]
                })
            })
            .collect();
        let questions: Vec<ListQuery<'_>> =
            filters.iter().enumerate().map(|(answer, filters)| ListQuery { answer, filters }).collect();
        let mut found = self.search(&*answers, &questions, report)?.into_iter();
        let mut lists = Vec::with_capacity(requests.len());
        for request in requests {
            let of_user = request.asks.iter().map(|ask| {
                let (origin, items) = match request.history.is_empty() {
                    true => (Origin::Popular, self.popular(ask.condition, request.at)),
                    false => (Origin::Model, found.next().unwrap_or_default()),
                };
                let sharpness = match (origin, ask.condition) {
                    (Origin::Model, Some(row)) => self.recommender.sharpness(row),
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

    /// Returns the most popular retrievable items, among the carriers of the condition if there is one.
    fn popular(&self, condition: Option<ConditionRow>, at: i64) -> Vec<Scored> {
        let allowed = self.allowed(condition, at, true);
        let places = self.popularity.places();
        let placed = ItemIndex::all(allowed.len() - 1)
            .filter(|item| allowed[item.index()])
            .map(|item| Scored { item, score: places[item.index()] });
        let mut best = TopK::new(self.limits.k, self.recommender.seed());
        placed.for_each(|Scored { item, score }| best.add(item, score));
        best.into_sorted()
            .into_iter()
            .map(|Scored { item, .. }| Scored { item, score: self.counts[item.index()] as f32 })
            .collect()
    }

    fn search(
        &self,
        answers: &dyn Answers,
        questions: &[ListQuery<'_>],
        report: &mut RetrieveReport,
    ) -> Result<Vec<Vec<Scored>>, RecommendError> {
        let k = self.limits.k;
        let Some(found) = answers.approximate(questions, k) else { return Ok(answers.best(questions, k)?) };
        let missing: Vec<ListQuery<'_>> =
            questions.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(&q, _)| q).collect();
        let answered: Vec<usize> =
            found.iter().enumerate().filter(|(_, found)| found.is_some()).map(|(i, _)| i).collect();
        let mut exact = answers.best(&missing, k)?.into_iter();
        let found: Vec<Vec<Scored>> =
            found.into_iter().map(|found| found.or_else(|| exact.next()).unwrap_or_default()).collect();
        let sample: Vec<usize> = report.graph.sample(&answered).collect();
        let asked: Vec<ListQuery<'_>> = sample.iter().map(|&i| questions[i]).collect();
        let exact = answers.best(&asked, k)?;
        let pairs = sample.iter().map(|&i| &found[i]).zip(&exact);
        report.graph.add(questions.len(), missing.len(), pairs);
        Ok(found)
    }

    fn count(&self, list: &List, at: i64, report: &mut RetrieveReport) {
        report.lists += 1;
        report.short_lists += usize::from(list.items.len() < self.limits.k);
        if list.origin == Origin::Popular {
            report.popular_lists += 1;
        } else if let Some(pool) = list.condition.and_then(|row| self.pool(row, at)) {
            let carried = list.items.iter().filter(|scored| pool.carries[scored.item.index()]).count();
            report.compliance.add(carried, list.items.len());
        }
    }
}
