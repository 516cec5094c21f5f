//! The attention half of a layer as one operation on a GPU (see [`crate::self_attention()`]). Values between the norm and the
//! residual sum are numbers of type `T`.

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::{Result, Shape, Tensor};
use schemas::config::Precision;

use super::applied::{Operation, apply};
use super::attention::{Attention, Batch};
use super::layer_norm::{COLUMNS, LayerNorm};
use super::matrix::Matrix;
use super::memory::{Real, Rounded};
use super::{Argument, Buffer, Input, Machine, without_kernels};
use crate::dropout::AddDropped;
use crate::ragged::Ragged;

/// See [`crate::self_attention()`]; the parameters are `γ`, `β`, `W_qkv`, `W_o`, the biases and `log T_h`. `None` if rows or
/// heads are too wide for the kernels, or the biases too many for the GPU's shared memory.
pub(crate) fn self_attention(
    x: &Tensor,
    [gamma, beta, qkv, out, bias, log_temperature]: [&Tensor; 6],
    ragged: Ragged,
    precision: Precision,
    dropout: AddDropped,
) -> Result<Option<Tensor>> {
    let d = x.dim(1)?;
    let machine = Machine::of(x.device())?;
    let attention = Attention { width: d / ragged.heads, ragged };
    let fits = match precision {
        Precision::F32 => attention.fits::<f32>(&machine)?,
        Precision::Bf16 => attention.fits::<half::bf16>(&machine)?,
    };
    if d > COLUMNS || !fits {
        let Attention { ragged, width } = &attention;
        let (heads, biases) = (ragged.heads, ragged.columns());
        without_kernels(&format!("attention with {heads} heads of {width} columns and {biases} biases each"));
        return Ok(None);
    }
    let inputs = [x, gamma, beta, qkv, out, bias, log_temperature];
    match precision {
        Precision::F32 => apply(SelfAttention::<f32> { attention, dropout, of: PhantomData }, inputs),
        Precision::Bf16 => apply(SelfAttention::<half::bf16> { attention, dropout, of: PhantomData }, inputs),
    }
    .map(Some)
}

struct SelfAttention<T> {
    attention: Attention,
    dropout: AddDropped,
    of: PhantomData<T>,
}

/// Results of the forward pass kept for the backward pass.
struct Kept<T> {
    batch: Arc<Batch>,
    /// `[T, 3 d]`.
    qkv: Buffer<T>,
    /// Output of the attention, `[T, d]`.
    attended: Buffer<T>,
    /// `log Σ exp` of the scores, `[T, H]`.
    log_sum: Buffer<f32>,
    /// `W_qkv` and `W_o`, if they were rounded.
    weights: [Option<Buffer<T>>; 2],
}

impl<T> SelfAttention<T> {
    /// Returns the number of tokens and the columns of `x`.
    fn size(&self) -> (usize, usize) {
        let Attention { ragged, width } = &self.attention;
        (ragged.tokens(), ragged.heads * width)
    }
}

impl<T: Real> Operation<7> for SelfAttention<T> {
    type Kept = Kept<T>;

