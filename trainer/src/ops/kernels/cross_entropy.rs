use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::{Result, Shape, Tensor};
use schemas::config::Precision;

use super::applied::{Operation, apply};
use super::matrix::Matrix;
use super::memory::{Kind, Real, Rounded};
use super::{Argument, Buffer, Input, Kernel, Launch, Machine};
use crate::ops::{Candidates, Targets};

/// Logits in memory at a time: so many that they stay in the L2 cache of a large GPU between the products and softmax, which all
/// pass over them. With large catalogues it is more, so that the candidates are read for this many rows at a time.
const LOGITS: usize = 1 << 22;
const ROWS: usize = 64;
/// Threads that share a row of logits.
const THREADS: u32 = 256;

/// See [`crate::ops::cross_entropy`].
pub(crate) fn cross_entropy(
    hidden: &Tensor,
    items: &Tensor,
    targets: &Arc<Targets>,
    candidates: &Arc<Candidates>,
    label_smoothing: f64,
    precision: Precision,
) -> Result<Tensor> {
    match precision {
        Precision::F32 => {
            let op = CrossEntropy::<f32>::new(hidden, items, targets, candidates, label_smoothing)?;
            apply(op, [hidden, items, items])
        }
        Precision::Bf16 => {
            let op = CrossEntropy::<half::bf16>::new(hidden, items, targets, candidates, label_smoothing)?;
            apply(op, [hidden, items, items])
        }
    }
}

/// Operands of matrix products are numbers of type `T`; logits, softmax and the loss are 32-bit floats.
struct CrossEntropy<T> {
    rows: usize,
    columns: usize,
    d: usize,
    targets: Arc<Targets>,
    candidates: Arc<Candidates>,
    label_smoothing: f32,
    of: PhantomData<T>,
}

/// The targets and their competitors, where kernels find them.
struct Asked {
    offsets: Buffer<u32>,
    targets: Buffer<u32>,
    weights: Buffer<f32>,
    /// Shifts, and the offsets and candidates that do not compete; nothing where all do.
    sampled: Option<(Buffer<f32>, Buffer<u32>, Buffer<u32>)>,
    negatives: usize,
}

impl<T: Real> CrossEntropy<T> {
    fn new(
        hidden: &Tensor,
        items: &Tensor,
        targets: &Arc<Targets>,
        candidates: &Arc<Candidates>,
        label_smoothing: f64,
    ) -> Result<Self> {
        let (rows, d) = hidden.dims2()?;
        Ok(Self {
            rows,
            columns: items.dim(0)?,
            d,
            targets: targets.clone(),
            candidates: candidates.clone(),
            label_smoothing: label_smoothing as f32,
            of: PhantomData,
        })
    }

    fn asked(&self, machine: &Machine) -> Result<Asked> {
        let Targets { offsets, candidates, weights } = &*self.targets;
        let (sampled, negatives) = match &*self.candidates {
            Candidates::All => (None, self.columns),
            Candidates::Sampled { shift, excluded_offsets, excluded } => {
                let excluded = Buffer::from_slice(machine, excluded)?;
                let offsets = Buffer::from_slice(machine, excluded_offsets)?;
                (Some((Buffer::from_slice(machine, shift)?, offsets, excluded)), shift.len())
            }
        };
        Ok(Asked {
            offsets: Buffer::from_slice(machine, offsets)?,
            targets: Buffer::from_slice(machine, candidates)?,
            weights: Buffer::from_slice(machine, weights)?,
            sampled,
            negatives,
        })
    }

    /// `factor`, a number in the machine's memory, times `values`.
    fn scaled(machine: &Machine, values: &Buffer<f32>, factor: Input<'_>, n: usize) -> Result<Buffer<f32>> {
        let mut out = Buffer::new(machine, n)?;
        let kernel = Kernel { file: "elementwise", name: "scale" };
        // SAFETY: a thread for four of the `n` elements.
        unsafe {
            let arguments = &mut [values.read(), factor.read(), out.write(), n.into()];
            machine.launch(kernel, Launch::fours(n), arguments)?;
        }
        Ok(out)
    }
}

impl<T: Real> Operation for CrossEntropy<T> {
    const NAME: &'static str = "cross-entropy";
    /// Gradients of the hidden states and the items, for a loss gradient of 1.
    type Kept = (Buffer<f32>, Buffer<f32>);

