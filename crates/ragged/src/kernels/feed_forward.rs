//! The feed-forward half of a layer as one operation on a GPU (see [`crate::feed_forward()`]). Values between the norm and the
//! residual sum are numbers of type `T`.

use std::marker::PhantomData;

use candle_core::{Result, Shape, Tensor};
use schemas::config::Precision;

use super::applied::{Operation, apply};
use super::layer_norm::{COLUMNS, LayerNorm};
use super::matrix::Matrix;
use super::memory::{Real, Rounded};
use super::sums::column_sums;
use super::{Buffer, Input, Kernel, Launch, Machine, without_kernels};
use crate::dropout::AddDropped;

/// See [`crate::feed_forward()`]; the parameters are `γ`, `β`, `W₁` `[d, f]`, `b₁`, `W₂` and `b₂`. `None` if rows are too wide
/// for the kernels.
pub(crate) fn feed_forward(
    x: &Tensor,
    [gamma, beta, up, up_bias, down, down_bias]: [&Tensor; 6],
    precision: Precision,
    dropout: AddDropped,
) -> Result<Option<Tensor>> {
    let (rows, d) = x.dims2()?;
    if d > COLUMNS {
        without_kernels(&format!("a layer {d} wide"));
        return Ok(None);
    }
    let size = Size { rows, d, f: up.dim(1)? };
    let inputs = [x, gamma, beta, up, up_bias, down, down_bias];
    match precision {
        Precision::F32 => apply(FeedForward::<f32> { size, dropout, of: PhantomData }, inputs),
        Precision::Bf16 => apply(FeedForward::<half::bf16> { size, dropout, of: PhantomData }, inputs),
    }
    .map(Some)
}

#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    d: usize,
    f: usize,
}

struct FeedForward<T> {
    size: Size,
    dropout: AddDropped,
    of: PhantomData<T>,
}

/// Results of the forward pass kept for the backward pass.
struct Kept<T> {
    /// `W₁ norm(x)`, `[T, f]`.
    inner: Buffer<T>,
    /// `W₁` and `W₂`, if they were rounded.
    weights: [Option<Buffer<T>>; 2],
}

impl<T: Real> Operation<7> for FeedForward<T> {
    type Kept = Kept<T>;

    fn forward(
        &self,
        machine: &Machine,
        [x, gamma, beta, up, up_bias, down, down_bias]: [Input<'_>; 7],
    ) -> Result<(Buffer<f32>, Shape, Kept<T>)> {
        let Size { rows, d, f } = self.size;
        let (up, down) = (Rounded::<T>::new(machine, up)?, Rounded::<T>::new(machine, down)?);
        let normal = LayerNorm { rows, d }.run::<T>(machine, x.read(), [gamma.read(), beta.read()])?;
        let mut inner = Buffer::<T>::new(machine, rows * f)?;
        let mut active = Buffer::<T>::new(machine, rows * f)?;
        // SAFETY: the matrices have the sizes of the parameters; one thread for four elements.
        unsafe {
            let of_inner = Matrix::new::<T>(inner.write(), 0, rows, f);
            let of_normal = Matrix::new::<T>(normal.read(), 0, rows, d);
            machine.product(of_inner, false, of_normal, Matrix::new::<T>(up.read(), 0, d, f))?;
            let name = format!("bias_gelu_{}", T::NAME);
            let kernel = Kernel { file: "elementwise", name: &name };
            let arguments = &mut [inner.read(), up_bias.read(), active.write(), (rows * f).into(), f.into()];
            machine.launch(kernel, Launch::fours(rows * f), arguments)?;
        }
        // Reuses the buffer of the normalised rows, which are not read again.
        let mut outer = normal;
        // SAFETY: as above.
        unsafe {
            let of_outer = Matrix::new::<T>(outer.write(), 0, rows, d);
            let of_active = Matrix::new::<T>(active.read(), 0, rows, f);
            machine.product(of_outer, false, of_active, Matrix::new::<T>(down.read(), 0, f, d))?;
        }
        let size = (rows * d, d);
        let out = self.dropout.run::<T, f32>(machine, x.read(), outer.read(), down_bias.read(), size)?;
        Ok((out, (rows, d).into(), Kept { inner, weights: [up.keep(), down.keep()] }))
    }

    fn backward(
        &self,
        machine: &Machine,
        [x, gamma, beta, up, up_bias, down, _]: [Input<'_>; 7],
        Kept { inner, weights: [up_weight, down_weight] }: Kept<T>,
        (_, dout): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 7]> {
        let Size { rows, d, f } = self.size;
        let (up, down) = (Rounded::again(up, up_weight), Rounded::again(down, down_weight));
        let mut dup = Buffer::<f32>::new(machine, d * f)?;
        let mut ddown = Buffer::<f32>::new(machine, f * d)?;
        let douter = self.dropout.run_backward::<T>(machine, dout)?;
        let ddown_bias = column_sums::<T>(machine, douter.read(), (rows, d))?;
        let mut active = Buffer::<T>::new(machine, rows * f)?;
        let mut dinner = Buffer::<T>::new(machine, rows * f)?;
        let of_douter = Matrix::new::<T>(douter.read(), 0, rows, d);
        // SAFETY: the matrices have the sizes of the parameters; one thread for four elements.
        unsafe {
            let of_dactive = Matrix::new::<T>(dinner.write(), 0, rows, f);
            machine.product(of_dactive, false, of_douter, Matrix::new::<T>(down.read(), 0, f, d).t())?;
            let name = format!("bias_gelu_backward_{}", T::NAME);
            let kernel = Kernel { file: "elementwise", name: &name };
            let (active, dinner) = (active.write(), dinner.write());
            let arguments = &mut [inner.read(), up_bias.read(), active, dinner, (rows * f).into(), f.into()];
            machine.launch(kernel, Launch::fours(rows * f), arguments)?;
            let of_active = Matrix::new::<T>(active, 0, rows, f);
            machine.product(Matrix::new::<f32>(ddown.write(), 0, f, d), false, of_active.t(), of_douter)?;
        }
        let dup_bias = column_sums::<T>(machine, dinner.read(), (rows, f))?;
        let norm = LayerNorm { rows, d };
        let normal = norm.run::<T>(machine, x.read(), [gamma.read(), beta.read()])?;
        let of_dinner = Matrix::new::<T>(dinner.read(), 0, rows, f);
        // Reuses the buffer of the output's gradient, which is not read again.
        let mut dnormal = douter;
        // SAFETY: as above.
        unsafe {
            let of_normal = Matrix::new::<T>(normal.read(), 0, rows, d);
            machine.product(Matrix::new::<f32>(dup.write(), 0, d, f), false, of_normal.t(), of_dinner)?;
            let of_dnormal = Matrix::new::<T>(dnormal.write(), 0, rows, d);
            machine.product(of_dnormal, false, of_dinner, Matrix::new::<T>(up.read(), 0, d, f).t())?;
        }
        let (dx, of_norm) =
            norm.run_backward::<T>(machine, x.read(), gamma.read(), dnormal.read(), dout.read())?;
        let (dgamma, dbeta) = (of_norm.sum(machine, 0..d)?, of_norm.sum(machine, d..2 * d)?);
        Ok([dx, dgamma, dbeta, dup, dup_bias, ddown, ddown_bias].map(Some))
    }
}
