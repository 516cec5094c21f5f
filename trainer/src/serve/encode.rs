//! The model part of a request (§3.4.2): the backbone once for each user, branch 1 for all conditions as one batch.

use candle_core::{Result, Tensor};
use schemas::config::MaskMode;

use super::histories::History;
use crate::batch::HistoryBatch;
use crate::data::conditions::Carriers;
use crate::models::{ClimberPilot, Reads};

/// A history with something in it, and what is asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What the model reads: no longer than it was trained for.
    pub history: &'a History,
    /// The row of each condition ([`crate::data::conditions::Conditions`]); `None` asks without one.
    pub conditions: &'a [Option<u32>],
}

/// Branch 1's hidden states, `[d]` for each condition of each of `asked` in turn, flat. `vectors` are those of all
/// items, `[items, d]`; only the rows of items in the histories are touched.
pub fn hidden(
    model: &ClimberPilot,
    (mask, carriers): (MaskMode, &Carriers),
    vectors: &Tensor,
    asked: &[Asked<'_>],
) -> Result<Vec<f32>> {
    let mut known: Vec<u32> = asked.iter().flat_map(|asked| asked.history.items.iter().copied()).collect();
    known.sort_unstable();
    known.dedup();
    let mut batch = HistoryBatch::new(mask);
    let mut plain = Vec::new();
    let mut reads = Reads::default();
    for Asked { history, conditions } in asked {
        let items = &history.items;
        let local = items.iter().map(|item| 1 + known.partition_point(|k| k < item) as u32);
        let last = batch.push(local, &history.ts, &history.visible) + items.len() as u32;
        for condition in *conditions {
            let Some(condition) = *condition else {
                plain.push(last);
                continue;
            };
            reads.tokens.push(last);
            reads.conditions.push(condition);
            carriers.push_matches(&mut reads.matches, condition, items, &history.ts);
        }
    }
    let tokens = batch.into_tokens();
    let rows: Vec<u32> = known.iter().map(|item| item - 1).collect();
    let n = rows.len();
    let items = vectors.index_select(&Tensor::from_vec(rows, n, vectors.device())?, 0)?;
    let histories = model.histories(&tokens, &items, None);
    let mut hidden = Rows::default();
    if !plain.is_empty() {
        hidden.plain = flat(&model.read_plain(1, &histories, &plain)?)?;
    }
    if !reads.tokens.is_empty() {
        hidden.instructed = flat(&model.read(1, &histories, &reads)?)?;
    }
    Ok(hidden.in_turn(asked, vectors.dim(1)?))
}

fn flat(rows: &Tensor) -> Result<Vec<f32>> {
    rows.detach().flatten_all()?.to_vec1()
}

/// Hidden states of both kinds, each in the order asked.
#[derive(Default)]
struct Rows {
    plain: Vec<f32>,
    instructed: Vec<f32>,
}

impl Rows {
    fn in_turn(&self, asked: &[Asked<'_>], d: usize) -> Vec<f32> {
        let (mut plain, mut instructed) = (self.plain.chunks_exact(d), self.instructed.chunks_exact(d));
        let conditions = asked.iter().flat_map(|asked| asked.conditions);
        let next = |condition: &Option<u32>| match condition {
            None => plain.next(),
            Some(_) => instructed.next(),
        };
        conditions.filter_map(next).flatten().copied().collect()
    }
}
