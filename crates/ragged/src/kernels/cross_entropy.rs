//! Softmax cross-entropy on a GPU, a group of rows at a time: only one group's logits, 32 MiB or 256 rows (whichever is more),
//! are in memory.

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::{Result, Shape, Tensor};
use schemas::config::Precision;

use super::applied::{Operation, apply};
use super::bag::ByRow;
use super::matrix::Matrix;
use super::memory::{Real, Rounded};
use super::{Argument, Buffer, Input, Kernel, Launch, Machine};
use crate::{Candidates, Targets};

/// Logits of a group, 32 MiB: small enough to stay in the caches of a large GPU between the products and the softmax. And minimum
/// rows of a group, which reads the candidates and their gradients once: fewer rows would make these reads the larger cost.
const LOGITS: usize = 1 << 23;
const ROWS: usize = 256;
/// Rows of logits begin at multiples of this many numbers: tensor cores read 16 bytes at a time.
const PITCH: usize = 8;
/// Threads that share a row of logits; up to 8,192 logits are read once.
const THREADS: u32 = 512;

/// See [`crate::cross_entropy`].
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
            apply(op, [hidden, items])
        }
        Precision::Bf16 => {
            let op = CrossEntropy::<half::bf16>::new(hidden, items, targets, candidates, label_smoothing)?;
            apply(op, [hidden, items])
        }
    }
}

/// Cross-entropy whose matrix products have operands of type `T`; logits, softmax and the loss are 32-bit floats.
struct CrossEntropy<T> {
    rows: usize,
    /// Number of candidates.
    items: usize,
    d: usize,
    targets: Arc<Targets>,
    candidates: Arc<Candidates>,
    label_smoothing: f32,
    of: PhantomData<T>,
}

/// Targets and their competitors in the machine's memory.
struct Asked {
    offsets: Buffer<u32>,
    targets: Buffer<u32>,
    weights: Buffer<f32>,
    sampled: Option<Sampled>,
}

/// Further arguments of sampled softmax.
struct Sampled {
    shift: Buffer<f32>,
    /// Candidates that do not compete with a row's target.
    excluded_offsets: Buffer<u32>,
    excluded: Buffer<u32>,
    /// Candidates whose logits a row does not shift.
    certain_ranges: Buffer<u32>,
    certain: Buffer<u32>,
    /// Logit of each row's target, later its gradient: `[rows]`.
    own: Buffer<f32>,
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
            items: items.dim(0)?,
            d,
            targets: targets.clone(),
            candidates: candidates.clone(),
            label_smoothing: label_smoothing as f32,
            of: PhantomData,
        })
    }

    fn asked(&self, machine: &Machine) -> Result<Asked> {
        let Targets { offsets, candidates, weights } = &*self.targets;
        let sampled = match &*self.candidates {
            Candidates::All => None,
            Candidates::Sampled { shift, excluded_offsets, excluded, certain_ranges, certain } => {
                Some(Sampled {
                    shift: Buffer::from_slice(machine, shift)?,
                    excluded_offsets: Buffer::from_slice(machine, excluded_offsets)?,
                    excluded: Buffer::from_slice(machine, excluded)?,
                    certain_ranges: Buffer::from_slice(machine, certain_ranges)?,
                    certain: Buffer::from_slice(machine, certain)?,
                    own: Buffer::new(machine, self.rows)?,
                })
            }
        };
        Ok(Asked {
            offsets: Buffer::from_slice(machine, offsets)?,
            targets: Buffer::from_slice(machine, candidates)?,
            weights: Buffer::from_slice(machine, weights)?,
            sampled,
        })
    }

    /// Computes the targets' logits for sampled softmax, apart from the others.
    fn own_logits(
        &self,
        machine: &Machine,
        asked: &mut Asked,
        (hidden, items): (Argument<'_>, Argument<'_>),
    ) -> Result<()> {
        let Asked { offsets, targets, sampled: Some(Sampled { own, .. }), .. } = asked else { return Ok(()) };
        let name = format!("own_logits_{}", T::NAME);
        // SAFETY: one warp for each row.
        unsafe {
            let (rows, d) = (self.rows.into(), self.d.into());
            let arguments = &mut [hidden, items, offsets.read(), targets.read(), own.write(), rows, d];
            machine.launch(Kernel { file: "cross_entropy", name: &name }, Launch::warps(self.rows), arguments)
        }
    }

    /// Adds the part of the targets' logits to the gradients of the hidden states, for sampled softmax.
    fn add_own(
        &self,
        machine: &Machine,
        asked: &Asked,
        items: Argument<'_>,
        dhidden: Argument<'_>,
    ) -> Result<()> {
        let Asked { offsets, targets, sampled: Some(Sampled { own, .. }), .. } = asked else { return Ok(()) };
        let name = format!("add_own_{}", T::NAME);
        // SAFETY: one warp for each row.
        unsafe {
            let (rows, d) = (self.rows.into(), self.d.into());
            let arguments = &mut [own.read(), items, offsets.read(), targets.read(), dhidden, rows, d];
            machine.launch(Kernel { file: "cross_entropy", name: &name }, Launch::warps(self.rows), arguments)
        }
    }

    /// Returns `factor`, a number in the machine's memory, times `values`.
    fn scaled(machine: &Machine, values: &Buffer<f32>, factor: Input<'_>, n: usize) -> Result<Buffer<f32>> {
        let mut out = Buffer::new(machine, n)?;
        let kernel = Kernel { file: "elementwise", name: "scale" };
        // SAFETY: one thread for four of the `n` elements.
        unsafe {
            let arguments = &mut [values.read(), factor.read(), out.write(), n.into()];
            machine.launch(kernel, Launch::fours(n), arguments)?;
        }
        Ok(out)
    }
}

