//! Building blocks of the encoders' layers: norm, attention, feed-forward, modulation.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{AttentionLayout, Dropout, Queries, TIME_BUCKETS};
use schemas::config::{Model, Precision};

use super::Parameters;

/// Returns the dropout of one site in the model, its seed derived from the step's seed and the site's name.
pub(super) fn at(dropout: Option<Dropout>, place: &str) -> Option<Dropout> {
    dropout.map(|Dropout { p, seed }| Dropout { p, seed: crate::random::derived(seed, place, 0) })
}

/// Returns the standard deviation of a linear map's initial weights that keeps the variance of its inputs.
pub(super) fn linear_std(inputs: usize) -> f64 {
    (1.0 / inputs as f64).sqrt()
}

/// Scale γ and shift β of a layer norm, `[d]` each.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

impl Norm {
    pub(super) fn new(parameters: &mut Parameters, name: &str, d: usize) -> Result<Self> {
        Ok(Self {
            gamma: parameters.constant(&format!("{name}.gamma"), &[d], 1.0)?,
            beta: parameters.constant(&format!("{name}.beta"), &[d], 0.0)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ragged::layer_norm(x, &self.gamma, &self.beta)
    }
}

/// AdaLN-Zero (Peebles and Xie 2023): shifts, scales and gates of a layer's two halves, computed from the condition.
#[derive(Debug)]
pub struct Modulated<'a> {
    /// `[R, 6 d]`: shift, scale and gate of the attention half, then of the feed-forward half. Zeros change nothing: a half is
    /// multiplied by `1 + gate`, since closing it would cut off a pre-trained layer.
    pub(super) modulation: &'a Tensor,
    /// Read of each token, `[T]`.
    pub(super) of: Vec<u32>,
}

impl Modulated<'_> {
    /// Returns part `which` (0 to 5) of the modulation: `[R, d]`.
    fn part(&self, which: usize) -> Result<Tensor> {
        let d = self.modulation.dim(1)? / 6;
        self.modulation.narrow(1, which * d, d)
    }

    /// Returns `n (1 + scale) + shift` of half 0 or 1, for the rows of the reads: `[R, d]`.
    pub(super) fn at_reads(&self, n: &Tensor, half: usize) -> Result<Tensor> {
        let scale = (self.part(3 * half + 1)? + 1.0)?;
        (n * scale)? + self.part(3 * half)?
    }

    /// Returns `n (1 + scale) + shift` of half 0 or 1, for all tokens: `[T, d]`.
    pub(super) fn at_tokens(&self, n: &Tensor, half: usize) -> Result<Tensor> {
        let of_token = |part: usize| ragged::gather(&self.part(part)?.contiguous()?, &self.of);
        let scale = (of_token(3 * half + 1)? + 1.0)?;
        (n * scale)? + of_token(3 * half)?
    }

    /// Returns `y (1 + gate)` of half 0 or 1, for the rows of the reads: `[R, d]`.
    pub(super) fn gated(&self, y: &Tensor, half: usize) -> Result<Tensor> {
        y * (self.part(3 * half + 2)? + 1.0)?
    }
}

/// Multi-head attention half: `x + W_o attention(W_qkv norm(x))`.
#[derive(Debug, Clone)]
pub(super) struct SelfAttention {
    name: String,
    norm: Norm,
    /// Queries, keys and values in one product: `[d, 3 d]`.
    qkv: Tensor,
    /// `b_pos` and, if configured, `b_time`: `[heads, distances + time buckets]`.
    bias: Tensor,
    /// `log T_h`: `[heads]`.
    log_temperature: Tensor,
    out: Tensor,
    max_distance: usize,
    precision: Precision,
}

/// Inputs of the scores besides queries and keys.
struct ScoreParameters {
    bias: Tensor,
    log_temperature: Tensor,
    max_distance: usize,
}

impl SelfAttention {
    /// Creates attention with a learned position bias, a time bias if configured, and a temperature per head. `name` is the
    /// prefix of its parameters; the initial output weights are divided by `residual`.
    pub(super) fn relative(
        parameters: &mut Parameters,
        name: &str,
        model: &Model,
        residual: f64,
    ) -> Result<Self> {
        let columns = model.max_distance + if model.time_bias { TIME_BUCKETS } else { 0 };
        let bias = parameters.constant(&format!("{name}.bias"), &[model.heads, columns], 0.0)?;
        let temperature = Self::dot_product_temperature(model);
        let log_temperature =
            parameters.constant(&format!("{name}.log_temperature"), &[model.heads], temperature)?;
        Self::new(
            parameters,
            name,
            model,
            residual,
            ScoreParameters { bias, log_temperature, max_distance: model.max_distance },
        )
    }

