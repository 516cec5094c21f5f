//! Evaluation against brute force: each target's history encoded alone, all items scored and sorted.

mod every_metric;
mod one_road;

use std::collections::BTreeSet;

use schemas::config::{MaskMode, Sft};
use schemas::hash::mix64;

use super::condition::Filters;
use super::results::means;
use super::*;
use crate::batch::HistoryBatch;
use crate::data::{ItemIndex, Token, ids};
use crate::models::tests::instruct::random_taught;
use crate::models::tests::{
    ARCHITECTURES, ITEMS, catalogue, every_item, long_histories, random_model, row_of_all, sequences,
};
use crate::models::{Reads, SequenceModel};

const SEED: u64 = 7;

#[test]
fn events_at_one_time_are_counted_user_by_user() {
    // The first user has two rows; the second row begins with context. The second user begins when the first ends.
    let sequences = SequencesTable {
        offsets: vec![0, 4, 8, 10],
        ts: vec![1, 1, 2, 5, 2, 5, 5, 7, 7, 9],
        items: ids(&[1; 10]),
        target_from: vec![0, 2, 0],
        user: vec![0, 0, 1],
        ..SequencesTable::default()
    };
    // Owned times by user: 1 1 2 5 5 7, and 7 9.
    assert_eq!(tied_share(&sequences), Some(0.5));
    assert_eq!(tied_share(&SequencesTable { offsets: vec![0], ..SequencesTable::default() }), None);
}

/// Returns histories of different lengths whose last event is a test target; one item is inactive.
fn world() -> (SequencesTable, Catalogue) {
    let mut histories = long_histories();
    for (user, history) in histories.iter_mut().enumerate() {
        history.truncate(3 + 2 * user);
    }
    let mut data = sequences(&histories, 900_000);
    for row in 0..data.rows() {
        data.roles[data.offsets[row + 1] - 1] = Role::Test;
    }
    let mut catalogue = catalogue();
    catalogue.active[5] = false;
    (data, catalogue)
}

