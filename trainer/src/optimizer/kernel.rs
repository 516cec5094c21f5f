//! The same step by a kernel (`trainer/kernels/adam.cu`).

use candle_core::{Result, Tensor};

use super::{BETA1, BETA2, EPSILON, Update, matrix};
use crate::ops::kernels::{Argument, Buffer, Kernel, Launch, Machine, place_of};

/// Blocks that share out one tensor, at most, and their threads.
const BLOCKS: usize = 256;
const THREADS: usize = 256;

/// The sum of the squares of all elements of all `tensors`. Waits for the device.
pub(super) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    let Some(first) = tensors.first() else { return Ok(0.0) };
    let machine = Machine::of(first.device())?;
    let blocks: Vec<usize> =
        tensors.iter().map(|tensor| tensor.elem_count().div_ceil(THREADS).min(BLOCKS)).collect();
    let mut sums = Buffer::<f64>::new(&machine, blocks.iter().sum())?;
    let mut from = 0;
    for (tensor, blocks) in tensors.iter().zip(blocks) {
        let kernel = Kernel { file: "reduce", name: "sum_of_squares" };
        let launch = Launch {
            blocks: [blocks as u32, 1, 1],
            threads: THREADS as u32,
            shared: THREADS * size_of::<f64>(),
        };
        // SAFETY: a sum for each block, behind those of the tensors before.
        unsafe {
            let arguments = &mut [place_of(tensor)?, sums.write(), from.into(), tensor.elem_count().into()];
            machine.launch(kernel, launch, arguments)?;
        }
        from += blocks;
    }
    // Nothing at all was written.
    if from == 0 {
        return Ok(0.0);
    }
    Ok(sums.to_vec()?.iter().sum())
}

/// See [`Update::apply`].
pub(super) fn apply(
    update: &Update,
    weight: &Tensor,
    moments: &Tensor,
    gradient: &Tensor,
    rows: Option<&[u32]>,
) -> Result<()> {
    let machine = Machine::of(weight.device())?;
    let (n, columns) = matrix(weight);
    let count = rows.map_or(n, <[u32]>::len);
    if gradient.elem_count() != count * columns || rows.is_some_and(|rows| rows.last() >= Some(&(n as u32))) {
        candle_core::bail!("a gradient {:?} of a parameter {:?}", gradient.shape(), weight.shape());
    }
    let rows = rows.map(|rows| Buffer::from_slice(&machine, rows)).transpose()?;
    let kernel = Kernel { file: "adam", name: "adam" };
    let &Update { scale, decay, rate, root } = update;
    // SAFETY: a thread for each element of the gradient, whose row is one of the weight's and of the moments'.
    unsafe {
        let arguments = &mut [
            place_of(weight)?,
            place_of(moments)?,
            place_of(gradient)?,
            rows.as_ref().map_or_else(Argument::null, Buffer::read),
            count.into(),
            columns.into(),
            scale.into(),
            decay.into(),
            rate.into(),
            root.into(),
            (BETA1 as f32).into(),
            (BETA2 as f32).into(),
            EPSILON.into(),
        ];
        machine.launch(kernel, Launch::threads(gradient.elem_count()), arguments)
    }
}
