use std::sync::Arc;

use candle_core::{Result, Shape, Tensor};

use super::applied::{Operation, apply};
use super::{Argument, Buffer, Input, Kernel, Launch, Machine};
use crate::ops::Bags;

/// What one warp adds up of a table row's gradient, at most: rows that many bags share would keep the others waiting.
const PIECE: usize = 64;

/// See [`crate::ops::bag_mean`].
pub(crate) fn bag_mean(table: &Tensor, bags: &Arc<Bags>) -> Result<Tensor> {
    let (rows, columns) = table.dims2()?;
    apply(BagMean { bags: bags.clone(), rows, columns }, [table; 3])
}

/// See [`crate::ops::gather`].
pub(crate) fn gather(table: &Tensor, index: &[u32]) -> Result<Tensor> {
    let bags = Bags { offsets: (0..=index.len() as u32).collect(), rows: index.to_vec() };
    bag_mean(table, &Arc::new(bags))
}

struct BagMean {
    bags: Arc<Bags>,
    rows: usize,
    columns: usize,
}

/// The bags by table row.
struct ByRow {
    /// Where each piece begins in `bags` and `shares`, and the end of the last.
    pieces: Vec<u32>,
    bags: Vec<u32>,
    /// What a bag's mean takes of the row.
    shares: Vec<f32>,
    /// Where each row's pieces begin, and the end of the last.
    rows: Vec<u32>,
}

impl ByRow {
    fn new(bags: &Bags, rows: usize) -> Self {
        let mut ends = vec![0u32; rows + 1];
        for &row in &bags.rows {
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
        pieces.push(bags.rows.len() as u32);
        let mut next = ends;
        let (mut places, mut shares) = (vec![0u32; bags.rows.len()], vec![0f32; bags.rows.len()]);
        for bag in 0..bags.len() {
            let of_bag = bags.get(bag);
            for &row in of_bag {
                let place = next[row as usize] as usize;
                next[row as usize] += 1;
                places[place] = bag as u32;
                shares[place] = 1.0 / of_bag.len() as f32;
            }
        }
        Self { pieces, bags: places, shares, rows: of_rows }
    }
}

impl BagMean {
    /// Sums of `values`, one for each of the segments between `offsets`.
    fn sum_segments(
        &self,
        machine: &Machine,
        values: Argument<'_>,
        offsets: &[u32],
        (places, shares): (Argument<'_>, Argument<'_>),
    ) -> Result<Buffer<f32>> {
        let segments = offsets.len() - 1;
        let offsets = Buffer::from_slice(machine, offsets)?;
        let mut out = Buffer::new(machine, segments * self.columns)?;
        let kernel = Kernel { file: "bag", name: "sum_segments" };
        // SAFETY: a warp for each segment.
        unsafe {
            let arguments = &mut [
                values,
                offsets.read(),
                places,
                shares,
                out.write(),
                segments.into(),
                self.columns.into(),
            ];
            machine.launch(kernel, Launch::warps(segments), arguments)?;
        }
        Ok(out)
    }
}

impl Operation for BagMean {
    const NAME: &'static str = "bag-mean";
    type Kept = ();

    fn forward(&self, machine: &Machine, [table, ..]: [Input<'_>; 3]) -> Result<(Buffer<f32>, Shape, ())> {
        let (bags, columns) = (self.bags.len(), self.columns);
        let offsets = Buffer::from_slice(machine, &self.bags.offsets)?;
        let rows = Buffer::from_slice(machine, &self.bags.rows)?;
        let mut out = Buffer::new(machine, bags * columns)?;
        let kernel = Kernel { file: "bag", name: "bag_mean" };
        // SAFETY: a warp for each bag; the rows are some of the table's, which `ops` checks.
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
        _: [Input<'_>; 3],
        (): &(),
        (_, dout): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 3]> {
        let by_row = ByRow::new(&self.bags, self.rows);
        let (bags, shares) =
            (Buffer::from_slice(machine, &by_row.bags)?, Buffer::from_slice(machine, &by_row.shares)?);
        let of_pieces = (bags.read(), shares.read());
        let pieces = self.sum_segments(machine, dout.read(), &by_row.pieces, of_pieces)?;
        let all = (Argument::null(), Argument::null());
        Ok([Some(self.sum_segments(machine, pieces.read(), &by_row.rows, all)?), None, None])
    }
}
