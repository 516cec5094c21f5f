//! Models and optimisers whose vocabulary grows.

use super::*;
use crate::kinds::SavedLearner;

/// Items 1 to 12 as in [`catalogue`], then one of a known genre, one of a new genre, and one without a genre.
fn larger() -> Catalogue {
    let genres: [&[&str]; 3] = [&["a"], &["b", "c"], &[]];
    let ids: Vec<String> = (1..=ITEMS + 3).map(|i| i.to_string()).collect();
    let new: [&[&str]; 3] = [&["b"], &["new"], &[]];
    let of = |i: usize| if i < ITEMS as usize { genres[i % 3] } else { new[i - ITEMS as usize] };
    let items: Vec<_> = ids.iter().enumerate().map(|(i, id)| (id.as_str(), of(i))).collect();
    Catalogue::example(&items)
}

fn rows(table: &Tensor) -> Vec<Vec<f32>> {
    table.to_vec2().unwrap()
}

fn mean<'a>(rows: impl Iterator<Item = &'a Vec<f32>>) -> Vec<f32> {
    let rows: Vec<_> = rows.collect();
    (0..rows[0].len()).map(|c| rows.iter().map(|row| row[c]).sum::<f32>() / rows.len() as f32).collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

#[test]
fn rows_stay_and_new_ones_begin_at_the_mean_of_their_categories() {
    let config = config(&Architecture::ClimberPilot, MaskMode::Gather);
    let parent = random_model(&Architecture::ClimberPilot, MaskMode::Gather);
    let known = parent.vocabulary();
    // Among the old items, 1, 4, 5, 8, 9 and 12 were rare; 4 has become frequent, and all new items are.
    let counts: Vec<u32> = (0..=ITEMS + 3).map(|i| if i == 4 || i > ITEMS { 2 } else { i % 4 }).collect();
    let vocabulary = Arc::new(known.grown(config.min_count, &larger(), &counts));
    let grown = parent.grown(&config, &Sft::default(), vocabulary.clone()).unwrap();

    let (old, new) = (rows(&parent.ids().weight), rows(&grown.ids().weight));
    assert_eq!(new.len(), old.len() + 4);
    assert_eq!(&new[..old.len()], &old[..]);
    let frequent: Vec<ItemIndex> = every_item().into_iter().filter(|item| item.get() % 4 >= 2).collect();
    let vectors = |model: &SequenceModel| rows(&model.item_vectors(&frequent).unwrap().vectors);
    assert_eq!(vectors(&parent), vectors(&grown));

    let by_row = vocabulary.items_by_row();
    assert_eq!(by_row[..known.own_items()], known.items_by_row()[..]);
    let items: Vec<ItemIndex> = by_row[known.own_items()..].iter().map(|&(_, item)| item).collect();
    assert_eq!(items, [4, 13, 14, 15]);
    let own = &old[config.hash_buckets..];
    let of_genre = |rest: u32| frequent.iter().zip(own).filter(move |(item, _)| (item.get() - 1) % 3 == rest);
    let [row_4, row_13, row_14, row_15] = [0, 1, 2, 3].map(|i| &new[old.len() + i]);
    assert!(close(row_4, &mean(of_genre(0).map(|(_, row)| row))), "genre a");
    assert!(close(row_13, &mean(of_genre(1).map(|(_, row)| row))), "genre b");
    assert!(close(row_14, &mean(own.iter())), "a genre that nobody had");
    assert!(close(row_15, &mean(own.iter())), "no genre");

    let (old, new) = (parent.tensors()["items.genre"].clone(), grown.tensors()["items.genre"].clone());
    let (old, new) = (rows(&old), rows(&new));
    assert_eq!((new.len(), &new[..old.len()]), (old.len() + 1, &old[..]));
    assert!(close(&new[old.len()], &mean(old.iter())));
}

#[test]
fn the_optimiser_goes_on() {
    let config = config(&Architecture::ClimberPilot, MaskMode::Gather);
    let parent = random_model(&Architecture::ClimberPilot, MaskMode::Gather);
    let settings = AdamSettings { weight_decay: 0.0, clip_norm: 1.0 };
    let adam = Adam::new(&parent, settings).unwrap();
    let moments: std::collections::HashMap<String, Tensor> =
        adam.tensors().into_iter().map(|(name, zero)| (name, (zero + 0.5).unwrap())).collect();
    let values = &moments.clone().into();
    let adam = Adam::restored(&parent, SavedLearner { values, steps: 7 }, settings).unwrap();
    let vocabulary = Arc::new(parent.vocabulary().grown(config.min_count, &larger(), &[9; 16]));
    let grown = parent.grown(&config, &Sft::default(), vocabulary).unwrap();
    let grown_adam = adam.grown(&grown).unwrap();
    assert_eq!(grown_adam.steps(), 7);
    for (name, after) in grown_adam.tensors() {
        let (before, after) = (rows(&moments[&name]), rows(&after));
        assert_eq!(&after[..before.len()], &before[..], "{name}");
        assert!(after[before.len()..].iter().flatten().all(|&moment| moment == 0.0), "{name}");
    }
    let id_moments = &grown_adam.tensors()[ID_TABLE];
    assert_eq!(id_moments.dim(0).unwrap(), grown.ids().weight.dim(0).unwrap());
}