    fn forward(
        &self,
        machine: &Machine,
        [hidden, items, _]: [Input<'_>; 3],
    ) -> Result<(Buffer<f32>, Shape, Self::Kept)> {
        let &Self { rows, columns, d, .. } = self;
        let asked = self.asked(machine)?;
        let in_chunk = (LOGITS / columns.max(1)).max(ROWS).min(rows.max(1));
        let mut logits = Buffer::<f32>::new(machine, in_chunk * columns)?;
        // Where logits are numbers of this type already, they become gradients where they are.
        let mut gradients = match T::KIND {
            Kind::F32 => None,
            Kind::Bf16 => Some(Buffer::<T>::new(machine, in_chunk * columns)?),
        };
        let hidden = Rounded::<T>::new(machine, hidden.read(), hidden.len)?;
        let items = Rounded::<T>::new(machine, items.read(), items.len)?;
        let mut losses = Buffer::<f32>::new(machine, rows)?;
        let mut dhidden = Buffer::<f32>::new(machine, rows * d)?;
        // Without rows there are no products that would fill it.
        let mut ditems = match rows {
            0 => Buffer::from_slice(machine, &vec![0f32; columns * d])?,
            _ => Buffer::new(machine, columns * d)?,
        };
        let all_items = Matrix::new::<T>(items.read(), 0, columns, d);
        let name = format!("cross_entropy_rows_{}", T::NAME);
        let kernel = Kernel { file: "cross_entropy", name: &name };
        for from in (0..rows).step_by(in_chunk) {
            let n = in_chunk.min(rows - from);
            let of_hidden = Matrix::new::<T>(hidden.read(), from, n, d);
            let logits = Argument::address(logits.write().as_address());
            let gradients = gradients.as_mut().map_or(logits, Buffer::write);
            let of_gradients = Matrix::new::<T>(gradients, 0, n, columns);
            let (shift, excluded_offsets, excluded) = match &asked.sampled {
                Some((shift, offsets, excluded)) => (shift.read(), offsets.read(), excluded.read()),
                None => (Argument::null(), Argument::null(), Argument::null()),
            };
            let launch = Launch {
                blocks: [n as u32, 1, 1],
                threads: THREADS,
                shared: THREADS as usize * size_of::<f32>(),
            };
            // SAFETY: the matrices are the chunk's rows, all in this machine's memory; a block for each row.
            unsafe {
                let of_logits = Matrix::new::<f32>(logits, 0, n, columns);
                machine.product(of_logits, false, of_hidden, all_items.t())?;
                let arguments = &mut [
                    logits,
                    gradients,
                    losses.write().behind::<f32>(from),
                    asked.offsets.read(),
                    asked.targets.read(),
                    asked.weights.read(),
                    shift,
                    excluded_offsets,
                    excluded,
                    from.into(),
                    columns.into(),
                    asked.negatives.into(),
                    self.label_smoothing.into(),
                ];
                machine.launch(kernel, launch, arguments)?;
                let of_dhidden = Matrix::new::<f32>(dhidden.write(), from, n, d);
                machine.product(of_dhidden, false, of_gradients, all_items)?;
                let all_ditems = Matrix::new::<f32>(ditems.write(), 0, columns, d);
                machine.product(all_ditems, from > 0, of_gradients.t(), of_hidden)?;
            }
        }
        let mut loss = Buffer::new(machine, 1)?;
        let kernel = Kernel { file: "cross_entropy", name: "sum_all" };
        let launch = Launch { blocks: [1; 3], threads: THREADS, shared: THREADS as usize * size_of::<f64>() };
        // SAFETY: one block for all.
        unsafe {
            machine.launch(kernel, launch, &mut [losses.read(), loss.write(), rows.into()])?;
        }
        Ok((loss, Shape::from(()), (dhidden, ditems)))
    }

    fn backward(
        &self,
        machine: &Machine,
        [hidden, items, _]: [Input<'_>; 3],
        (dhidden, ditems): &Self::Kept,
        (_, dloss): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 3]> {
        let dhidden = Self::scaled(machine, dhidden, dloss, hidden.len)?;
        Ok([Some(dhidden), Some(Self::scaled(machine, ditems, dloss, items.len)?), None])
    }
}