    /// Creates attention with the plain scores `q·k / √d_k`.
    pub(super) fn plain(
        parameters: &mut Parameters,
        name: &str,
        model: &Model,
        residual: f64,
    ) -> Result<Self> {
        let device = parameters.device();
        // One column of zeros is the bias of every distance; neither tensor is trained.
        let bias = Tensor::full(0f32, (model.heads, 1), device)?;
        let log_temperature = Tensor::full(Self::dot_product_temperature(model), model.heads, device)?;
        Self::new(
            parameters,
            name,
            model,
            residual,
            ScoreParameters { bias, log_temperature, max_distance: 1 },
        )
    }

    /// Returns `log √d_k`.
    fn dot_product_temperature(model: &Model) -> f32 {
        ((model.d / model.heads) as f64).sqrt().ln() as f32
    }

    fn new(
        parameters: &mut Parameters,
        name: &str,
        model: &Model,
        residual: f64,
        scores: ScoreParameters,
    ) -> Result<Self> {
        let d = model.d;
        let of = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm: Norm::new(parameters, &of("norm"), d)?,
            qkv: parameters.normal(&of("qkv"), &[d, 3 * d], linear_std(d))?,
            bias: scores.bias,
            log_temperature: scores.log_temperature,
            out: parameters.normal(&of("out"), &[d, d], linear_std(d) / residual)?,
            max_distance: scores.max_distance,
            precision: parameters.precision(),
            name: name.to_owned(),
        })
    }

    /// Applies the layer norm of this half.
    pub(super) fn norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    /// Computes `W_o attention` for the queries only, `[R, d]`: `asking` `[R, d]` are their normalised rows, `asked` `[T, d]`
    /// those of all tokens.
    pub(super) fn ask(
        &self,
        asking: &Tensor,
        asked: &Tensor,
        layout: &Arc<AttentionLayout>,
        queries: &Arc<Queries>,
    ) -> Result<Tensor> {
        let d = self.out.dim(0)?;
        let q = ragged::linear(asking, &self.qkv.narrow(1, 0, d)?.contiguous()?, None, self.precision)?;
        let kv = ragged::linear(asked, &self.qkv.narrow(1, d, 2 * d)?.contiguous()?, None, self.precision)?;
        let scores = (&self.bias, &self.log_temperature);
        let attended = ragged::query_attention(&q, &kv, scores, (layout, queries), self.max_distance)?;
        ragged::linear(&attended, &self.out, None, self.precision)
    }

    /// Returns `x + dropout(y)`, where `y` is the output of this half.
    pub(super) fn add(&self, x: &Tensor, y: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        ragged::add_dropped(x, y, at(dropout, &self.name))
    }

    /// Applies the half to all tokens: `[T, d]` → `[T, d]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layout: &Arc<AttentionLayout>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let parameters = ragged::SelfAttentionParameters {
            gamma: &self.norm.gamma,
            beta: &self.norm.beta,
            qkv: &self.qkv,
            out: &self.out,
            bias: &self.bias,
            log_temperature: &self.log_temperature,
            max_distance: self.max_distance,
            precision: self.precision,
        };
        ragged::self_attention(x, parameters, layout, at(dropout, &self.name))
    }
}

/// Feed-forward half: `x + W₂ GELU(W₁ norm(x) + b₁) + b₂`, with an inner width of `[model] feed_forward` times `d`.
#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    name: String,
    norm: Norm,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    precision: Precision,
}

impl FeedForward {
    /// Creates the half. `name` is the prefix of its parameters; the initial output weights are divided by `residual`.
    pub(super) fn new(parameters: &mut Parameters, name: &str, model: &Model, residual: f64) -> Result<Self> {
        let (d, inner) = (model.d, model.d * model.feed_forward);
        let of = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm: Norm::new(parameters, &of("norm"), d)?,
            up: parameters.normal(&of("up"), &[d, inner], linear_std(d))?,
            up_bias: parameters.constant(&of("up_bias"), &[inner], 0.0)?,
            down: parameters.normal(&of("down"), &[inner, d], linear_std(inner) / residual)?,
            down_bias: parameters.constant(&of("down_bias"), &[d], 0.0)?,
            precision: parameters.precision(),
            name: name.to_owned(),
        })
    }

    pub(super) fn forward(&self, x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        let parameters = ragged::FeedForwardParameters {
            gamma: &self.norm.gamma,
            beta: &self.norm.beta,
            up: &self.up,
            up_bias: &self.up_bias,
            down: &self.down,
            down_bias: &self.down_bias,
            precision: self.precision,
        };
        ragged::feed_forward(x, parameters, at(dropout, &self.name))
    }

    /// Applies the layer norm of this half.
    pub(super) fn norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    /// Returns `W₂ GELU(W₁ n + b₁) + b₂`.
    pub(super) fn inner(&self, n: &Tensor) -> Result<Tensor> {
        let inner = ragged::linear(n, &self.up, Some(&self.up_bias), self.precision)?.gelu()?;
        ragged::linear(&inner, &self.down, Some(&self.down_bias), self.precision)
    }

    /// Returns `x + dropout(y)`, where `y` is the output of this half.
    pub(super) fn add(&self, x: &Tensor, y: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        ragged::add_dropped(x, y, at(dropout, &self.name))
    }
}