/// Returns the scores of all items after the first `context` events of `row`, by item, under a condition if given.
fn scores(
    model: &SequenceModel,
    data: &SequencesTable,
    (row, context): (usize, usize),
    condition: Option<(ConditionRow, &Carriers)>,
) -> Vec<f32> {
    let shown = data.row(row).start..data.row(row).start + context;
    let mut history = HistoryBatch::new(MaskMode::Gather);
    history.push(data.items[shown.clone()].iter().map(row_of_all), &data.ts[shown.clone()], &[]);
    let tokens = history.into_tokens();
    let vectors = model.item_vectors(&every_item()).unwrap().vectors;
    let histories = model.histories(&tokens, &vectors, None);
    let hidden = match condition {
        None => model.read_plain(1, &histories, &[Token::new(context as u32)]).unwrap(),
        Some((condition, carriers)) => {
            let mut matches = Vec::new();
            carriers.push_matches(&mut matches, condition, &data.items[shown.clone()], &data.ts[shown]);
            let reads =
                Reads { tokens: vec![Token::new(context as u32)], conditions: vec![condition], matches };
            model.read(1, &histories, &reads).unwrap()
        }
    };
    let candidates = model.candidates(&vectors).unwrap();
    let mut scores = vec![f32::NAN];
    scores.extend(
        hidden.matmul(&candidates.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
    );
    scores
}

/// Returns the items for which `may` is true, best first.
fn sorted(scores: &[f32], may: impl Fn(ItemIndex) -> bool) -> Vec<ItemIndex> {
    let mut items: Vec<ItemIndex> = every_item().into_iter().filter(|&item| may(item)).collect();
    let order = |item: ItemIndex| mix64(SEED, u64::from(item.get()));
    items.sort_by(|&a, &b| {
        scores[b.index()].total_cmp(&scores[a.index()]).then_with(|| order(a).cmp(&order(b)))
    });
    items
}

/// A request id that appears again hides more from a later target than from an earlier one.
#[test]
fn the_rank_of_a_target_does_not_depend_on_the_others_of_its_row() {
    let histories: Vec<Vec<(u32, i64)>> =
        (0..3).map(|user| (0..6).map(|t| (1 + (3 * user + 2 * t) % ITEMS, 3_600)).collect()).collect();
    let mut data = sequences(&histories, 900_000);
    data.visible = [[0, 1, 2, 1, 4, 2], [0, 1, 1, 1, 3, 1], [0, 0, 2, 3, 1, 5]].concat();
    data.roles.fill(Role::Test);
    let (catalogue, config) = (catalogue(), Evaluate { batch_size: 4, ..Evaluate::default() });
    let conditions = KnownConditions::new(&["genre".into()], &Default::default(), &catalogue);
    let carriers = Carriers::new(&conditions, &Default::default(), &catalogue);
    let known = AskedConditions { conditions: &conditions, carriers: &carriers };
    let check = |model: &SequenceModel, instructed: bool| {
        let together = Evaluation::new(&data, &catalogue, &config, SEED, Role::Test);
        let serving = together.serving(instructed.then_some(&carriers));
        let model = TrainedModel::recommender(model, serving).unwrap();
        for protocol in Protocol::ALL {
            let ranks = together.ranks(&*model, protocol).unwrap();
            let asked = together.asked(protocol);
            assert_eq!(ranks.len(), asked.len());
            for (&(target, _), ranks) in asked.iter().zip(ranks) {
                let alone = Evaluation {
                    targets: vec![target.clone()],
                    ..Evaluation::new(&data, &catalogue, &config, SEED, Role::Test)
                };
                assert_eq!(alone.ranks(&*model, protocol).unwrap(), [ranks], "{target:?} {protocol:?}");
            }
            if !instructed {
                continue;
            }
            let questions = together.questions(known, protocol, &["genre"]).unwrap();
            let answers = together.answers(&*model, known, protocol, &questions).unwrap();
            for (question, answers) in questions.iter().zip(answers) {
                let alone =
                    together.answers(&*model, known, protocol, std::slice::from_ref(question)).unwrap();
                assert_eq!(alone, [answers], "{question:?} {protocol:?}");
            }
        }
    };
    for mask in [MaskMode::Gather, MaskMode::Row, MaskMode::None] {
        ARCHITECTURES.iter().for_each(|architecture| check(&random_model(architecture, mask), false));
    }
    for paradigm in schemas::config::Paradigm::ALL {
        check(&random_taught(&Sft { paradigm, ..Sft::default() }), true);
    }
}

#[test]
fn ranks_and_means_are_those_of_sorting_everything() {
    let (data, catalogue) = world();
    let model = random_taught(&Sft::default());
    let config = Evaluate { batch_size: 3, ..Evaluate::default() };
    let evaluation = Evaluation::new(&data, &catalogue, &config, SEED, Role::Test);
    assert_eq!(evaluation.len(), data.rows());
    let recommender = TrainedModel::recommender(&model, evaluation.serving(None)).unwrap();
    for protocol in Protocol::ALL {
        let mut expected = Vec::new();
        for row in 0..data.rows() {
            let last = data.row(row).end - 1;
            let context = match protocol {
                Protocol::Standard => last - data.row(row).start,
                Protocol::AsServed => data.visible[last] as usize,
            };
            if context == 0 {
                continue;
            }
            let seen: BTreeSet<ItemIndex> = data.items[data.row(row)][..context].iter().copied().collect();
            let scores = scores(&model, &data, (row, context), None);
            let place = |may: &dyn Fn(ItemIndex) -> bool| {
                let at = sorted(&scores, may).iter().position(|&item| item == data.items[last]);
                at.map(|at| at as u32 + 1)
            };
            let active = |item: ItemIndex| catalogue.active[item.index()];
            expected.push(Ranks {
                all: place(&active),
                unseen: place(&|item| active(item) && !seen.contains(&item)),
            });
        }
        assert!(expected.len() > 4 && expected.iter().any(|ranks| ranks.unseen.is_some()), "{expected:?}");
        assert_eq!(evaluation.ranks(&*recommender, protocol).unwrap(), expected, "{protocol:?}");
        let results = evaluation.model("m", &model, &[protocol]).unwrap();
        for m in results {
            let (targets, means) = means(expected.iter().map(|ranks| ranks.among(m.filter_seen)));
            assert_eq!((m.targets, m.means), (targets, means.without_condition()));
            assert_eq!(m.targets + m.no_history + m.left_out, data.rows());
        }
    }
}

#[test]
fn answers_under_conditions_are_those_of_sorting_everything() {
    let (data, catalogue) = world();
    let model = random_taught(&Sft::default());
    let conditions = model.vocabulary().conditions().clone();
    let carriers = Carriers::new(&conditions, &Default::default(), &catalogue);
    let config = Evaluate { batch_size: 3, ..Evaluate::default() };
    let evaluation = Evaluation::new(&data, &catalogue, &config, SEED, Role::Test);
    let recommender = TrainedModel::recommender(&model, evaluation.serving(Some(&carriers))).unwrap();
    let instructed = AskedConditions { conditions: &conditions, carriers: &carriers };
    let protocol = Protocol::Standard;
    let questions = evaluation.questions(instructed, protocol, &["genre"]).unwrap();
    let answers = evaluation.answers(&*recommender, instructed, protocol, &questions).unwrap();
    assert!(questions.len() > 4);
    let mut filtered_differs = false;
    for (question, answers) in questions.iter().zip(&answers) {
        let (row, context) = (question.target.row, question.context);
        let scores = scores(&model, &data, (row, context), Some((question.condition, &carriers)));
        let seen: BTreeSet<ItemIndex> = data.items[data.row(row)][..context].iter().copied().collect();
        let carries = |item: ItemIndex| carriers.carries(item, question.condition, question.at);
        for (filters, answer) in Filters::ALL.into_iter().zip(answers) {
            let list = sorted(&scores, |item| {
                catalogue.active[item.index()]
                    && !(filters.seen && seen.contains(&item))
                    && (!filters.condition || carries(item))
            });
            let place = list.iter().position(|&item| item == question.target.item);
            assert_eq!(answer.rank, place.map(|place| place as u32 + 1), "{filters:?}");
            let carried = |k: usize| list.iter().take(k).filter(|&&item| carries(item)).count() as u32;
            for (metric, value) in answer.values::<ALL>().iter().skip(OF_RANKS) {
                let share = f64::from(carried(metric.places)) / metric.places as f64;
                assert_eq!(value, &share, "{} {filters:?}", metric.name);
            }
            filtered_differs |= filters.condition && answer.rank != answers[0].rank;
        }
    }
    assert!(filtered_differs);
    // CC@K counts places, including empty ones; HR@K counts each target once, whatever its number of values.
    let results = evaluation.under_conditions("m", protocol, "genre", &questions, &answers);
    for (i, m) in results.iter().enumerate() {
        let targets: f64 = questions.iter().map(|q| q.weight).sum();
        let mean = |gain: &dyn Fn(usize) -> f64| {
            (0..questions.len()).map(|q| questions[q].weight * gain(q)).sum::<f64>() / targets
        };
        let hit = |q: usize| f64::from(u8::from(answers[q][i].rank.is_some_and(|rank| rank <= 10)));
        let compliant = |q: usize| answers[q][i].value(CC_10);
        assert!(
            (m.means[HR_10].unwrap() - mean(&hit)).abs() < 1e-12
                && (m.means[CC_10].unwrap() - mean(&compliant)).abs() < 1e-12
        );
    }
    // Without questions all means are `None`.
    let none = evaluation.under_conditions("m", protocol, "genre", &[], &[]);
    assert!(none.iter().all(|m| m.targets == 0 && m.means.values() == &[None; ALL]));
}
