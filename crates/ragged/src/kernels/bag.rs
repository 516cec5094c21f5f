//! Gathers and means of bags on a GPU.

use std::sync::Arc;

use candle_core::{Result, Shape, Tensor};

use super::applied::{Operation, apply};
use super::{Argument, Buffer, Input, Kernel, Launch, Machine};
use crate::Bags;

/// Maximum bags of a table row that one warp sums: a row in many bags would hold up the other warps.
const PIECE: usize = 64;

/// See [`crate::bag_mean`].
pub(crate) fn bag_mean(table: &Tensor, bags: &Arc<Bags>) -> Result<Tensor> {
    let (rows, columns) = table.dims2()?;
    apply(BagMean { bags: bags.clone(), rows, columns }, [table])
}

/// See [`crate::gather`].
pub(crate) fn gather(table: &Tensor, index: &[u32]) -> Result<Tensor> {
    let bags = Bags { offsets: (0..=index.len() as u32).collect(), rows: index.to_vec() };
    bag_mean(table, &Arc::new(bags))
}

struct BagMean {
    bags: Arc<Bags>,
    rows: usize,
    columns: usize,
}

/// Bags by table row, in pieces of at most [`PIECE`], for the gradient of the table.
pub(super) struct ByRow {
    /// Start of each piece in `bags`, and the end of the last.
    pieces: Vec<u32>,
    bags: Vec<u32>,
    /// Start of each row's pieces, and the end of the last: `[rows + 1]`.
    rows: Vec<u32>,
}

impl ByRow {
    /// Groups bags by row: bag `b` has the rows `of_bags[offsets[b]..offsets[b + 1]]` of a table of `rows`.
    pub(super) fn new(offsets: &[u32], of_bags: &[u32], rows: usize) -> Self {
        let mut ends = vec![0u32; rows + 1];
        for &row in of_bags {
            ends[row as usize + 1] += 1;
        }
        for row in 0..rows {
            ends[row + 1] += ends[row];
        }
        let (mut pieces, mut of_rows) = (Vec::new(), vec![0u32]);
        for row in 0..rows {
            pieces.extend((ends[row]..ends[row + 1]).step_by(PIECE));
            of_rows.push(pieces.len() as u32);
        }
        pieces.push(of_bags.len() as u32);
        let mut next = ends;
        let mut places = vec![0u32; of_bags.len()];
        for (bag, bounds) in (0..).zip(offsets.windows(2)) {
            for &row in &of_bags[bounds[0] as usize..bounds[1] as usize] {
                places[next[row as usize] as usize] = bag;
                next[row as usize] += 1;
            }
        }
        Self { pieces, bags: places, rows: of_rows }
    }

    /// Returns, for each table row, the sum of its bags' `values` `[bags, columns]`, each times the bag's share:
    /// `[rows, columns]`.
    pub(super) fn sums(
        &self,
        machine: &Machine,
        (values, shares): (Argument<'_>, Argument<'_>),
        columns: usize,
    ) -> Result<Buffer<f32>> {
        let bags = Buffer::from_slice(machine, &self.bags)?;
        let pieces = sum_segments(machine, values, (&self.pieces, columns), (bags.read(), shares))?;
        let all = (Argument::null(), Argument::null());
        sum_segments(machine, pieces.read(), (&self.rows, columns), all)
    }
}

/// Returns the sums of `values` over the segments between `offsets`, `[segments, columns]`.
fn sum_segments(
    machine: &Machine,
    values: Argument<'_>,
    (offsets, columns): (&[u32], usize),
    (places, shares): (Argument<'_>, Argument<'_>),
) -> Result<Buffer<f32>> {
    let segments = offsets.len() - 1;
    let offsets = Buffer::from_slice(machine, offsets)?;
    let mut out = Buffer::new(machine, segments * columns)?;
    let kernel = Kernel { file: "bag", name: "sum_segments" };
    // SAFETY: one warp for each segment.
    unsafe {
        let arguments =
            &mut [values, offsets.read(), places, shares, out.write(), segments.into(), columns.into()];
        machine.launch(kernel, Launch::warps(segments), arguments)?;
    }
    Ok(out)
}

impl Operation<1> for BagMean {
    type Kept = ();

    fn forward(&self, machine: &Machine, [table]: [Input<'_>; 1]) -> Result<(Buffer<f32>, Shape, ())> {
        let (bags, columns) = (self.bags.len(), self.columns);
        let offsets = Buffer::from_slice(machine, &self.bags.offsets)?;
        let rows = Buffer::from_slice(machine, &self.bags.rows)?;
        let mut out = Buffer::new(machine, bags * columns)?;
        let kernel = Kernel { file: "bag", name: "bag_mean" };
        // SAFETY: one warp for each bag; `crate::bag_mean` and `crate::gather` check the rows against the table.
        unsafe {
            let arguments =
                &mut [table.read(), offsets.read(), rows.read(), out.write(), bags.into(), columns.into()];
            machine.launch(kernel, Launch::warps(bags), arguments)?;
        }
        Ok((out, (bags, columns).into(), ()))
    }

    fn backward(
        &self,
        machine: &Machine,
        _: [Input<'_>; 1],
        (): (),
        (_, dout): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 1]> {
        let Bags { offsets, rows } = &*self.bags;
        let by_row = ByRow::new(offsets, rows, self.rows);
        let shares: Vec<f32> =
            offsets.windows(2).map(|bounds| 1.0 / (bounds[1] - bounds[0]).max(1) as f32).collect();
        let shares = Buffer::from_slice(machine, &shares)?;
        Ok([Some(by_row.sums(machine, (dout.read(), shares.read()), self.columns)?)])
    }
}
