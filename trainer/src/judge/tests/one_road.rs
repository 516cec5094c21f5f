//! Evaluation measures what is served: the rank of a target equals its place in the list served to a request at the target's time
//! with the same filters.

use proptest::prelude::*;
use schemas::config::MaskMode;
use schemas::history::DeltaTau;

use super::*;
use crate::retrieve::{
    Ask, ListLimits, ListRequest, RetrieveReport, Retriever, Stored, VisibleHistory, visible_at,
};

const MARGIN_MS: i64 = 900_000;
/// Histories fit into one row, so a request reads the events of the row.
const MAX_LEN: usize = 12;

/// Users of `data` whose last event is a test target.
struct World {
    data: SequencesTable,
    catalogue: Catalogue,
    conditions: KnownConditions,
    carriers: Carriers,
}

impl World {
    fn new(histories: &[Vec<(u32, i64)>]) -> Self {
        let mut data = sequences(histories, MARGIN_MS);
        data.max_len = MAX_LEN;
        for row in 0..data.rows() {
            data.users[row] = format!("u{row}");
            data.roles[data.offsets[row + 1] - 1] = Role::Test;
        }
        let mut catalogue = catalogue();
        catalogue.active[5] = false;
        let conditions = KnownConditions::new(&["genre".into()], &Default::default(), &catalogue);
        let carriers = Carriers::new(&conditions, &Default::default(), &catalogue);
        Self { data, catalogue, conditions, carriers }
    }

    /// Returns the history visible to a request at the time of `target`; protocol `standard` hides no earlier event.
    fn history(&self, target: &Target, protocol: Protocol) -> VisibleHistory {
        let stored = Stored::new(&self.data);
        let history = stored.history(&self.data.users[self.data.user[target.row] as usize]).unwrap();
        let events = match protocol {
            Protocol::Standard => target.t,
            Protocol::AsServed => {
                let at = self.data.ts[self.data.row(target.row).start + target.t];
                visible_at(&history.ts, at, DeltaTau::Margin(MARGIN_MS))
            }
        };
        history.prefix(events)
    }

    /// Returns the place of the target's item in the list that `retrieve` serves, from 1.
    fn place(
        &self,
        model: &dyn Recommender,
        target: &Target,
        protocol: Protocol,
        condition: Option<ConditionRow>,
        filters: Filters,
    ) -> Option<u32> {
        let limits = ListLimits { k: ITEMS as usize, only: filters.condition, keep_seen: !filters.seen };
        let counts = vec![1; ITEMS as usize + 1];
        let retrievable = self.catalogue.active.clone();
        let mut retriever = Retriever::new(model, MAX_LEN, &self.carriers, retrievable, counts, limits);
        let request = ListRequest {
            at: self.data.ts[self.data.row(target.row).start + target.t],
            history: self.history(target, protocol),
            asks: vec![Ask { condition, weight: 1.0 }],
            ..ListRequest::default()
        };
        let lists = retriever.lists(&[request], &mut RetrieveReport::default()).unwrap();
        let place = lists[0][0].items.iter().position(|scored| scored.item == target.item);
        place.map(|place| place as u32 + 1)
    }

    /// Compares the ranks of all targets with their places in served lists.
    fn check(&self, model: &dyn Recommender, instructed: bool) -> Result<(), TestCaseError> {
        let config = Evaluate { batch_size: 3, ..Evaluate::default() };
        let evaluation = Evaluation::new(&self.data, &self.catalogue, &config, SEED, Role::Test);
        for protocol in Protocol::ALL {
            let ranks = evaluation.ranks(model, protocol).unwrap();
            for ((target, _), ranks) in evaluation.asked(protocol).into_iter().zip(ranks) {
                for seen in [true, false] {
                    let filters = Filters { seen, condition: false };
                    let place = self.place(model, target, protocol, None, filters);
                    prop_assert_eq!(ranks.among(seen), place, "{:?} {:?} {:?}", target, protocol, filters);
                }
            }
            if !instructed {
                continue;
            }
            let known = AskedConditions { conditions: &self.conditions, carriers: &self.carriers };
            let questions = evaluation.questions(known, protocol, &["genre"]).unwrap();
            let answers = evaluation.answers(model, known, protocol, &questions).unwrap();
            for (question, answers) in questions.iter().zip(answers) {
                for (filters, answer) in Filters::ALL.into_iter().zip(answers) {
                    let condition = Some(question.condition);
                    let place = self.place(model, question.target, protocol, condition, filters);
                    prop_assert_eq!(answer.rank, place, "{:?} {:?} {:?}", question, protocol, filters);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_rank_is_the_place_at_which_the_item_is_served(
        histories in prop::collection::vec(
            prop::collection::vec((1..=ITEMS, prop::sample::select(vec![0i64, 60, 600, 1_200, 90_000])), 2..MAX_LEN),
            1..6,
        ),
    ) {
        let world = World::new(&histories);
        let serving = |carriers| Serving { items: ITEMS as usize, carriers, seed: SEED, batch: 5, graph: None };
        for mask in [MaskMode::Gather, MaskMode::Row, MaskMode::None] {
            for architecture in &ARCHITECTURES {
                let model = random_model(architecture, mask);
                world.check(&*TrainedModel::recommender(&model, serving(None)).unwrap(), false)?;
            }
        }
        for paradigm in schemas::config::Paradigm::ALL {
            let model = random_taught(&Sft { paradigm, ..Sft::default() });
            world.check(&*TrainedModel::recommender(&model, serving(Some(&world.carriers))).unwrap(), true)?;
        }
        let counts = world.data.training_counts(ITEMS as usize);
        world.check(&Popular { popularity: PopularityOrder::new(&counts), seed: SEED }, false)?;
        world.check(&CoOccurrence::new(Followers::of_training(&world.data), &counts, SEED), false)?;
    }
}
