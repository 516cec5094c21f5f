//! Ragged self-attention: see `trainer/kernels/attention.cu`.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::sync::{Arc, Weak};

use candle_core::{Result, Shape, Tensor};

use super::applied::{Operation, apply};
use super::memory::Element;
use super::sums::Parts;
use super::{Argument, Buffer, Input, Kernel, Launch, Machine, THREADS};
use crate::ops::AttentionLayout;
use crate::ops::ragged::Ragged;

/// Rows and keys of a tile.
const TILE: usize = 64;
/// Columns of a head that kernels are compiled for.
const WIDTHS: [usize; 4] = [16, 32, 64, 128];

/// `[T, d]`: the attention of [`crate::ops::self_attention()`] on `qkv` `[T, 3 d]`, with biases `[H, P]` or `[H, P + TIME_BUCKETS]`
/// where `P = max_distance`, and `log T_h` `[H]`. `None` where heads are too wide for the kernels, or for the GPU's shared memory.
pub(crate) fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    log_temperature: &Tensor,
    layout: &Arc<AttentionLayout>,
    max_distance: usize,
) -> Result<Option<Tensor>> {
    let ragged = Ragged::new("attention", qkv.dims2()?, bias, layout, max_distance)?;
    let width = qkv.dim(1)? / 3 / ragged.heads;
    if log_temperature.dims() != [ragged.heads] {
        candle_core::bail!("attention: {} heads, {:?}", ragged.heads, log_temperature.shape());
    }
    let op = Attention { ragged, width };
    let room = Machine::of(qkv.device())?.shared_memory()?;
    if width > WIDTHS[3] || op.shared_backward::<f32>() > room {
        return Ok(None);
    }
    apply(op, [qkv, bias, log_temperature]).map(Some)
}

struct Attention {
    ragged: Ragged,
    /// Columns of a head.
    width: usize,
}

/// What the backward pass needs of the forward pass.
struct Kept {
    batch: Arc<Batch>,
    /// `log Σ exp` of the scores, `[T, H]`.
    log_sum: Buffer<f32>,
}

/// The batch's shape, where kernels find it.
pub(super) struct Batch {
    offsets: Buffer<u32>,
    times: Buffer<i64>,
    keys: Option<Buffer<u32>>,
    /// The sequences, the longest first, so that none is left alone at the end.
    order: Buffer<u32>,
    /// Their tiles of rows, `[tiles, 2]`, in that order.
    tiles: Buffer<u32>,
    sequences: usize,
    tile_count: usize,
}

/// A batch's shape, and whose it is.
type Known = (Weak<AttentionLayout>, Machine, Arc<Batch>);

