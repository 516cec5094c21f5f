//! The graph computes what the model computes, checked by ONNX Runtime in Python if installed; `CLIMBER_PYTHON` names the
//! interpreter (`python3` otherwise).

use std::process::Command;

use proptest::prelude::*;
use ragged::time_bucket;
use rand::Rng;
use serde_json::json;

use super::*;
use crate::batch::HistoryBatch;
use crate::data::{ItemIndex, Token, VectorRow};
use crate::models::Reads;

/// Tests run in the directory of their crate; a path fixed at build time would be wrong for a clone that shares the build.
const SCRIPT: &str = "tests/export.py";

fn histories(seed: u64) -> Vec<(Vec<u32>, Vec<i64>)> {
    let mut random = crate::random::generator(seed, "histories", 0);
    let thresholds = &serving::time_thresholds()[2..40];
    [0, 0, 1, 1, 2, 3, 7, 9, 30, 70]
        .into_iter()
        .map(|n| {
            let items = (0..n).map(|_| random.random_range(1..=ITEMS as u32)).collect();
            let mut time = random.random_range(0..2_000_000_000_000);
            let times = (0..n)
                .map(|_| {
                    // No time, exactly a bucket's edge, just below it, or any time.
                    let edge = thresholds[random.random_range(0..thresholds.len())];
                    time +=
                        [0, edge, edge - 1, random.random_range(0..10_000_000)][random.random_range(0..4)];
                    time
                })
                .collect();
            (items, times)
        })
        .collect()
}

/// Returns the trainer's result for one history under each of `conditions` (−1: none).
fn expected(
    example: &Example,
    items: &[u32],
    times: &[i64],
    conditions: &[i64],
    masks: &[Vec<bool>],
) -> Tensor {
    let Example { model, .. } = example;
    let mut history = HistoryBatch::new(MaskMode::Gather);
    history.push(items.iter().map(|&item| VectorRow::new(item)), times, &[]);
    let tokens = history.into_tokens();
    let vectors = model.item_vectors(&ItemIndex::all(ITEMS).collect::<Vec<_>>()).unwrap().vectors;
    let histories = model.histories(&tokens, &vectors, None);
    let last = Token::new(items.len() as u32);
    let row = |(&condition, mask): (&i64, &Vec<bool>)| match u32::try_from(condition) {
        Ok(condition) => {
            let matches = std::iter::once(true).chain(mask.iter().copied()).collect();
            let reads = Reads { tokens: vec![last], conditions: vec![condition.into()], matches };
            model.read(1, &histories, &reads).unwrap()
        }
        Err(_) => {
            let backbone = model.backbone(&tokens, &vectors, None).unwrap();
            model.branch(1, &backbone, &tokens.layout, &[last], None).unwrap()
        }
    };
    let rows: Vec<Tensor> = conditions.iter().zip(masks).map(row).collect();
    Tensor::cat(&rows, 0).unwrap()
}

/// Returns runs of one export: inputs of the graph and their expected outputs.
fn runs(example: &Example, seed: u64) -> Vec<serde_json::Value> {
    let known = example.model.vocabulary().conditions().len() as i64;
    let follows = known > 0 && example.model.paradigm() != Some(Paradigm::Unconditional);
    let masked = example.model.paradigm() == Some(Paradigm::Cgsa);
    let mut random = crate::random::generator(seed, "conditions", 0);
    let candidates = example.candidates();
    let run = |(items, times): (Vec<u32>, Vec<i64>)| {
        let conditions: Vec<i64> = if follows {
            (0..random.random_range(1..6)).map(|_| random.random_range(-1..known)).collect()
        } else {
            vec![-1]
        };
        let masks: Vec<Vec<bool>> =
            conditions.iter().map(|_| items.iter().map(|_| random.random_bool(0.4)).collect()).collect();
        let hidden = expected(example, &items, &times, &conditions, &masks);
        let scores = hidden.matmul(&candidates.t().unwrap()).unwrap();
        let mut inputs = json!({ "history": items, "times": times });
        if follows {
            inputs["conditions"] = json!(conditions);
        }
        if masked {
            inputs["condition_mask"] = json!(masks);
        }
        json!({
            "inputs": inputs,
            "hidden": hidden.to_vec2::<f32>().unwrap(),
            "scores": scores.to_vec2::<f32>().unwrap(),
        })
    };
    histories(seed).into_iter().map(run).collect()
}

#[test]
fn onnx_runtime_agrees() {
    let python = std::env::var("CLIMBER_PYTHON").unwrap_or_else(|_| "python3".into());
    let imports = Command::new(&python).args(["-c", "import numpy, onnxruntime"]).output();
    if !imports.as_ref().is_ok_and(|output| output.status.success()) {
        testkit::skipped(
            &format!("the export judged by ONNX Runtime (`{python}`; CLIMBER_PYTHON names another)"),
            "onnxruntime",
        );
        return;
    }
    let genres = Model { attributes: vec!["genre".into()], ..settings() };
    let cosines = Model { score_temperature: 0.05, ..genres.clone() };
    let timeless = Model { time_bias: false, ..settings() };
    let unmasked = Model { mask: MaskMode::None, branches: 1, layers: 1, heads: 4, ..cosines.clone() };
    let mut examples = vec![
        Example::new(settings(), None),
        Example::new(unmasked, None),
        Example::new(timeless.clone(), None),
        Example::new(timeless, paradigm(Paradigm::Cgsa, true)),
        Example::new(genres.clone(), paradigm(Paradigm::Cgsa, true)),
        Example::new(cosines.clone(), paradigm(Paradigm::Cgsa, false)),
        Example::new(cosines.clone(), paradigm(Paradigm::Pinrec, true)),
        Example::new(genres, paradigm(Paradigm::Unconditional, true)),
        Example::new(cosines, paradigm(Paradigm::Cgsa, true)),
    ];
    // One export with its item vectors outside the graph.
    examples[8].external_from_bytes = 0;
    let exports: Vec<_> = examples
        .iter()
        .zip(0..)
        .map(|(example, seed)| {
            example.export();
            json!({ "directory": example.out(), "runs": runs(example, seed) })
        })
        .collect();
    let cases = examples[0].directory.path().join("cases.json");
    fs::write(&cases, serde_json::to_vec(&exports).unwrap()).unwrap();
    let output = Command::new(&python).arg(SCRIPT).arg(&cases).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{}", said.trim_end());
}

proptest! {
    /// The graph's binary search finds the trainer's bucket.
    #[test]
    fn thresholds_give_the_buckets_of_the_trainer(
        since in prop_oneof![any::<i64>(), 0i64..10_000, (0u32..63, -2i64..=2).prop_map(|(e, by)| (1 << e) + by)],
        edge in 2usize..64,
        by in -1i64..=1,
    ) {
        let thresholds = serving::time_thresholds();
        for since in [since, thresholds[edge].saturating_add(by)] {
            let (mut bucket, mut step) = (0, thresholds.len() / 2);
            while step > 0 {
                if since >= thresholds[bucket + step] {
                    bucket += step;
                }
                step /= 2;
            }
            prop_assert_eq!(bucket, usize::from(time_bucket(since, 0)));
        }
    }
}
