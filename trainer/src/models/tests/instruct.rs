//! Properties of following instructions under every paradigm.

use proptest::prelude::*;
use schemas::config::Paradigm;

use super::*;
use crate::data::conditions::{Carriers, KnownConditions};
use crate::models::instruct::Reads;

fn settings(paradigm: Paradigm, condition_embedding: bool) -> Sft {
    Sft { paradigm, condition_embedding, ..Sft::default() }
}

/// CGSA without its embedding, then every paradigm.
fn all_settings() -> Vec<Sft> {
    let mut all = vec![settings(Paradigm::Cgsa, false)];
    all.extend(Paradigm::ALL.map(|paradigm| settings(paradigm, true)));
    all
}

/// `parent` extended to follow genres, before any fine-tuning.
fn taught(parent: &SequenceModel, sft: &Sft) -> SequenceModel {
    let catalogue = catalogue();
    let conditions = KnownConditions::new(&["genre".into()], &Default::default(), &catalogue);
    let vocabulary = Arc::new(parent.vocabulary().with_conditions(conditions));
    let model = config(&Architecture::ClimberPilot, MaskMode::Gather);
    SequenceModel::taught(parent, &model, sft, vocabulary, 3).unwrap()
}

/// A model with random instruction parameters.
pub(crate) fn random_taught(sft: &Sft) -> SequenceModel {
    let taught = taught(&model(MaskMode::Gather), sft);
    for (name, var) in taught.parameters().iter().filter(|(name, _)| name.starts_with(CONDITION_PREFIX)) {
        let noise = parameters::normal(5, name, var.elem_count(), 0.5).unwrap();
        var.set(&Tensor::from_vec(noise, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    taught
}

#[test]
fn conditions_begin_with_what_another_model_has_learned() {
    for sft in all_settings() {
        let (known, new) = (random_taught(&sft), taught(&model(MaskMode::Gather), &sft));
        let before = new.tensors();
        new.set_conditions(&known).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, known) in known.tensors() {
            let expected = if name.starts_with(CONDITION_PREFIX) { &known } else { &before[&name] };
            assert_eq!(values(&new.tensors()[&name]), values(expected), "{name}");
        }
    }
}

/// Histories of item indexes, one minute between events.
fn tokens(histories: &[Vec<u32>]) -> Tokens {
    let mut batch = crate::batch::HistoryBatch::new(MaskMode::Gather);
    for items in histories {
        let times: Vec<i64> = (0..items.len() as i64).map(|i| i * 60_000).collect();
        batch.push(ids(items), &times, &[]);
    }
    batch.into_tokens()
}

/// Reads at (token, condition).
fn reads(tokens: &Tokens, at: &[(u32, u32)]) -> Reads {
    let catalogue = catalogue();
    let conditions = KnownConditions::new(&["genre".into()], &Default::default(), &catalogue);
    let carriers = Carriers::new(&conditions, &Default::default(), &catalogue);
    let mut reads = Reads::default();
    for &(token, condition) in at {
        let condition = condition.into();
        let offsets = &tokens.layout.offsets;
        let start = offsets[offsets.partition_point(|&o| o <= token as usize) - 1];
        let items = &tokens.embedding[start + 1..=token as usize];
        carriers.push_matches(
            &mut reads.matches,
            condition,
            from_u32s(as_u32s(items)),
            &vec![0; items.len()],
        );
        reads.tokens.push(token.into());
        reads.conditions.push(condition);
    }
    reads
}

fn vectors(model: &SequenceModel) -> Tensor {
    model.item_vectors(&every_item()).unwrap().vectors
}

fn read(model: &SequenceModel, k: usize, tokens: &Tokens, reads: &Reads) -> Vec<Vec<f32>> {
    let vectors = vectors(model);
    let histories = model.histories(tokens, &vectors, None);
    model.read(k, &histories, reads).unwrap().to_vec2().unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn what_is_new_changes_nothing_before_it_has_learned() {
    let parent = model(MaskMode::Gather);
    let tokens = tokens(&[vec![1, 4, 7, 10, 1], vec![2, 3]]);
    let reads = reads(&tokens, &[(5, 0), (7, 0), (8, 1)]);
    let vectors = vectors(&parent);
    let backbone = parent.backbone(&tokens, &vectors, None).unwrap();
    for k in 1..=2 {
        let before = parent.branch(k, &backbone, &tokens.layout, &reads.tokens, None).unwrap();
        let before = before.to_vec2::<f32>().unwrap();
        for paradigm in Paradigm::ALL.into_iter().filter(|&paradigm| paradigm != Paradigm::Lum) {
            let after = read(&taught(&parent, &settings(paradigm, true)), k, &tokens, &reads);
            for (r, (before, after)) in before.iter().zip(&after).enumerate() {
                // The mask hides nothing from the first read: every item of its sequence carries its condition.
                let hides = paradigm == Paradigm::Cgsa && r > 0;
                assert!(hides || distance(before, after) < 1e-4, "{paradigm:?}");
            }
        }
        // A model without instructions reads single rows as it reads all rows.
        let same = read(&parent, k, &tokens, &reads);
        assert!(before.iter().zip(&same).all(|(a, b)| distance(a, b) < 1e-4));
    }
}

#[test]
fn a_condition_changes_what_is_read_unless_the_paradigm_knows_none() {
    let tokens = tokens(&[vec![1, 2, 3, 4, 5]]);
    let reads = reads(&tokens, &[(5, 0), (5, 1)]);
    for sft in all_settings() {
        let rows = read(&random_taught(&sft), 1, &tokens, &reads);
        let differ = distance(&rows[0], &rows[1]) > 1e-3;
        assert_eq!(differ, sft.paradigm != Paradigm::Unconditional, "{sft:?}");
    }
}

/// Eq. 5: in a branch, only items that carry the condition and the row's own item affect the read. The test changes the
/// backbone's rows directly, since every item may affect the read through the backbone.
#[test]
fn a_branch_sees_matching_rows_and_its_own_only() {
    for condition_embedding in [false, true] {
        let model = random_taught(&settings(Paradigm::Cgsa, condition_embedding));
        let tokens = tokens(&[vec![1, 2, 3, 4, 5, 6, 8]]);
        let reads = reads(&tokens, &[(6, 0), (6, 1), (7, 0)]);
        let vectors = vectors(&model);
        let read = |backbone: Tensor| -> Vec<Vec<f32>> {
            let histories = model.histories(&tokens, &vectors, None);
            histories.backbone.set(backbone).unwrap();
            model.read(1, &histories, &reads).unwrap().to_vec2().unwrap()
        };
        let backbone = model.backbone(&tokens, &vectors, None).unwrap();
        let before = read(backbone.clone());
        let mut flags = 0;
        for (r, &own) in reads.tokens.iter().enumerate() {
            let own = own.get();
            for token in 0..=own {
                let noise = (0..8).map(|t| if t == token { 1f32 } else { 0.0 }).collect::<Vec<_>>();
                let noise = Tensor::from_vec(noise, (8, 1), &Device::Cpu).unwrap();
                let other = backbone.broadcast_add(&(noise * 0.7).unwrap()).unwrap();
                // A norm removes constants: add one to half of the columns.
                let half =
                    Tensor::cat(&[other.narrow(1, 0, 4).unwrap(), backbone.narrow(1, 4, 4).unwrap()], 1);
                let after = read(half.unwrap());
                let may = reads.matches[flags + token as usize] || token == own;
                assert_eq!(before[r] != after[r], may, "read {r}, token {token}");
            }
            flags += own as usize + 1;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// §3.4.2: all conditions in one pass give the same as each on its own.
    #[test]
    fn conditions_together_are_conditions_one_by_one(
        histories in prop::collection::vec(prop::collection::vec(1..=ITEMS, 0..12), 1..4),
        at in prop::collection::vec((0u32..40, 0u32..3), 1..8),
        k in 1usize..3,
        which in 0usize..6,
    ) {
        let model = random_taught(&all_settings()[which]);
        let tokens = tokens(&histories);
        let mut at: Vec<(u32, u32)> =
            at.into_iter().map(|(token, condition)| (token % tokens.embedding.len() as u32, condition)).collect();
        at.sort_unstable();
        let together = read(&model, k, &tokens, &reads(&tokens, &at));
        for (row, &one) in together.iter().zip(&at) {
            let alone = read(&model, k, &tokens, &reads(&tokens, &[one]));
            prop_assert!(distance(row, &alone[0]) < 1e-4);
        }
    }
}
