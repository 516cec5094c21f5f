//! Sums that kernels write in parts, so that the order of additions does not depend on the device's schedule.

use std::ops::Range;

use candle_core::Result;

use super::memory::Real;
use super::{Argument, Buffer, Kernel, Launch, Machine, THREADS, WARP};

/// Minimum rows that one block sums, and maximum blocks.
const ROWS: usize = 64;
const BLOCKS: usize = 1024;
/// Warps that share the parts of a sum.
const SHARING: u32 = 8;

/// Returns how many of `rows` rows one block works through.
pub(super) fn rows_a_block(rows: usize) -> usize {
    rows.div_ceil(BLOCKS).max(ROWS)
}

/// Results of a kernel: `count` parts of `rows` rows of `pitch` columns.
pub(super) struct Parts {
    pub(super) values: Buffer<f32>,
    pub(super) count: usize,
    pub(super) rows: usize,
    pub(super) pitch: usize,
}

impl Parts {
    /// Allocates the parts.
    pub(super) fn new(machine: &Machine, count: usize, rows: usize, pitch: usize) -> Result<Self> {
        Ok(Self { values: Buffer::new(machine, count * rows * pitch)?, count, rows, pitch })
    }

    /// Returns the sum of some columns over the parts, `[rows, columns]`.
    pub(super) fn sum(&self, machine: &Machine, columns: Range<usize>) -> Result<Buffer<f32>> {
        let &Self { ref values, count, rows, pitch } = self;
        let n = rows * columns.len();
        let mut out = Buffer::new(machine, n)?;
        let kernel = Kernel { file: "reduce", name: "sum_parts" };
        let threads = SHARING * WARP;
        let launch = Launch {
            blocks: [n.div_ceil(WARP as usize) as u32, 1, 1],
            threads,
            shared: threads as usize * size_of::<f32>(),
        };
        // SAFETY: one lane of each warp of a block for each of the `n` elements; none reads beyond its part.
        unsafe {
            let arguments = &mut [
                values.read(),
                out.write(),
                count.into(),
                (rows * pitch).into(),
                pitch.into(),
                columns.start.into(),
                columns.len().into(),
                n.into(),
            ];
            machine.launch(kernel, launch, arguments)?;
        }
        Ok(out)
    }
}

/// Returns the sums of the columns of `x` `[rows, columns]`.
pub(super) fn column_sums<T: Real>(
    machine: &Machine,
    x: Argument<'_>,
    (rows, columns): (usize, usize),
) -> Result<Buffer<f32>> {
    let a_block = rows_a_block(rows);
    let mut parts = Parts::new(machine, rows.div_ceil(a_block), 1, columns)?;
    let name = format!("column_sums_{}", T::NAME);
    let beside = columns.div_ceil(THREADS as usize) as u32;
    let launch = Launch { blocks: [parts.count as u32, beside, 1], threads: THREADS, shared: 0 };
    // SAFETY: the blocks share the rows and the columns; `parts` has room for what each writes.
    unsafe {
        let arguments = &mut [x, parts.values.write(), rows.into(), columns.into(), a_block.into()];
        machine.launch(Kernel { file: "reduce", name: &name }, launch, arguments)?;
    }
    parts.sum(machine, 0..columns)
}
