//! Launches of ragged self-attention (`crates/ragged/kernels/self_attention.cuh`). Each thread keeps the last batch's layout in
//! the machine's memory.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::sync::{Arc, Weak};

use candle_core::Result;

use super::memory::Real;
use super::sums::Parts;
use super::{Argument, Buffer, Kernel, Launch, Machine, THREADS};
use crate::AttentionLayout;
use crate::ragged::Ragged;

/// Rows and keys of a tile.
const TILE: usize = 64;
/// Head widths that kernels are compiled for, in columns.
const WIDTHS: [usize; 4] = [16, 32, 64, 128];

/// Ragged self-attention over queries, keys and values `[T, 3 d]`, with biases `[H, P]` or `[H, P + TIME_BUCKETS]` where
/// `P = max_distance`, and `log T_h` `[H]`.
pub(super) struct Attention {
    pub(super) ragged: Ragged,
    /// Columns of a head.
    pub(super) width: usize,
}

/// Layout of a batch in a machine's memory.
pub(super) struct Batch {
    offsets: Buffer<u32>,
    times: Buffer<i64>,
    keys: Option<Buffer<u32>>,
    /// Sequences, the longest first, so that no long one runs alone at the end.
    order: Buffer<u32>,
    /// Sequence and number of each tile of rows, in that order: `[tiles, 2]`.
    tiles: Buffer<u32>,
    sequences: usize,
    tile_count: usize,
}

/// A layout, its machine, and its copy there.
type Known = (Weak<AttentionLayout>, Machine, Arc<Batch>);

thread_local! {
    /// Last batch of this thread: all layers of a step share it.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

impl Batch {
    /// Returns `layout` in the machine's memory, copied there once.
    pub(super) fn of(machine: &Machine, layout: &Arc<AttentionLayout>) -> Result<Arc<Self>> {
        LAST.with_borrow_mut(|last| {
            if let Some((of, on, batch)) = last
                && of.ptr_eq(&Arc::downgrade(layout))
                && on == machine
            {
                return Ok(batch.clone());
            }
            let batch = Arc::new(Self::new(machine, layout)?);
            *last = Some((Arc::downgrade(layout), machine.clone(), batch.clone()));
            Ok(batch)
        })
    }

    fn new(machine: &Machine, layout: &AttentionLayout) -> Result<Self> {
        let sequences = layout.offsets.len() - 1;
        let fits = |keys: &Vec<u32>| {
            keys.len() == layout.times.len()
                && keys
                    .iter()
                    .zip(layout.positions())
                    .all(|(&keys, i)| (1..=i + 1).contains(&(keys as usize)))
        };
        if !layout.keys.as_ref().is_none_or(fits) {
            candle_core::bail!("attention: a row sees none of its sequence's keys, or later ones");
        }
        let length = |&b: &u32| layout.offsets[b as usize + 1] - layout.offsets[b as usize];
        let mut order: Vec<u32> = (0..sequences as u32).collect();
        order.sort_by_key(|b| Reverse(length(b)));
        let tiles_of = |&b: &u32| (0..length(&b).div_ceil(TILE) as u32).rev().flat_map(move |tile| [b, tile]);
        let tiles: Vec<u32> = order.iter().flat_map(tiles_of).collect();
        let offsets: Vec<u32> = layout.offsets.iter().map(|&offset| offset as u32).collect();
        Ok(Self {
            offsets: Buffer::from_slice(machine, &offsets)?,
            times: Buffer::from_slice(machine, &layout.times)?,
            keys: layout.keys.as_ref().map(|keys| Buffer::from_slice(machine, keys)).transpose()?,
            order: Buffer::from_slice(machine, &order)?,
            tiles: Buffer::from_slice(machine, &tiles)?,
            sequences,
            tile_count: tiles.len() / 2,
        })
    }

    /// Returns the arguments of kernels for this batch and heads of `width` columns.
    pub(super) fn arguments<'a>(
        &'a self,
        ragged: &Ragged,
        width: usize,
        (bias, log_temperature): (Argument<'a>, Argument<'a>),
    ) -> [Argument<'a>; 9] {
        [
            self.offsets.read(),
            self.times.read(),
            self.keys.as_ref().map_or_else(Argument::null, Buffer::read),
            bias,
            log_temperature,
            ragged.heads.into(),
            width.into(),
            ragged.max_distance.into(),
            ragged.columns().into(),
        ]
    }
}

impl Attention {
    /// Returns the head width of the kernels for these heads.
    fn columns(&self) -> usize {
        WIDTHS.into_iter().find(|&columns| columns >= self.width).unwrap_or(WIDTHS[3])
    }

