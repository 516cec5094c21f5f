//! Linear maps with 16-bit operands on a GPU; Candle computes those with 32-bit ones.

use candle_core::{Result, Shape, Tensor};
use half::bf16;

use super::applied::{Operation, apply};
use super::matrix::Matrix;
use super::memory::Rounded;
use super::{Buffer, Input, Machine};

/// Returns `x W`, with both rounded to 16 bits first: `x` is `[rows, inputs]`, `weight` `[inputs, outputs]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, inputs) = x.dims2()?;
    apply(Linear { rows, inputs, outputs: weight.dim(1)? }, [x, weight])
}

struct Linear {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Operation<2> for Linear {
    type Kept = ();

    fn forward(&self, machine: &Machine, [x, weight]: [Input<'_>; 2]) -> Result<(Buffer<f32>, Shape, ())> {
        let &Self { rows, inputs, outputs } = self;
        let (x, weight) = (Rounded::<bf16>::new(machine, x)?, Rounded::<bf16>::new(machine, weight)?);
        let mut y = Buffer::<f32>::new(machine, rows * outputs)?;
        // SAFETY: the matrices have the sizes of the tensors.
        unsafe {
            let of_x = Matrix::new::<bf16>(x.read(), 0, rows, inputs);
            let of_weight = Matrix::new::<bf16>(weight.read(), 0, inputs, outputs);
            machine.product(Matrix::new::<f32>(y.write(), 0, rows, outputs), false, of_x, of_weight)?;
        }
        Ok((y, (rows, outputs).into(), ()))
    }

    fn backward(
        &self,
        machine: &Machine,
        [x, weight]: [Input<'_>; 2],
        (): (),
        (_, dy): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 2]> {
        let &Self { rows, inputs, outputs } = self;
        let (mut dx, mut dweight) =
            (Buffer::<f32>::new(machine, x.len)?, Buffer::<f32>::new(machine, weight.len)?);
        let [x, weight, dy] = [x, weight, dy].map(|t| Rounded::<bf16>::new(machine, t));
        let (x, weight, dy) = (x?, weight?, dy?);
        // SAFETY: the matrices have the sizes of the tensors.
        unsafe {
            let of_x = Matrix::new::<bf16>(x.read(), 0, rows, inputs);
            let of_weight = Matrix::new::<bf16>(weight.read(), 0, inputs, outputs);
            let of_dy = Matrix::new::<bf16>(dy.read(), 0, rows, outputs);
            machine.product(Matrix::new::<f32>(dx.write(), 0, rows, inputs), false, of_dy, of_weight.t())?;
            let of_dweight = Matrix::new::<f32>(dweight.write(), 0, inputs, outputs);
            machine.product(of_dweight, false, of_x.t(), of_dy)?;
        }
        Ok([Some(dx), Some(dweight)])
    }
}