impl<T: Real> Operation<2> for CrossEntropy<T> {
    /// Gradients of the hidden states and the items, for a loss gradient of 1.
    type Kept = (Buffer<f32>, Buffer<f32>);

    fn forward(
        &self,
        machine: &Machine,
        [hidden, items]: [Input<'_>; 2],
    ) -> Result<(Buffer<f32>, Shape, Self::Kept)> {
        let &Self { rows, items: all, d, .. } = self;
        let columns = self.candidates.competing(all);
        let mut asked = self.asked(machine)?;
        let pitch = columns.next_multiple_of(PITCH);
        let in_chunk = (LOGITS / pitch.max(1)).max(ROWS).min(rows.max(1));
        let mut logits = Buffer::<f32>::new(machine, in_chunk * pitch)?;
        let floats = hidden;
        let hidden = Rounded::<T>::new(machine, hidden)?;
        let items = Rounded::<T>::new(machine, items)?;
        let mut losses = Buffer::<f32>::new(machine, rows)?;
        let mut dhidden = Buffer::<f32>::new(machine, rows * d)?;
        // Without rows, no product fills it.
        let mut ditems = match rows {
            0 => Buffer::from_slice(machine, &vec![0f32; columns * d])?,
            _ => Buffer::new(machine, columns * d)?,
        };
        self.own_logits(machine, &mut asked, (hidden.read(), items.read()))?;
        let of_items = Matrix::new::<T>(items.read(), 0, columns, d);
        let name = format!("cross_entropy_rows_{}", T::NAME);
        let kernel = Kernel { file: "cross_entropy", name: &name };
        for from in (0..rows).step_by(in_chunk) {
            let n = in_chunk.min(rows - from);
            let logits = Argument::address(logits.write().as_address());
            let [own, shift, excluded_offsets, excluded, certain_ranges, certain] = match &mut asked.sampled {
                Some(Sampled { shift, excluded_offsets, excluded, certain_ranges, certain, own }) => [
                    own.write(),
                    shift.read(),
                    excluded_offsets.read(),
                    excluded.read(),
                    certain_ranges.read(),
                    certain.read(),
                ],
                None => [Argument::null(); 6],
            };
            let launch = Launch {
                blocks: [n as u32, 1, 1],
                threads: THREADS,
                shared: THREADS as usize / 32 * size_of::<f32>(),
            };
            let of_hidden = Matrix::new::<T>(hidden.read(), from, n, d);
            let of_logits = Matrix::new::<f32>(logits, 0, n, columns).pitched(pitch);
            // Gradients overwrite logits; if their numbers are smaller, they leave part of each row unused.
            let of_gradients =
                Matrix::new::<T>(logits, 0, n, columns).pitched(pitch * size_of::<f32>() / size_of::<T>());
            // SAFETY: the matrices are the chunk's rows, all in this machine's memory; one block for each row.
            unsafe {
                machine.product(of_logits, false, of_hidden, of_items.t())?;
                let arguments = &mut [
                    logits,
                    losses.write().behind::<f32>(from),
                    asked.offsets.read(),
                    asked.targets.read(),
                    asked.weights.read(),
                    own,
                    shift,
                    excluded_offsets,
                    excluded,
                    certain_ranges,
                    certain,
                    from.into(),
                    columns.into(),
                    pitch.into(),
                    self.label_smoothing.into(),
                ];
                machine.launch(kernel, launch, arguments)?;
                let of_dhidden = Matrix::new::<f32>(dhidden.write(), from, n, d);
                machine.product(of_dhidden, false, of_gradients, of_items)?;
                let of_ditems = Matrix::new::<f32>(ditems.write(), 0, columns, d);
                machine.product(of_ditems, from > 0, of_gradients.t(), of_hidden)?;
            }
        }
        if let Some(Sampled { own, .. }) = &asked.sampled {
            self.add_own(machine, &asked, items.read(), dhidden.write())?;
            let Targets { offsets, candidates, .. } = &*self.targets;
            let by_item = ByRow::new(offsets, candidates, all);
            let mut of_all = by_item.sums(machine, (floats.read(), own.read()), d)?;
            let kernel = Kernel { file: "elementwise", name: "add" };
            // SAFETY: one thread for four elements of the competitors, which come first.
            unsafe {
                let arguments = &mut [ditems.read(), of_all.write(), (columns * d).into()];
                machine.launch(kernel, Launch::fours(columns * d), arguments)?;
            }
            ditems = of_all;
        }
        let mut loss = Buffer::new(machine, 1)?;
        let kernel = Kernel { file: "cross_entropy", name: "sum_all" };
        let launch = Launch { blocks: [1; 3], threads: THREADS, shared: THREADS as usize * size_of::<f64>() };
        // SAFETY: one block for all rows.
        unsafe {
            machine.launch(kernel, launch, &mut [losses.read(), loss.write(), rows.into()])?;
        }
        Ok((loss, Shape::from(()), (dhidden, ditems)))
    }

    fn backward(
        &self,
        machine: &Machine,
        [hidden, items]: [Input<'_>; 2],
        (dhidden, ditems): Self::Kept,
        (_, dloss): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 2]> {
        let dhidden = Self::scaled(machine, &dhidden, dloss, hidden.len)?;
        Ok([Some(dhidden), Some(Self::scaled(machine, &ditems, dloss, items.len)?)])
    }
}