    /// Returns the bytes of shared memory for `tiles` tiles of rows, and for the times, visible lengths and biases that every
    /// kernel holds.
    fn shared<T>(&self, tiles: usize) -> usize {
        let whole = |bytes: usize| bytes.next_multiple_of(16);
        let tile = TILE * (self.columns() * size_of::<T>() + 16);
        let rows = TILE * (size_of::<i64>() + size_of::<u32>());
        tiles * whole(tile) + 2 * rows + whole(self.ragged.columns() * size_of::<f32>())
    }

    /// Whether there are kernels for heads of this width, with enough shared memory on `machine`.
    pub(super) fn fits<T: Real>(&self, machine: &Machine) -> Result<bool> {
        Ok(self.width <= WIDTHS[3] && self.shared_backward::<T>() <= machine.shared_memory()?)
    }

    /// Returns the bytes of shared memory of the backward pass: four tiles, and the sums of gradients.
    fn shared_backward<T>(&self) -> usize {
        let floats = |n: usize| (n * size_of::<f32>()).next_multiple_of(16);
        self.shared::<T>(4)
            + 2 * floats(2 * TILE)
            + floats(self.ragged.max_distance)
            + (1 + usize::from(self.ragged.time)) * floats(TILE * (TILE + 1))
    }
}

impl Attention {
    /// Fills `out` `[T, d]` and `log_sum` `[T, H]` from queries, keys and values `[T, 3 d]`.
    pub(super) fn forward<T: Real>(
        &self,
        machine: &Machine,
        (qkv, bias, log_temperature): (Argument<'_>, Argument<'_>, Argument<'_>),
        batch: &Batch,
        (out, log_sum): (&mut Buffer<T>, &mut Buffer<f32>),
    ) -> Result<()> {
        let name = format!("attention_forward_{}_{}", T::NAME, self.columns());
        let launch = Launch {
            blocks: [batch.tile_count as u32, self.ragged.heads as u32, 1],
            threads: THREADS,
            shared: self.shared::<T>(2),
        };
        let mut arguments = vec![qkv, out.write(), log_sum.write(), batch.tiles.read()];
        arguments.extend(batch.arguments(&self.ragged, self.width, (bias, log_temperature)));
        // SAFETY: one block for each tile of each head; the layout was checked against the tensors.
        unsafe { machine.launch(Kernel { file: T::ATTENTION, name: &name }, launch, &mut arguments) }
    }

    /// Returns the gradients of queries, keys and values, and in parts those of the biases (first columns) and of `log T_h` (last
    /// column).
    pub(super) fn backward<T: Real>(
        &self,
        machine: &Machine,
        (qkv, bias, log_temperature): (Argument<'_>, Argument<'_>, Argument<'_>),
        batch: &Batch,
        (out, log_sum, dout): (Argument<'_>, &Buffer<f32>, Argument<'_>),
    ) -> Result<(Buffer<T>, Parts)> {
        let (heads, tokens) = (self.ragged.heads, self.ragged.tokens());
        let rows = tokens * heads;
        let mut delta = Buffer::<f32>::new(machine, rows)?;
        let name = format!("attention_row_products_{}", T::NAME);
        // SAFETY: one warp for each token and head.
        unsafe {
            let arguments = &mut [out, dout, delta.write(), rows.into(), self.width.into()];
            machine.launch(Kernel { file: T::ATTENTION, name: &name }, Launch::warps(rows), arguments)?;
        }
        let sequences = batch.sequences;
        let mut dqkv = Buffer::<T>::new(machine, rows * 3 * self.width)?;
        // Gradients of queries, accumulated in 32-bit floats.
        let mut dq = Buffer::<f32>::new(machine, rows * self.width)?;
        let mut parts = Parts::new(machine, sequences, heads, self.ragged.columns() + 1)?;
        let name = format!("attention_backward_{}_{}", T::NAME, self.columns());
        let launch = Launch {
            blocks: [sequences as u32, heads as u32, 1],
            threads: THREADS,
            shared: self.shared_backward::<T>(),
        };
        let mut arguments = vec![qkv, dout, log_sum.read(), delta.read()];
        arguments.extend([dqkv.write(), dq.write(), parts.values.write(), batch.order.read()]);
        arguments.extend(batch.arguments(&self.ragged, self.width, (bias, log_temperature)));
        // SAFETY: one block for each sequence and head, which writes its own part.
        unsafe { machine.launch(Kernel { file: T::ATTENTION, name: &name }, launch, &mut arguments)? };
        drop(arguments);
        Ok((dqkv, parts))
    }
}
