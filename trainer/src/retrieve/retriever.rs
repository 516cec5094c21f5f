//! From requests to lists: the model part, then the search; popular items for users of whom nothing is visible.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::histories::History;
use super::report::Report;
use crate::data::conditions::Carriers;
use crate::serve::{
    Answers, Filter, List, Origin, Popularity, Question, Read, Reading, RecommendError, Recommender, Scored,
    TopK,
};

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
    /// What is asked.
    pub recommender: &'a dyn Recommender,
    /// The most events of a history that it reads.
    pub max_len: usize,
    /// Which items carry which conditions.
    pub carriers: &'a Carriers,
    /// By item index, whether it may be in any list.
    pub retrievable: Vec<bool>,
    /// Training events by item index.
    pub counts: Vec<u32>,
    /// What orders items as these counts do.
    popularity: Popularity,
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
    /// For lists of items that are `retrievable`; `counts` are training events. Both are by item index.
    pub fn new(
        recommender: &'a dyn Recommender,
        max_len: usize,
        carriers: &'a Carriers,
        (retrievable, counts): (Vec<bool>, Vec<u32>),
        limits: Limits,
    ) -> Self {
        let (popularity, pools) = (Popularity::new(&counts), BTreeMap::new());
        Self { recommender, max_len, carriers, retrievable, counts, popularity, limits, pools }
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
    ) -> Result<Vec<Vec<List>>, RecommendError> {
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
    ) -> Result<Vec<Vec<List>>, RecommendError> {
        let Limits { only, keep_seen, .. } = self.limits;
        let read: Vec<History> = requests.iter().map(|r| r.history.newest(self.max_len)).collect();
        let asked: Vec<(&Request, &History)> =
            requests.iter().zip(&read).filter(|(_, history)| !history.is_empty()).collect();
        let reads = |&(request, history): &(&Request, &History)| -> Vec<Read> {
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
        let seen = |(request, _): &(&Request, &History)| match keep_seen {
            true => Vec::new(),
            false => request.history.seen(),
        };
        let seen: Vec<Vec<u32>> = asked.iter().map(seen).collect();
        let filters: Vec<[Filter<'_>; 1]> = asked
            .iter()
            .zip(&seen)
            .flat_map(|((request, _), seen)| {
                request.asks.iter().map(move |ask| {
                    [Filter { allowed: self.allowed(ask.condition, request.at, only), seen, carrying: None }]
                })
            })
            .collect();
        let questions: Vec<Question<'_>> =
            filters.iter().enumerate().map(|(answer, filters)| Question { answer, filters }).collect();
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

    /// The popular items among those that carry the condition, if there is one.
    fn popular(&self, condition: Option<u32>, at: i64) -> Vec<Scored> {
        let allowed = self.allowed(condition, at, true);
        let places = self.popularity.places();
        let placed = (1..allowed.len() as u32)
            .filter(|&item| allowed[item as usize])
            .map(|item| Scored { item, score: places[item as usize] });
        let mut best = TopK::new(self.limits.k, self.recommender.seed());
        placed.for_each(|Scored { item, score }| best.add(item, score));
        best.into_sorted()
            .into_iter()
            .map(|Scored { item, .. }| Scored { item, score: self.counts[item as usize] as f32 })
            .collect()
    }

    fn search(
        &self,
        answers: &dyn Answers,
        questions: &[Question<'_>],
        report: &mut Report,
    ) -> Result<Vec<Vec<Scored>>, RecommendError> {
        let k = self.limits.k;
        let Some(found) = answers.approximate(questions, k) else { return Ok(answers.best(questions, k)?) };
        let missing: Vec<Question<'_>> =
            questions.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(&q, _)| q).collect();
        let answered: Vec<usize> =
            found.iter().enumerate().filter(|(_, found)| found.is_some()).map(|(i, _)| i).collect();
        let mut exact = answers.best(&missing, k)?.into_iter();
        let found: Vec<Vec<Scored>> =
            found.into_iter().map(|found| found.or_else(|| exact.next()).unwrap_or_default()).collect();
        let sample: Vec<usize> = report.graph.sample(&answered).collect();
        let asked: Vec<Question<'_>> = sample.iter().map(|&i| questions[i]).collect();
        let exact = answers.best(&asked, k)?;
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
