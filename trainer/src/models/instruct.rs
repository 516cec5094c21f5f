//! Instructions in the model: CGSA (§3.3.2), and the paradigms that the paper compares it with (Table 3).
//!
//! ```text
//!                backbone      branch layer, at the rows that are read
//! cgsa           shared        the query sees matching keys, its own row and the start token (Eq. 5); it is h + √d e_c,
//!                              or h without the embedding
//! pinrec         shared        the query is h + √d e_c
//! adaln-zero     shared        functions of e_c shift and scale the norms and gate both halves
//! lum            recomputed    e_c is a token appended to the history, and the token that is read
//! unconditional  shared        ignores the instruction
//! ```
//!
//! In the first two, all conditions share keys and values: a further condition costs one row.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor, Var};
use ragged::{AttentionLayout, Dropout, Queries};
use schemas::config::{Model, Paradigm, Sft};

use super::encoder::BranchInstruction;
use super::layers::Modulated;
use super::{Parameters, SequenceModel, Tokens};
use crate::data::{ConditionRow, Token, VectorRow, as_u32s};

/// Name prefix of the parameters that only fine-tuning trains.
pub const CONDITION_PREFIX: &str = "conditions.";

/// Standard deviation of the initial values of LUM's condition embeddings.
const EMBEDDING_STD: f64 = 0.02;

/// Positions at which histories are read, each under a condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    /// Token of each read, ascending: it represents the history up to it.
    pub tokens: Vec<Token>,
    /// Row of each read's condition.
    pub conditions: Vec<ConditionRow>,
    /// For each read, one flag per token of its sequence, from the first to its own, concatenated: true if the read may attend to
    /// it. Those tokens are the start and the items that carry the condition.
    pub matches: Vec<bool>,
}

/// Encoded histories that branches read.
#[derive(Debug)]
pub struct Histories<'a> {
    tokens: &'a Tokens,
    items: &'a Tensor,
    dropout: Option<Dropout>,
    /// Computed on first use.
    pub(super) backbone: OnceCell<Tensor>,
}

/// Parameters of the instructions.
#[derive(Debug, Clone)]
pub(super) struct Instructions {
    paradigm: Paradigm,
    /// `e_c`, `[conditions, d]`; absent if only the mask carries the condition.
    embedding: Option<Tensor>,
    /// Logarithm of each condition's score factor, `[conditions, 1]`, present if scores are cosines: bounded scores cannot both
    /// push items without the condition far away and tell those with it apart.
    sharpness: Option<Tensor>,
    /// Map from `e_c` to the modulation of each branch: weight `[d, 6 d]` and bias `[6 d]`.
    modulation: Vec<(Tensor, Tensor)>,
}

impl Instructions {
    /// Creates the parameters for `conditions` conditions. Their initial values leave a pre-trained model's output unchanged,
    /// apart from CGSA's mask and LUM's token, which is read instead of the history's last.
    pub(super) fn new(
        parameters: &mut Parameters,
        sft: &Sft,
        conditions: usize,
        model: &Model,
    ) -> Result<Self> {
        let d = model.d;
        let embedding = format!("{CONDITION_PREFIX}embedding");
        let embedding = match sft.paradigm {
            Paradigm::Cgsa if !sft.condition_embedding => None,
            Paradigm::Unconditional => None,
            Paradigm::Cgsa | Paradigm::Pinrec => {
                Some(parameters.constant(&embedding, &[conditions, d], 0.0)?)
            }
            Paradigm::Lum => Some(parameters.normal(&embedding, &[conditions, d], EMBEDDING_STD)?),
            Paradigm::AdalnZero => Some(parameters.normal(&embedding, &[conditions, d], 1.0)?),
        };
        let modulated = if sft.paradigm == Paradigm::AdalnZero { model.branches } else { 0 };
        let modulation = (1..=modulated)
            .map(|k| {
                let name = format!("{CONDITION_PREFIX}modulation.{k}");
                let weight = parameters.constant(&format!("{name}.weight"), &[d, 6 * d], 0.0)?;
                Ok((weight, parameters.constant(&format!("{name}.bias"), &[6 * d], 0.0)?))
            })
            .collect::<Result<_>>()?;
        let sharper = model.score_temperature > 0.0 && sft.paradigm != Paradigm::Unconditional;
        let sharpness = match sharper {
            true => {
                Some(parameters.constant(&format!("{CONDITION_PREFIX}sharpness"), &[conditions, 1], 0.0)?)
            }
            false => None,
        };
        Ok(Self { paradigm: sft.paradigm, embedding, sharpness, modulation })
    }

