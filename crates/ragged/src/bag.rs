//! Rows of a table, gathered or averaged over bags: `[R, c]` → `[bags, c]`.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::arguments::Bags;
use super::{cpu_tensor, f32_slice, fused, reference, vector, with_f32};

const BAGS: usize = 512;

/// Returns the mean of each bag's rows of `table`, `[R, c]` → `[bags, c]`; zeros for an empty bag.
///
/// # Errors
///
/// A row outside the table.
pub fn bag_mean(table: &Tensor, bags: &Arc<Bags>) -> Result<Tensor> {
    let rows = table.dim(0)?;
    if let Some(row) = bags.rows.iter().find(|&&row| row as usize >= rows) {
        candle_core::bail!("bag_mean: row {row} of a table with {rows} rows");
    }
    if fused(table) {
        return table.contiguous()?.apply_op1(BagMean { bags: bags.clone() });
    }
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if super::has_kernels(table) {
        return super::kernels::bag_mean(table, bags);
    }
    reference::bag_mean(table, bags)
}

/// Returns the rows `index` of `table`, `[R, c]` → `[index, c]`.
///
/// # Errors
///
/// A row outside the table.
pub fn gather(table: &Tensor, index: &[u32]) -> Result<Tensor> {
    let rows = table.dim(0)?;
    if let Some(row) = index.iter().find(|&&row| row as usize >= rows) {
        candle_core::bail!("gather: row {row} of a table with {rows} rows");
    }
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if super::has_kernels(table) {
        return super::kernels::gather(table, index);
    }
    table.index_select(&Tensor::from_slice(index, index.len(), table.device())?, 0)
}

struct BagMean {
    bags: Arc<Bags>,
}

impl CustomOp1 for BagMean {
    fn name(&self) -> &'static str {
        "bag-mean"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let table = f32_slice(storage, layout)?;
        let c = layout.shape().dims2()?.1;
        let mut out = vec![0f32; self.bags.len() * c];
        out.par_chunks_mut(BAGS * c).enumerate().for_each(|(chunk, out)| {
            for (i, out) in out.chunks_exact_mut(c).enumerate() {
                let rows = self.bags.get(chunk * BAGS + i);
                for &row in rows {
                    vector::add_scaled(out, 1.0 / rows.len() as f32, &table[row as usize * c..][..c]);
                }
            }
        });
        Ok((CpuStorage::F32(out), (self.bags.len(), c).into()))
    }

    fn bwd(&self, table: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let (r, c) = table.dims2()?;
        let mut dtable = vec![0f32; r * c];
        with_f32(dout, |dout| {
            // One thread: bags share rows, and the order of the additions must be fixed.
            for (b, dout) in dout.chunks_exact(c).enumerate() {
                let rows = self.bags.get(b);
                for &row in rows {
                    vector::add_scaled(&mut dtable[row as usize * c..][..c], 1.0 / rows.len() as f32, dout);
                }
            }
            Ok(())
        })?;
        cpu_tensor(dtable, (r, c)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn agrees_with_stock_and_finite_differences() {
        let mut bags = Bags::default();
        for rows in [&[0, 2][..], &[], &[2], &[1, 1, 3]] {
            bags.push(rows.iter().copied());
        }
        let bags = Arc::new(bags);
        let table = check::random((4, 3), 1);
        let out = bag_mean(&table, &bags).unwrap();
        assert!(check::distance(&out, &reference::bag_mean(&table, &bags).unwrap()) < 1e-6);
        let weight = check::random((4, 3), 2);
        check::gradients(&[table], |t| (bag_mean(&t[0], &bags)? * &weight)?.sum_all());
    }
}
