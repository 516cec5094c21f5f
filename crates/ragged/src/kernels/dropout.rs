//! `x + dropout(y)` on a GPU.

use candle_core::{Result, Shape, Tensor};

use super::applied::{Operation, apply};
use super::memory::Real;
use super::{Argument, Buffer, Input, Kernel, Launch, Machine};
use crate::dropout::AddDropped;

/// See [`crate::add_dropped`].
pub(crate) fn add_dropped(x: &Tensor, y: &Tensor, dropout: AddDropped) -> Result<Tensor> {
    apply(dropout, [x, y])
}

impl AddDropped {
    /// Returns `x + dropout(y + bias)` for `n` elements in rows of `columns`; a null `x` or `bias` adds nothing. At least one of
    /// the types is `f32`.
    pub(super) fn run<Y: Real, Out: Real>(
        &self,
        machine: &Machine,
        x: Argument<'_>,
        y: Argument<'_>,
        bias: Argument<'_>,
        (n, columns): (usize, usize),
    ) -> Result<Buffer<Out>> {
        let mut out = Buffer::new(machine, n)?;
        let name = format!("add_dropped_{}_{}", Y::NAME, Out::NAME);
        // SAFETY: one thread for four elements.
        unsafe {
            let arguments = &mut [
                x,
                y,
                bias,
                out.write(),
                n.into(),
                columns.into(),
                ((self.seed >> 32) as u32).into(),
                (self.seed as u32).into(),
                self.threshold.into(),
                self.scale.into(),
            ];
            machine.launch(Kernel { file: "elementwise", name: &name }, Launch::fours(n), arguments)?;
        }
        Ok(out)
    }

    /// Returns `dropout(dy)`, the gradient of `y`.
    pub(super) fn run_backward<T: Real>(&self, machine: &Machine, dy: Input<'_>) -> Result<Buffer<T>> {
        self.run::<f32, T>(machine, Argument::null(), dy.read(), Argument::null(), (dy.len, 1))
    }
}

impl Operation<2> for AddDropped {
    type Kept = ();

    fn forward(&self, machine: &Machine, [x, y]: [Input<'_>; 2]) -> Result<(Buffer<f32>, Shape, ())> {
        let out = self.run::<f32, f32>(machine, x.read(), y.read(), Argument::null(), (y.len, 1))?;
        Ok((out, y.shape.clone(), ()))
    }

    fn backward(
        &self,
        machine: &Machine,
        _: [Input<'_>; 2],
        (): (),
        (_, dout): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 2]> {
        let all = Self { threshold: 0, scale: 1.0, ..*self };
        Ok([Some(all.run_backward(machine, dout)?), Some(self.run_backward(machine, dout)?)])
    }
}