    /// Returns `√d e_c` of each read, `[R, d]`, scaled as the items' embeddings are; `None` without an embedding.
    fn added(&self, conditions: &[ConditionRow]) -> Result<Option<Tensor>> {
        let Some(embedding) = &self.embedding else { return Ok(None) };
        let d = embedding.dim(1)? as f64;
        Ok(Some((ragged::gather(embedding, as_u32s(conditions))? * d.sqrt())?))
    }

    /// Multiplies `hidden` `[R, d]` by the score factor of each read's condition.
    fn sharpened(&self, hidden: Tensor, conditions: &[ConditionRow]) -> Result<Tensor> {
        match &self.sharpness {
            Some(sharpness) => hidden.broadcast_mul(&ragged::gather(sharpness, as_u32s(conditions))?.exp()?),
            None => Ok(hidden),
        }
    }
}

impl SequenceModel {
    /// Copies the instruction parameters of `taught`, a model that follows the same conditions under the same paradigm.
    /// Parameters of another shape keep their values.
    ///
    /// # Errors
    ///
    /// A value cannot be copied to the model's device.
    pub fn set_conditions(&self, taught: &Self) -> Result<()> {
        let known: HashMap<&str, &Var> = taught.parameters.iter().collect();
        for (name, var) in self.parameters.iter().filter(|(name, _)| name.starts_with(CONDITION_PREFIX)) {
            if let Some(value) = known.get(name).filter(|value| value.shape() == var.shape()) {
                var.set(value)?;
            }
        }
        Ok(())
    }

    /// Returns the paradigm of the model's instructions; `None` if it follows none.
    pub fn paradigm(&self) -> Option<Paradigm> {
        self.instructions.as_ref().map(|instructions| instructions.paradigm)
    }

    /// Returns `e_c`, `[conditions, d]`, which CGSA and PinRec add √d-fold to queries; `None` for other paradigms.
    pub fn condition_embedding(&self) -> Option<&Tensor> {
        let instructions = self.instructions.as_ref()?;
        matches!(instructions.paradigm, Paradigm::Cgsa | Paradigm::Pinrec)
            .then_some(instructions.embedding.as_ref())?
    }

    /// Returns each condition's score factor; empty if there is none. The factor sharpens the condition's softmax and leaves the
    /// order within a list unchanged.
    ///
    /// # Errors
    ///
    /// A tensor operation failed.
    pub fn sharpness(&self) -> Result<Vec<f32>> {
        match self.instructions.as_ref().and_then(|instructions| instructions.sharpness.as_ref()) {
            Some(sharpness) => sharpness.exp()?.detach().flatten_all()?.to_vec1(),
            None => Ok(Vec::new()),
        }
    }