thread_local! {
    /// The last one: all layers of a step share it.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

impl Batch {
    /// The shape of `layout` in the machine's memory, copied there once.
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

    /// What kernels are told of it, and of heads of `width` columns.
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
    /// The columns that the kernels for these heads are compiled for.
    fn columns(&self) -> usize {
        WIDTHS.into_iter().find(|&columns| columns >= self.width).unwrap_or(WIDTHS[3])
    }

    /// Bytes of shared memory: `tiles` tiles of rows, and what every kernel knows of its rows, its keys and its head.
    fn shared<T>(&self, tiles: usize) -> usize {
        let whole = |bytes: usize| bytes.next_multiple_of(16);
        let tile = TILE * (self.columns() * size_of::<T>() + 16);
        let rows = TILE * (size_of::<i64>() + size_of::<u32>());
        tiles * whole(tile) + 2 * rows + whole(self.ragged.columns() * size_of::<f32>())
    }

    /// The same for the backward pass: four tiles, and what gradients are summed up in.
    fn shared_backward<T>(&self) -> usize {
        let floats = |n: usize| (n * size_of::<f32>()).next_multiple_of(16);
        self.shared::<T>(4)
            + 2 * floats(2 * TILE)
            + floats(self.ragged.max_distance)
            + (1 + usize::from(self.ragged.time)) * floats(TILE * (TILE + 1))
    }
}

/// Numbers that attention computes with; what it sums up, and everything else, is 32-bit floats.
trait Real: Element {
    /// Part of the kernels' names.
    const NAME: &'static str;
}

impl Real for f32 {
    const NAME: &'static str = "float";
}

#[cfg(test)]
impl Real for half::bf16 {
    const NAME: &'static str = "bf16";
}

impl Attention {
    /// Fills `out` `[T, d]` and `log_sum` `[T, H]` from queries, keys and values `[T, 3 d]`.
    fn run_forward<T: Real>(
        &self,
        machine: &Machine,
        (qkv, bias, log_temperature): (Argument<'_>, &Input<'_>, &Input<'_>),
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
        arguments.extend(batch.arguments(&self.ragged, self.width, (bias.read(), log_temperature.read())));
        // SAFETY: a block for each tile of each head; the layout was checked against the tensors.
        unsafe { machine.launch(Kernel { file: "attention", name: &name }, launch, &mut arguments) }
    }

    /// The gradients of queries, keys and values, and in parts of the biases (the first columns) and of `log T_h` (the last).
    fn run_backward<T: Real>(
        &self,
        machine: &Machine,
        (qkv, bias, log_temperature): (Argument<'_>, &Input<'_>, &Input<'_>),
        batch: &Batch,
        (out, log_sum, dout): (Argument<'_>, &Buffer<f32>, Argument<'_>),
    ) -> Result<(Buffer<f32>, Parts)> {
        let (heads, tokens) = (self.ragged.heads, self.ragged.tokens());
        let rows = tokens * heads;
        let mut delta = Buffer::<f32>::new(machine, rows)?;
        let name = format!("attention_row_products_{}", T::NAME);
        // SAFETY: a warp for each token and head.
        unsafe {
            let arguments = &mut [out, dout, delta.write(), rows.into(), self.width.into()];
            machine.launch(Kernel { file: "attention", name: &name }, Launch::warps(rows), arguments)?;
        }
        let sequences = batch.sequences;
        let mut dqkv = Buffer::new(machine, rows * 3 * self.width)?;
        let mut parts = Parts::new(machine, sequences, heads, self.ragged.columns() + 1)?;
        let name = format!("attention_backward_{}_{}", T::NAME, self.columns());
        let launch = Launch {
            blocks: [sequences as u32, heads as u32, 1],
            threads: THREADS,
            shared: self.shared_backward::<T>(),
        };
        let (dqkv_argument, parts_argument) = (dqkv.write(), parts.values.write());
        let mut arguments =
            vec![qkv, dout, log_sum.read(), delta.read(), dqkv_argument, parts_argument, batch.order.read()];
        arguments.extend(batch.arguments(&self.ragged, self.width, (bias.read(), log_temperature.read())));
        // SAFETY: a block for each sequence and head, which leaves its own part.
        unsafe { machine.launch(Kernel { file: "attention", name: &name }, launch, &mut arguments)? };
        drop(arguments);
        Ok((dqkv, parts))
    }
}

impl Operation for Attention {
    const NAME: &'static str = "attention";
    type Kept = Kept;

    fn forward(
        &self,
        machine: &Machine,
        [qkv, bias, log_temperature]: [Input<'_>; 3],
    ) -> Result<(Buffer<f32>, Shape, Kept)> {
        let (heads, tokens) = (self.ragged.heads, self.ragged.tokens());
        let d = heads * self.width;
        let batch = Batch::of(machine, &self.ragged.layout)?;
        let mut out = Buffer::<f32>::new(machine, tokens * d)?;
        let mut log_sum = Buffer::new(machine, tokens * heads)?;
        let inputs = (qkv.read(), &bias, &log_temperature);
        self.run_forward(machine, inputs, &batch, (&mut out, &mut log_sum))?;
        Ok((out, (tokens, d).into(), Kept { batch, log_sum }))
    }

    fn backward(
        &self,
        machine: &Machine,
        [qkv, bias, log_temperature]: [Input<'_>; 3],
        Kept { batch, log_sum }: &Kept,
        (out, dout): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 3]> {
        let inputs = (qkv.read(), &bias, &log_temperature);
        let results = (out.read(), log_sum, dout.read());
        let (dqkv, parts) = self.run_backward::<f32>(machine, inputs, batch, results)?;
        let columns = self.ragged.columns();
        let (dbias, dlog_temperature) =
            (parts.sum(machine, 0..columns)?, parts.sum(machine, columns..columns + 1)?);
        Ok([Some(dqkv), Some(dbias), Some(dlog_temperature)])
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::kernels::emulator;
    use crate::ops::{TIME_BUCKETS, check, with_kernels};

    const LENGTHS: [usize; 6] = [70, 1, 0, 130, 9, 64];

    /// `[T, 3 d]`, biases and `log T_h`.
    fn inputs(heads: usize, width: usize, max_distance: usize) -> [Tensor; 3] {
        let tokens = LENGTHS.iter().sum::<usize>();
        [
            check::random((tokens, 3 * heads * width), 1),
            check::random((heads, max_distance + TIME_BUCKETS), 2),
            check::random(heads, 3),
        ]
    }

    #[test]
    fn every_width_agrees_with_stock_operations() {
        if !emulator::there_is("every_width_agrees_with_stock_operations") {
            return;
        }
        // The last one has no kernel.
        for width in [4, 16, 20, 32, 40, 64, 72, 128, 132] {
            let layout = check::layout(&LENGTHS, None);
            check::kernels_agree(&inputs(1, width, 20), 5e-3, |t| {
                let [qkv, bias, log_temperature] = t else { unreachable!() };
                crate::ops::self_attention::attend(qkv, bias, log_temperature, &layout, 20)
            });
        }
    }

    #[test]
    fn the_order_of_threads_does_not_matter() {
        if !emulator::there_is("the_order_of_threads_does_not_matter") {
            return;
        }
        let layout = check::layout(&LENGTHS, None);
        let run = |order| {
            emulator::in_order(order, || {
                let vars = inputs(2, 16, 20).map(|t| candle_core::Var::from_tensor(&t).unwrap());
                let out = attention(&vars[0], &vars[1], &vars[2], &layout, 20).unwrap().unwrap();
                let gradients = (&out * &check::random(out.shape(), 9)).unwrap().backward().unwrap();
                let all = vars.iter().map(|var| gradients.get(var).unwrap()).chain([&out]);
                all.map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect::<Vec<_>>()
            })
        };
        let forwards = with_kernels(|| run(0));
        for order in [1, 0x5bd1_e995] {
            assert_eq!(forwards, with_kernels(|| run(order)));
        }
    }

    #[test]
    fn halves_agree_within_their_precision() {
        if !emulator::there_is("halves_agree_within_their_precision") {
            return;
        }
        for (heads, width) in [(2, 16), (1, 24), (1, 64), (1, 128)] {
            let layout = check::layout(&LENGTHS, None);
            let tokens = LENGTHS.iter().sum::<usize>();
            let d = heads * width;
            // Values that halves can hold, so that only what is computed is rounded.
            let halves = |t: &Tensor| -> Vec<bf16> {
                t.flatten_all().unwrap().to_vec1().unwrap().into_iter().map(bf16::from_f32).collect()
            };
            let floats = |halves: &[bf16], columns: usize| {
                let values: Vec<f32> = halves.iter().map(|h| h.to_f32()).collect();
                Tensor::from_vec(values, (tokens, columns), &candle_core::Device::Cpu).unwrap()
            };
            let [qkv, bias, log_temperature] = inputs(heads, width, 20);
            let (qkv, dout) = (halves(&qkv), halves(&check::random((tokens, d), 9)));
            let vars = [&floats(&qkv, 3 * d), &bias, &log_temperature]
                .map(|t| candle_core::Var::from_tensor(t).unwrap());
            let expected =
                crate::ops::reference::attention(&vars[0], &vars[1], &vars[2], &layout, 20).unwrap();
            let gradients = (&expected * &floats(&dout, d)).unwrap().backward().unwrap();

            let machine = Machine::Emulator;
            let ragged = Ragged::new("test", (tokens, 3 * d), &bias, &layout, 20).unwrap();
            let op = Attention { ragged, width };
            let batch = Batch::of(&machine, &layout).unwrap();
            let [qkv, dout] = [qkv, dout].map(|h| Buffer::from_slice(&machine, &h).unwrap());
            let (bias, log_temperature) = (bias.storage_and_layout(), log_temperature.storage_and_layout());
            let bias = Input::of(&bias.0, bias.1).unwrap();
            let log_temperature = Input::of(&log_temperature.0, log_temperature.1).unwrap();
            let mut out = Buffer::<bf16>::new(&machine, tokens * d).unwrap();
            let mut log_sum = Buffer::new(&machine, tokens * heads).unwrap();
            let inputs = || (qkv.read(), &bias, &log_temperature);
            op.run_forward(&machine, inputs(), &batch, (&mut out, &mut log_sum)).unwrap();
            let results = (out.read(), &log_sum, dout.read());
            let (dqkv, parts) = op.run_backward::<bf16>(&machine, inputs(), &batch, results).unwrap();
            let columns = 20 + TIME_BUCKETS;
            let dbias = parts.sum(&machine, 0..columns).unwrap();

            // Eight bits of a number: a part in 256 of the largest.
            let close = |what: &str, found: &[f32], expected: &Tensor, tolerance: f32| {
                let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let largest = expected.iter().fold(0.0, |most, e| f32::max(most, e.abs()));
                for (f, e) in found.iter().zip(&expected) {
                    assert!((f - e).abs() <= tolerance * largest, "{what}, {width} wide: {f} for {e}");
                }
            };
            let out: Vec<f32> = out.to_vec().unwrap().iter().map(|h| h.to_f32()).collect();
            close("out", &out, &expected, 0.01);
            close("dqkv", &dqkv.to_vec().unwrap(), gradients.get(&vars[0]).unwrap(), 0.02);
            close("dbias", &dbias.to_vec().unwrap(), gradients.get(&vars[1]).unwrap(), 0.02);
        }
    }
}
