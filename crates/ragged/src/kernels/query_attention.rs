//! Launches of the attention of single rows (`crates/ragged/kernels/query_attention.cu`).

use std::sync::Arc;

use candle_core::{Result, Shape, Tensor};

use super::applied::{Operation, apply};
use super::attention::Batch;
use super::sums::Parts;
use super::{Argument, Buffer, Input, Kernel, Launch, Machine, THREADS, WARP};
use crate::queries::QueryPlan;

/// Maximum columns of a head: a lane holds four of them.
pub(crate) const WIDTH: usize = 4 * WARP as usize;

/// See [`crate::query_attention()`]; for heads of at most [`WIDTH`] columns.
pub(crate) fn query_attention(
    q: &Tensor,
    kv: &Tensor,
    (bias, log_temperature): (&Tensor, &Tensor),
    op: QueryPlan,
) -> Result<Tensor> {
    apply(op, [q, kv, bias, log_temperature])
}

/// Queries in the machine's memory.
struct Asked {
    tokens: Buffer<u32>,
    of_sequence: Buffer<u32>,
    /// Flags, and the start of each query's.
    matches: Option<(Buffer<u8>, Buffer<u32>)>,
}

impl Asked {
    fn new(machine: &Machine, op: &QueryPlan) -> Result<Self> {
        let numbers = |values: &[usize]| -> Vec<u32> { values.iter().map(|&value| value as u32).collect() };
        let matches = op.queries.matches.as_ref().map(|matches| {
            let bytes: Vec<u8> = matches.iter().map(|&matches| u8::from(matches)).collect();
            Ok::<_, candle_core::Error>((
                Buffer::from_slice(machine, &bytes)?,
                Buffer::from_slice(machine, &numbers(&op.flags))?,
            ))
        });
        Ok(Self {
            tokens: Buffer::from_slice(machine, &op.queries.tokens)?,
            of_sequence: Buffer::from_slice(machine, &numbers(&op.of_sequence))?,
            matches: matches.transpose()?,
        })
    }

    fn arguments(&self) -> [Argument<'_>; 3] {
        let (matches, flags) = match &self.matches {
            Some((matches, flags)) => (matches.read(), flags.read()),
            None => (Argument::null(), Argument::null()),
        };
        [self.tokens.read(), matches, flags]
    }
}

/// Results of the forward pass kept for the backward pass.
pub(super) struct Kept {
    batch: Arc<Batch>,
    asked: Asked,
    /// `log Σ exp` of the scores, `[R, H]`.
    log_sum: Buffer<f32>,
}

impl Operation<4> for QueryPlan {
    type Kept = Kept;

    fn forward(
        &self,
        machine: &Machine,
        [q, kv, bias, log_temperature]: [Input<'_>; 4],
    ) -> Result<(Buffer<f32>, Shape, Kept)> {
        let (n, heads, width) = (self.queries.tokens.len(), self.ragged.heads, self.d / self.ragged.heads);
        let batch = Batch::of(machine, &self.ragged.layout)?;
        let asked = Asked::new(machine, self)?;
        let sequences: Vec<u32> = (self.of_sequence.windows(2).enumerate())
            .flat_map(|(b, ends)| std::iter::repeat_n(b as u32, ends[1] - ends[0]))
            .collect();
        let sequences = Buffer::from_slice(machine, &sequences)?;
        let mut out = Buffer::new(machine, n * self.d)?;
        let mut log_sum = Buffer::new(machine, n * heads)?;
        let mut arguments =
            vec![q.read(), kv.read(), out.write(), log_sum.write(), sequences.read(), n.into()];
        arguments.extend(asked.arguments());
        arguments.extend(batch.arguments(&self.ragged, width, (bias.read(), log_temperature.read())));
        let kernel = Kernel { file: "query_attention", name: "query_attention_forward" };
        // SAFETY: one warp for each query and head; the queries were checked against the layout.
        unsafe { machine.launch(kernel, Launch::warps(n * heads), &mut arguments)? };
        drop(arguments);
        Ok((out, q.shape.clone(), Kept { batch, asked, log_sum }))
    }

    fn backward(
        &self,
        machine: &Machine,
        [q, kv, bias, log_temperature]: [Input<'_>; 4],
        Kept { batch, asked, log_sum }: Kept,
        (out, dout): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 4]> {
        let (n, heads, width) = (self.queries.tokens.len(), self.ragged.heads, self.d / self.ragged.heads);
        let rows = n * heads;
        let mut delta = Buffer::<f32>::new(machine, rows)?;
        let kernel = Kernel { file: "attention", name: "attention_row_products_float" };
        // SAFETY: one warp for each query and head.
        unsafe {
            let arguments = &mut [out.read(), dout.read(), delta.write(), rows.into(), width.into()];
            machine.launch(kernel, Launch::warps(rows), arguments)?;
        }
        let offsets = &self.ragged.layout.offsets;
        let sequences = offsets.len() - 1;
        let longest = offsets.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0);
        let columns = self.ragged.columns();
        let mut dq = Buffer::new(machine, q.len)?;
        let mut dkv = Buffer::new(machine, kv.len)?;
        let mut parts = Parts::new(machine, sequences, heads, columns + 1)?;
        let floats = |n: usize| (n * size_of::<f32>()).next_multiple_of(16);
        let launch = Launch {
            blocks: [sequences as u32, heads as u32, 1],
            threads: THREADS,
            shared: floats(longest) + floats(columns) + floats(WARP as usize),
        };
        let mut arguments = vec![
            q.read(),
            kv.read(),
            dout.read(),
            log_sum.read(),
            delta.read(),
            dq.write(),
            dkv.write(),
            parts.values.write(),
            asked.of_sequence.read(),
            longest.into(),
        ];
        arguments.extend(asked.arguments());
        arguments.extend(batch.arguments(&self.ragged, width, (bias.read(), log_temperature.read())));
        let kernel = Kernel { file: "query_attention", name: "query_attention_backward" };
        // SAFETY: one block for each sequence and head, which writes its own part.
        unsafe { machine.launch(kernel, launch, &mut arguments)? };
        drop(arguments);
        let dbias = parts.sum(machine, 0..columns)?;
        let dlog_temperature = parts.sum(machine, columns..columns + 1)?;
        Ok([Some(dq), Some(dkv), Some(dbias), Some(dlog_temperature)])
    }
}
