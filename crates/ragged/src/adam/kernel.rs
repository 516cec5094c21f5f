//! Adam's step and clipping by CUDA kernels (`crates/ragged/kernels/adam.cu`).

use candle_core::{Result, Tensor};

use super::{BETA1, BETA2, EPSILON, Update, matrix};
use crate::kernels::{Argument, Buffer, Kernel, Launch, Machine, place_of};

/// Maximum blocks for one tensor, and threads of a block.
const BLOCKS: usize = 256;
const THREADS: usize = 256;

/// Returns two numbers, `[2]`, without waiting for the device: the norm of the gradient that `tensors` make up, and the factor
/// that clips it to `clip_norm`, NaN if the norm is not finite.
pub(super) fn clipping(tensors: &[&Tensor], clip_norm: f64) -> Result<Tensor> {
    let Some(first) = tensors.first() else { candle_core::bail!("no gradient at all") };
    let machine = Machine::of(first.device())?;
    let blocks: Vec<usize> =
        tensors.iter().map(|tensor| tensor.elem_count().div_ceil(THREADS).min(BLOCKS)).collect();
    let count: usize = blocks.iter().sum();
    let mut sums = Buffer::<f64>::new(&machine, count)?;
    let launch = |blocks: usize| Launch {
        blocks: [blocks as u32, 1, 1],
        threads: THREADS as u32,
        shared: THREADS * size_of::<f64>(),
    };
    let mut from = 0;
    for (tensor, blocks) in tensors.iter().zip(blocks) {
        let kernel = Kernel { file: "reduce", name: "sum_of_squares" };
        // SAFETY: each block writes one sum, after those of the earlier tensors.
        unsafe {
            let arguments = &mut [place_of(tensor)?, sums.write(), from.into(), tensor.elem_count().into()];
            machine.launch(kernel, launch(blocks), arguments)?;
        }
        from += blocks;
    }
    let mut clipping = Buffer::<f32>::new(&machine, 2)?;
    // SAFETY: one block reads all sums.
    unsafe {
        let kernel = Kernel { file: "adam", name: "clip_norm" };
        let arguments = &mut [sums.read(), clipping.write(), count.into(), (clip_norm as f32).into()];
        machine.launch(kernel, launch(1), arguments)?;
    }
    Ok(clipping.into_tensor(2))
}

/// Updates `weight` and its `moments` like [`super::reference::apply`]; `clipping` holds the norm and the clipping factor.
pub(super) fn apply(
    update: &Update,
    clipping: &Tensor,
    (weight, moments): (&Tensor, &Tensor),
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
    let &Update { decay, rate, root } = update;
    let threads = columns.next_multiple_of(32).min(THREADS) as u32;
    let launch = Launch { blocks: [count as u32, 1, 1], threads, shared: 0 };
    // SAFETY: one block for each row of the gradient, which is a row of the weight and of the moments.
    unsafe {
        let arguments = &mut [
            place_of(weight)?,
            place_of(moments)?,
            place_of(gradient)?,
            rows.as_ref().map_or_else(Argument::null, Buffer::read),
            columns.into(),
            place_of(clipping)?,
            decay.into(),
            rate.into(),
            root.into(),
            (BETA1 as f32).into(),
            (BETA2 as f32).into(),
            EPSILON.into(),
        ];
        machine.launch(kernel, launch, arguments)
    }
}