    /// Prepares `tokens` and their item vectors `items` `[items, d]` for any number of reads.
    pub fn histories<'a>(
        &self,
        tokens: &'a Tokens,
        items: &'a Tensor,
        dropout: Option<Dropout>,
    ) -> Histories<'a> {
        Histories { tokens, items, dropout, backbone: OnceCell::new() }
    }

    /// Computes branch `k` (from 1) at each of `reads`, under its condition: `[reads, d]`. A model without instructions, or of
    /// the paradigm `unconditional`, ignores the conditions.
    ///
    /// # Errors
    ///
    /// A tensor operation failed, or the encoder follows no instructions.
    pub fn read(&self, k: usize, histories: &Histories<'_>, reads: &Reads) -> Result<Tensor> {
        let Some(instructions) = &self.instructions else {
            return self.read_plain(k, histories, &reads.tokens);
        };
        let dropout = histories.dropout;
        let layout = &histories.tokens.layout;
        let queries = |matches| Arc::new(Queries { tokens: as_u32s(&reads.tokens).to_vec(), matches });
        let hidden = match instructions.paradigm {
            Paradigm::Lum => {
                let Some(embedding) = &instructions.embedding else {
                    candle_core::bail!("an instruction token needs an embedding");
                };
                let Apart { sources, layout, last, .. } = Apart::new(layout, reads, true);
                // The rows of the instruction embeddings follow the start token and the items.
                let first = 1 + histories.items.dim(0)? as u32;
                let mut conditions = reads.conditions.iter();
                let row = |source: Option<Token>| match source {
                    Some(token) => histories.tokens.embedding[token.index()],
                    None => VectorRow::new(first + conditions.next().copied().unwrap_or_default().get()),
                };
                let tokens = Tokens { embedding: sources.into_iter().map(row).collect(), layout };
                let table = Tensor::cat(&[histories.items, embedding], 0)?;
                let x = self.backbone(&tokens, &table, dropout)?;
                let queries = Arc::new(Queries { tokens: last, matches: None });
                self.encoder.branch_at(k, &x, &tokens.layout, &queries, BranchInstruction::None, dropout)?
            }
            Paradigm::AdalnZero => {
                let Some(embedding) = &instructions.embedding else {
                    candle_core::bail!("a modulation needs an embedding");
                };
                let condition = ragged::gather(embedding, as_u32s(&reads.conditions))?;
                let (weight, bias) = &instructions.modulation[k - 1];
                let modulation =
                    ragged::linear(&condition.silu()?, weight, Some(bias), self.parameters.precision())?;
                let Apart { sources, layout, last, of } = Apart::new(layout, reads, false);
                let sources: Vec<Token> = sources.into_iter().flatten().collect();
                let modulated = Modulated { modulation: &modulation, of };
                let x = ragged::gather(&self.backbone_of(histories)?, as_u32s(&sources))?;
                let queries = Arc::new(Queries { tokens: last, matches: None });
                self.encoder.branch_at(
                    k,
                    &x,
                    &layout,
                    &queries,
                    BranchInstruction::Modulated(modulated),
                    dropout,
                )?
            }
            Paradigm::Cgsa => {
                let condition = instructions.added(&reads.conditions)?;
                let queries = queries(Some(reads.matches.clone()));
                let x = self.backbone_of(histories)?;
                self.encoder.branch_at(
                    k,
                    &x,
                    layout,
                    &queries,
                    BranchInstruction::added(condition.as_ref()),
                    dropout,
                )?
            }
            Paradigm::Pinrec => {
                let condition = instructions.added(&reads.conditions)?;
                let x = self.backbone_of(histories)?;
                self.encoder.branch_at(
                    k,
                    &x,
                    layout,
                    &queries(None),
                    BranchInstruction::added(condition.as_ref()),
                    dropout,
                )?
            }
            Paradigm::Unconditional => return self.read_plain(k, histories, &reads.tokens),
        };
        instructions.sharpened(self.scored(&hidden)?, &reads.conditions)
    }

    /// Computes branch `k` (from 1) at each of `tokens` (ascending) without an instruction: `[tokens, d]`. Unlike
    /// [`branch`](Self::branch), it runs a branch layer on these rows only.
    ///
    /// # Errors
    ///
    /// A tensor operation failed.
    pub fn read_plain(&self, k: usize, histories: &Histories<'_>, tokens: &[Token]) -> Result<Tensor> {
        let (x, layout) = (self.backbone_of(histories)?, &histories.tokens.layout);
        let queries = Arc::new(Queries { tokens: as_u32s(tokens).to_vec(), matches: None });
        self.scored(&self.encoder.branch_at(
            k,
            &x,
            layout,
            &queries,
            BranchInstruction::None,
            histories.dropout,
        )?)
    }

    /// Returns the backbone's output for all tokens, `[T, d]`, computed once per `histories`.
    ///
    /// # Errors
    ///
    /// A tensor operation failed.
    pub fn backbone_of(&self, histories: &Histories<'_>) -> Result<Tensor> {
        if let Some(backbone) = histories.backbone.get() {
            return Ok(backbone.clone());
        }
        let backbone = self.backbone(histories.tokens, histories.items, histories.dropout)?;
        Ok(histories.backbone.get_or_init(|| backbone).clone())
    }
}

/// One sequence per read, a copy of its history, for paradigms in which all tokens depend on the condition.
struct Apart {
    /// Original token of each new token; `None` for an appended one.
    sources: Vec<Option<Token>>,
    layout: Arc<AttentionLayout>,
    /// Last token of each sequence.
    last: Vec<u32>,
    /// Read that each token belongs to.
    of: Vec<u32>,
}

impl Apart {
    /// Copies the history of each read; `behind` appends one more token at the time of the last.
    fn new(layout: &AttentionLayout, reads: &Reads, behind: bool) -> Self {
        let mut apart = AttentionLayout { offsets: vec![0], ..AttentionLayout::default() };
        let mut keys = layout.keys.as_ref().map(|_| Vec::new());
        let (mut sources, mut last, mut of) = (Vec::new(), Vec::new(), Vec::new());
        for (read, &token) in (0..).zip(&reads.tokens) {
            let token = token.index();
            let start = layout.offsets[layout.offsets.partition_point(|&offset| offset <= token) - 1];
            sources.extend((start..=token).map(|t| Some(Token::new(t as u32))));
            apart.times.extend_from_slice(&layout.times[start..=token]);
            if let (Some(keys), Some(all)) = (&mut keys, &layout.keys) {
                keys.extend_from_slice(&all[start..=token]);
            }
            if behind {
                sources.push(None);
                apart.times.push(layout.times[token]);
                if let Some(keys) = &mut keys {
                    keys.push((token - start + 2) as u32);
                }
            }
            of.resize(sources.len(), read);
            last.push(sources.len() as u32 - 1);
            apart.offsets.push(sources.len());
        }
        apart.keys = keys;
        Self { sources, layout: Arc::new(apart), last, of }
    }
}