    fn forward(
        &self,
        machine: &Machine,
        [x, gamma, beta, w_qkv, w_out, bias, log_temperature]: [Input<'_>; 7],
    ) -> Result<(Buffer<f32>, Shape, Kept<T>)> {
        let (tokens, d) = self.size();
        let (w_qkv, w_out) = (Rounded::<T>::new(machine, w_qkv)?, Rounded::<T>::new(machine, w_out)?);
        let batch = Batch::of(machine, &self.attention.ragged.layout)?;
        let normal =
            LayerNorm { rows: tokens, d }.run::<T>(machine, x.read(), [gamma.read(), beta.read()])?;
        let mut qkv = Buffer::<T>::new(machine, tokens * 3 * d)?;
        // SAFETY: the matrices have the sizes of the parameters.
        unsafe {
            let of_qkv = Matrix::new::<T>(qkv.write(), 0, tokens, 3 * d);
            let of_normal = Matrix::new::<T>(normal.read(), 0, tokens, d);
            machine.product(of_qkv, false, of_normal, Matrix::new::<T>(w_qkv.read(), 0, d, 3 * d))?;
        }
        let mut attended = Buffer::<T>::new(machine, tokens * d)?;
        let mut log_sum = Buffer::new(machine, tokens * self.attention.ragged.heads)?;
        let scores = (qkv.read(), bias.read(), log_temperature.read());
        self.attention.forward::<T>(machine, scores, &batch, (&mut attended, &mut log_sum))?;
        // Reuses the buffer of the normalised rows, which are not read again.
        let mut outer = normal;
        // SAFETY: as above.
        unsafe {
            let of_outer = Matrix::new::<T>(outer.write(), 0, tokens, d);
            let of_attended = Matrix::new::<T>(attended.read(), 0, tokens, d);
            machine.product(of_outer, false, of_attended, Matrix::new::<T>(w_out.read(), 0, d, d))?;
        }
        let size = (tokens * d, d);
        let out = self.dropout.run::<T, f32>(machine, x.read(), outer.read(), Argument::null(), size)?;
        let weights = [w_qkv.keep(), w_out.keep()];
        Ok((out, (tokens, d).into(), Kept { batch, qkv, attended, log_sum, weights }))
    }

    fn backward(
        &self,
        machine: &Machine,
        [x, gamma, beta, w_qkv, w_out, bias, log_temperature]: [Input<'_>; 7],
        Kept { batch, qkv, attended, log_sum, weights: [qkv_weight, out_weight] }: Kept<T>,
        (_, dout): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 7]> {
        let (tokens, d) = self.size();
        let (w_qkv, w_out) = (Rounded::again(w_qkv, qkv_weight), Rounded::again(w_out, out_weight));
        let mut dw_qkv = Buffer::<f32>::new(machine, 3 * d * d)?;
        let mut dw_out = Buffer::<f32>::new(machine, d * d)?;
        let douter = self.dropout.run_backward::<T>(machine, dout)?;
        let mut dattended = Buffer::<T>::new(machine, tokens * d)?;
        // SAFETY: the matrices have the sizes of the parameters.
        unsafe {
            let of_douter = Matrix::new::<T>(douter.read(), 0, tokens, d);
            let of_attended = Matrix::new::<T>(attended.read(), 0, tokens, d);
            machine.product(
                Matrix::new::<f32>(dw_out.write(), 0, d, d),
                false,
                of_attended.t(),
                of_douter,
            )?;
            let of_dattended = Matrix::new::<T>(dattended.write(), 0, tokens, d);
            machine.product(of_dattended, false, of_douter, Matrix::new::<T>(w_out.read(), 0, d, d).t())?;
        }
        let scores = (qkv.read(), bias.read(), log_temperature.read());
        let results = (attended.read(), &log_sum, dattended.read());
        let (dqkv, of_scores) = self.attention.backward::<T>(machine, scores, &batch, results)?;
        let columns = self.attention.ragged.columns();
        let dbias = of_scores.sum(machine, 0..columns)?;
        let dlog_temperature = of_scores.sum(machine, columns..columns + 1)?;
        let norm = LayerNorm { rows: tokens, d };
        let normal = norm.run::<T>(machine, x.read(), [gamma.read(), beta.read()])?;
        // Reuses the buffer of the output's gradient, which is not read again.
        let mut dnormal = douter;
        // SAFETY: as above.
        unsafe {
            let of_dqkv = Matrix::new::<T>(dqkv.read(), 0, tokens, 3 * d);
            let of_normal = Matrix::new::<T>(normal.read(), 0, tokens, d);
            machine.product(
                Matrix::new::<f32>(dw_qkv.write(), 0, d, 3 * d),
                false,
                of_normal.t(),
                of_dqkv,
            )?;
            let of_dnormal = Matrix::new::<T>(dnormal.write(), 0, tokens, d);
            machine.product(of_dnormal, false, of_dqkv, Matrix::new::<T>(w_qkv.read(), 0, d, 3 * d).t())?;
        }
        let (dx, of_norm) =
            norm.run_backward::<T>(machine, x.read(), gamma.read(), dnormal.read(), dout.read())?;
        let (dgamma, dbeta) = (of_norm.sum(machine, 0..d)?, of_norm.sum(machine, d..2 * d)?);
        Ok([dx, dgamma, dbeta, dw_qkv, dw_out, dbias, dlog_temperature].map(Some))
    }
}
