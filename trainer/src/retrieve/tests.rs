//! Properties of retrieval, on a model with random values that knows genres.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use schemas::config::{Architecture, MaskMode, Model, Paradigm, Sft};
use schemas::hash::mix64;
use schemas::history::DeltaTau;

use super::*;
use crate::data::conditions::{Carriers, KnownConditions};
use crate::data::vocabulary::Vocabulary;
use crate::data::{Catalogue, ConditionRow, ItemIndex};
use crate::device::Backend;
use crate::models::{CONDITION_PREFIX, SequenceModel};
use crate::serve::{DotProduct, GraphSetting, List, Merge, Origin, Recommender, Serving, merge};

const ITEMS: u32 = 60;

/// A model and its carriers; by turns, items have genre "a", genres "b" and "c", and no genre.
struct World {
    model: SequenceModel,
    carriers: Carriers,
}

/// Returns the mask of retrievable items: all but item 7.
fn retrievable() -> Vec<bool> {
    (0..=ITEMS).map(|item| item > 0 && item != 7).collect()
}

fn world(architecture: Architecture, mask: MaskMode, paradigm: Paradigm) -> World {
    let genres: [&[&str]; 3] = [&["a"], &["b", "c"], &[]];
    let ids: Vec<String> = (1..=ITEMS).map(|i| i.to_string()).collect();
    let items: Vec<_> = ids.iter().enumerate().map(|(i, id)| (id.as_str(), genres[i % 3])).collect();
    let catalogue = Catalogue::example(&items);
    let branches = if architecture == Architecture::ClimberPilot { 2 } else { 1 };
    let config = Model { architecture, d: 8, layers: 2, heads: 2, branches, mask, ..Model::default() };
    let config = Model { attributes: vec!["genre".into()], feed_forward: 2, hash_buckets: 4, ..config };
    let conditions = KnownConditions::new(&["genre".into()], &BTreeMap::new(), &catalogue);
    let carriers = Carriers::new(&conditions, &BTreeMap::new(), &catalogue);
    let mut vocabulary = Vocabulary::new(&config, &catalogue, &vec![9; ITEMS as usize + 1]);
    if branches > 1 {
        vocabulary = vocabulary.with_conditions(conditions);
    }
    let sft = Sft { paradigm, ..Sft::default() };
    let model = SequenceModel::new(&config, &sft, Arc::new(vocabulary), 1, &Backend::CPU).unwrap();
    for (name, var) in model.parameters().iter() {
        let size = if name.starts_with(CONDITION_PREFIX) { 0.5 } else { 0.3 };
        let noise =
            |i: usize| ((mix64(name.len() as u64, i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size;
        let noise =
            Tensor::from_vec((0..var.elem_count()).map(noise).collect(), var.shape(), &Device::Cpu).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    World { model, carriers }
}

impl World {
    fn recommender(&self) -> DotProduct<'_> {
        self.searching(None)
    }

    fn searching<'a>(&'a self, graph: Option<GraphSetting<'a>>) -> DotProduct<'a> {
        let items = ITEMS as usize;
        let serving = Serving { items, carriers: Some(&self.carriers), seed: 1, batch: usize::MAX, graph };
        DotProduct::new(&self.model, serving).unwrap()
    }

    fn retriever<'a>(&'a self, recommender: &'a dyn Recommender, limits: ListLimits) -> Retriever<'a> {
        let counts = (0..=ITEMS).map(|i| i * 7 % 31).collect();
        let mut retriever = Retriever::new(recommender, 6, &self.carriers, retrievable(), counts, limits);
        for row in 0..3 {
            retriever.prepare(row.into(), 0);
        }
        retriever
    }
}

const LIMITS: ListLimits = ListLimits { k: 10, only: false, keep_seen: false };

fn request(items: &[u32], conditions: &[Option<u32>]) -> ListRequest {
    let events = items.iter().zip(0..).map(|(&item, i)| (item.into(), i * 60_000)).collect();
    let asks =
        conditions.iter().map(|&row| Ask { condition: row.map(ConditionRow::new), weight: 1.0 }).collect();
    let history = VisibleHistory::from_events(events, DeltaTau::Margin(90_000));
    ListRequest { user_id: "u".into(), line: None, at: 0, history, asks }
}

fn items(list: &List) -> Vec<u32> {
    list.items.iter().map(|scored| scored.item.get()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// §3.4.2: a batch of users and conditions gives the same lists as each user and condition alone.
    #[test]
    fn together_is_one_by_one(
        users in prop::collection::vec(
            (prop::collection::vec(1..=ITEMS, 0..12), prop::collection::vec(prop::option::of(0u32..3), 0..5)),
            1..5,
        ),
        which in 0usize..Paradigm::ALL.len(),
        mask in prop::sample::select(vec![MaskMode::Gather, MaskMode::Row, MaskMode::None]),
    ) {
        let world = world(Architecture::ClimberPilot, mask, Paradigm::ALL[which]);
        let recommender = world.recommender();
        let mut retriever = world.retriever(&recommender, LIMITS);
        let requests: Vec<ListRequest> = users.iter().map(|(items, asks)| request(items, asks)).collect();
        let mut report = RetrieveReport::default();
        let together = retriever.lists(&requests, &mut report).unwrap();
        prop_assert_eq!(report.lists, users.iter().map(|(_, asks)| asks.len()).sum::<usize>());
        for ((items, asks), lists) in users.iter().zip(together) {
            prop_assert_eq!(lists.len(), asks.len());
            for (ask, list) in asks.iter().zip(lists) {
                let alone = retriever.lists(&[request(items, &[*ask])], &mut RetrieveReport::default()).unwrap().remove(0).remove(0);
                prop_assert_eq!(list.condition.map(u32::from), *ask);
                prop_assert_eq!(list.items.len(), alone.items.len());
                for (a, b) in list.items.iter().zip(&alone.items) {
                    prop_assert!((a.score - b.score).abs() < 1e-3, "{:?} {:?}", list, alone);
                }
            }
        }
    }

    /// Lists contain no seen, denied or non-carrying item where these are excluded, and rank all other items.
    #[test]
    fn lists_leave_out_what_they_are_told_to(
        history in prop::collection::vec(1..=ITEMS, 0..30),
        only in any::<bool>(),
        keep_seen in any::<bool>(),
        k in 1usize..70,
    ) {
        let world = world(Architecture::ClimberPilot, MaskMode::Gather, Paradigm::Cgsa);
        let recommender = world.recommender();
        let mut retriever = world.retriever(&recommender, ListLimits { k, only, keep_seen });
        let mut report = RetrieveReport { k, ..RetrieveReport::default() };
        let lists = retriever.lists(&[request(&history, &[None, Some(0), Some(2)])], &mut report).unwrap().remove(0);
        for list in &lists {
            let pool = list.condition.map(|row| world.carriers.pool(row, 0));
            let limited = only || history.is_empty();
            let may = |item: &u32| {
                *item != 7 && (keep_seen || !history.contains(item))
                    && !(limited && pool.as_ref().is_some_and(|pool| !pool[*item as usize]))
            };
            let mut found = items(list);
            prop_assert_eq!(found.len(), k.min((1..=ITEMS).filter(|item| may(item)).count()));
            prop_assert!(found.iter().all(may));
            prop_assert!(list.items.is_sorted_by(|a, b| a.score >= b.score));
            found.sort_unstable();
            found.dedup();
            prop_assert_eq!(found.len(), list.items.len());
        }
        if only && !history.is_empty() {
            prop_assert!(report.compliance.value().is_none_or(|cc| cc == 1.0));
        }
    }
}

#[test]
fn other_architectures_retrieve_too() {
    for architecture in [Architecture::Sasrec, Architecture::Hstu] {
        let world = world(architecture, MaskMode::Gather, Paradigm::Cgsa);
        let recommender = world.recommender();
        let mut retriever = world.retriever(&recommender, LIMITS);
        let requests = [request(&[1, 2, 3], &[None]), request(&[4], &[None])];
        let lists = retriever.lists(&requests, &mut RetrieveReport::default()).unwrap();
        for (request, lists) in requests.iter().zip(lists) {
            assert_eq!(lists[0].items.len(), 10);
            assert!(items(&lists[0]).iter().all(|&item| !request.history.items.contains(&item.into())));
        }
    }
}

#[test]
fn users_without_history_get_popular_items_by_condition() {
    let world = world(Architecture::ClimberPilot, MaskMode::Gather, Paradigm::Cgsa);
    let recommender = world.recommender();
    let mut retriever = world.retriever(&recommender, ListLimits { k: 3, ..LIMITS });
    let mut report = RetrieveReport { k: 3, ..RetrieveReport::default() };
    let lists = retriever.lists(&[request(&[], &[None, Some(0)])], &mut report).unwrap().remove(0);
    let counts = |item: u32| (item * 7 % 31) as f32;
    let mut best: Vec<f32> = (1..=ITEMS).filter(|&i| i != 7).map(counts).collect();
    best.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(lists[0].items.iter().map(|s| s.score).collect::<Vec<_>>(), best[..3]);
    assert!(lists.iter().all(|list| list.origin == Origin::Popular && list.items.len() == 3));
    assert!(items(&lists[1]).iter().all(|item| item % 3 == 1), "carriers only: {lists:?}");
    assert_eq!((report.popular_lists, report.compliance.value()), (2, None));
}

#[test]
fn a_graph_gives_the_exact_lists_and_says_how_often_it_did_not() {
    let world = world(Architecture::ClimberPilot, MaskMode::Gather, Paradigm::Cgsa);
    let requests: Vec<ListRequest> =
        (1..40).map(|i| request(&[i, i + 1, i * 5 % ITEMS + 1], &[None, Some(i % 3)])).collect();
    let limits = ListLimits { only: true, ..LIMITS };
    let exact = world.recommender();
    let exact = world.retriever(&exact, limits).lists(&requests, &mut RetrieveReport::default()).unwrap();
    let retrievable = retrievable();
    let graph = world.searching(Some(GraphSetting { ef: 40, retrievable: &retrievable }));
    let mut retriever = world.retriever(&graph, limits);
    let mut report = RetrieveReport::default();
    let found = retriever.lists(&requests, &mut report).unwrap();
    assert_eq!(report.graph.searches, 78);
    // Searches repeated exactly are not samples of the graph.
    let answered = 78 - report.graph.exact_instead;
    assert!(answered > 10 && report.graph.exact_instead > 10, "{report:?}");
    assert_eq!(report.graph.sampled, answered.min(64));
    assert!(report.graph.recall.value().unwrap() > 0.9, "{report:?}");
    assert!(found.iter().flatten().all(|list| list.items.len() == 10));
    let same =
        exact.iter().flatten().zip(found.iter().flatten()).filter(|(a, b)| items(a) == items(b)).count();
    assert!(same > 70, "{same}");
}

#[test]
fn recall_is_of_what_the_graph_answered_itself() {
    let world = world(Architecture::ClimberPilot, MaskMode::Gather, Paradigm::Cgsa);
    // The graph finds 10 items; seen items and filters leave fewer, so the exact search takes over.
    let retrievable = retrievable();
    let graph = world.searching(Some(GraphSetting { ef: 10, retrievable: &retrievable }));
    let mut retriever = world.retriever(&graph, ListLimits { only: true, ..LIMITS });
    let requests: Vec<ListRequest> = (1..20).map(|i| request(&[i, i + 1], &[Some(0), Some(1)])).collect();
    let mut report = RetrieveReport::default();
    retriever.lists(&requests, &mut report).unwrap();
    let graph = &report.graph;
    assert!(graph.searches == 38 && graph.exact_instead > 10, "{graph:?}");
    assert_eq!(graph.sampled, 38 - graph.exact_instead);
    let mut none = RetrieveReport { k: 10, ..RetrieveReport::default() };
    none.graph.add(3, 3, std::iter::empty());
    assert_eq!(none.graph.recall.value(), None);
    assert!(none.to_string().contains("recall@10 – on 0 of the 0 searches"), "{none}");
}

#[test]
fn the_sample_is_spread_over_the_batch() {
    let graph = GraphReport::default();
    let answered: Vec<usize> = (0..400).map(|i| 3 * i).collect();
    let sample: Vec<usize> = graph.sample(&answered).collect();
    assert!(sample.len() == 64 && sample.is_sorted_by(|a, b| a < b));
    assert!(sample[0] == 0 && sample[63] > 3 * 390);
    assert_eq!(graph.sample(&answered[..5]).collect::<Vec<_>>(), answered[..5]);
    assert_eq!(graph.sample(&[]).count(), 0);
}

#[test]
fn lists_under_cosines_are_merged_without_each_conditions_factor() {
    let world = world(Architecture::ClimberPilot, MaskMode::Gather, Paradigm::Cgsa);
    let mut model = world.model.clone();
    let asked = [request(&[1, 2, 3, 4], &[None, Some(0), Some(1)])];
    let mut merged = Vec::new();
    for factors in [[0f32; 3], [1.5, -1.0, 0.5]] {
        let config = Model {
            d: 8,
            layers: 2,
            heads: 2,
            branches: 2,
            feed_forward: 2,
            hash_buckets: 4,
            attributes: vec!["genre".into()],
            score_temperature: 0.1,
            ..Model::default()
        };
        let vocabulary = model.vocabulary().clone();
        model = SequenceModel::new(&config, &Sft::default(), vocabulary, 1, &Backend::CPU).unwrap();
        for (name, var) in model.parameters().iter().filter(|(name, _)| name.ends_with("sharpness")) {
            assert_eq!(var.dims(), [3, 1], "{name}");
            var.set(&Tensor::from_slice(&factors, (3, 1), &Device::Cpu).unwrap()).unwrap();
        }
        let world = World { model: model.clone(), carriers: world.carriers.clone() };
        let recommender = world.recommender();
        let lists = world
            .retriever(&recommender, LIMITS)
            .lists(&asked, &mut RetrieveReport::default())
            .unwrap()
            .remove(0);
        assert!((lists[1].sharpness - factors[0].exp()).abs() < 1e-6 && lists[0].sharpness == 1.0);
        let of: Vec<(ItemIndex, Option<ConditionRow>)> =
            merge(&lists, Merge::Score, 10).iter().map(|m| (m.scored.item, m.condition)).collect();
        merged.push(of);
    }
    assert_eq!(merged[0], merged[1]);
}

#[test]
fn pools_age_with_the_time_of_each_request() {
    const DAY: i64 = 86_400_000;
    let world = world(Architecture::ClimberPilot, MaskMode::Gather, Paradigm::Cgsa);
    let ids: Vec<String> = (1..=ITEMS).map(|i| i.to_string()).collect();
    let all: Vec<(&str, &[&str])> = ids.iter().map(|id| (id.as_str(), &[][..])).collect();
    let mut catalogue = Catalogue::example(&all);
    // Item `i` is released on day `i`.
    catalogue.release_ts = (0..=i64::from(ITEMS)).map(|day| Some(day * DAY)).collect();
    let derived = schemas::config::Conditions::default().derived;
    let new_for = derived["new-release"].max_age.unwrap().ms / DAY;
    let conditions = KnownConditions::new(&["new-release".into()], &derived, &catalogue);
    let carriers = Carriers::new(&conditions, &derived, &catalogue);
    let retrievable: Vec<bool> = (0..=ITEMS).map(|item| item > 0).collect();
    let limits = ListLimits { k: 60, only: true, keep_seen: false };
    let counts = vec![1; ITEMS as usize + 1];
    let recommender = world.recommender();
    let mut retriever = Retriever::new(&recommender, 6, &carriers, retrievable, counts, limits);
    // Ascending and descending times, within and across batches, need more pools than the cache holds.
    let times = [10, 40, 45, 20, 59, 60, 61, 30, 75, 10, 90, 12, 200].map(|day| day * DAY + 5);
    for batch in times.chunks(5) {
        let requests: Vec<ListRequest> =
            batch.iter().map(|&at| ListRequest { at, ..request(&[], &[Some(0)]) }).collect();
        let lists = retriever.lists(&requests, &mut RetrieveReport::default()).unwrap();
        for (&at, lists) in batch.iter().zip(&lists) {
            let mut found = items(&lists[0]);
            found.sort_unstable();
            // Unreleased items count as new.
            let oldest = at / DAY - new_for + 1;
            let expected: Vec<u32> = (1..=ITEMS).filter(|&item| i64::from(item) >= oldest).collect();
            assert_eq!(found, expected, "day {}", at / DAY);
            assert_eq!(retriever.prepare(0.into(), at), expected.len());
        }
    }
}
