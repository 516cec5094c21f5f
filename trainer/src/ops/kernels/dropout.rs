use candle_core::{Result, Shape, Tensor};

use super::applied::{Operation, apply};
use super::{Argument, Buffer, Input, Kernel, Launch, Machine};
use crate::ops::dropout::AddDropped;

/// See [`crate::ops::add_dropped`].
pub(crate) fn add_dropped(x: &Tensor, y: &Tensor, dropout: AddDropped) -> Result<Tensor> {
    apply(dropout, [x, y, y])
}

impl AddDropped {
    /// `x + dropout(y)`, or `dropout(y)` without an `x`.
    fn run(&self, machine: &Machine, x: Argument<'_>, y: Input<'_>) -> Result<Buffer<f32>> {
        let mut out = Buffer::new(machine, y.len)?;
        let kernel = Kernel { file: "elementwise", name: "add_dropped" };
        // SAFETY: a thread for each element.
        unsafe {
            let arguments = &mut [
                x,
                y.read(),
                out.write(),
                y.len.into(),
                ((self.seed >> 32) as u32).into(),
                (self.seed as u32).into(),
                self.threshold.into(),
                self.scale.into(),
            ];
            machine.launch(kernel, Launch::threads(y.len), arguments)?;
        }
        Ok(out)
    }
}

impl Operation for AddDropped {
    const NAME: &'static str = "add-dropped";
    type Kept = ();

    fn forward(&self, machine: &Machine, [x, y, _]: [Input<'_>; 3]) -> Result<(Buffer<f32>, Shape, ())> {
        Ok((self.run(machine, x.read(), y)?, y.shape.clone(), ()))
    }

    fn backward(
        &self,
        machine: &Machine,
        _: [Input<'_>; 3],
        (): &(),
        (_, dout): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 3]> {
        let none = Self { threshold: 0, scale: 1.0, ..*self };
        let dx = none.run(machine, Argument::null(), dout)?;
        Ok([Some(dx), Some(self.run(machine, Argument::null(), dout)?), None])
    }
}
