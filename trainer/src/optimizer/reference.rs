//! The same step from stock operations: the oracle of the fused one, and the path on devices that have none.

use candle_core::{D, DType, Result, Tensor};

use super::{BETA1, BETA2, EPSILON, matrix};

/// The sum of the squares of all elements of all `tensors`.
pub(super) fn sum_of_squares<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    // Added on the device, so that it is waited for once.
    let squares = tensors
        .map(|tensor| tensor.sqr()?.sum_all()?.to_dtype(DType::F64)?.reshape(1))
        .collect::<Result<Vec<_>>>()?;
    if squares.is_empty() {
        return Ok(0.0);
    }
    Tensor::cat(&squares, 0)?.sum_all()?.to_scalar()
}

/// What a step does with each gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    /// What clipping leaves of the gradient.
    pub(super) scale: f32,
    /// Weight decay.
    pub(super) decay: f32,
    /// Learning rate over the first moments' bias correction.
    pub(super) rate: f32,
    /// One over the root of the second moments' bias correction.
    pub(super) root: f32,
}

impl Update {
    /// Updates `weight` and its `moments` (`[n, 2 c]` for a weight of `n` rows and `c` columns) in place: those of
    /// `rows`, which ascend, where `gradient` has those rows alone.
    pub(super) fn apply(
        &self,
        weight: &Tensor,
        moments: &Tensor,
        gradient: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<()> {
        let (n, columns) = matrix(weight);
        // All rows are written back faster whole.
        let rows = match rows {
            Some(rows) if rows.len() < n => Some(Tensor::from_slice(rows, rows.len(), weight.device())?),
            _ => None,
        };
        // Neither the weight's variable nor the gradient takes part in a differentiation here.
        let (whole, gradient) = (weight.detach().reshape((n, columns))?, gradient.detach());
        let (old, of_old) = match &rows {
            Some(rows) => (whole.index_select(rows, 0)?, moments.index_select(rows, 0)?),
            None => (whole, moments.clone()),
        };
        let gradient = gradient.reshape(old.shape())?;
        let gradient = ((gradient * f64::from(self.scale))? + (&old * f64::from(self.decay))?)?;
        let first = (of_old.narrow(1, 0, columns)? * BETA1)? + (&gradient * (1.0 - BETA1))?;
        let second = (of_old.narrow(1, columns, columns)? * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?;
        let (first, second) = (first?, second?);
        let divisor = ((second.sqrt()? * f64::from(self.root))? + f64::from(EPSILON))?;
        let new = (old - ((&first * f64::from(self.rate))? / divisor)?)?;
        let of_new = Tensor::cat(&[first, second], D::Minus1)?;
        match &rows {
            Some(rows) => {
                write_rows(weight, rows, &new)?;
                write_rows(moments, rows, &of_new)
            }
            None => {
                weight.slice_set(&new.reshape(weight.shape())?, 0, 0)?;
                moments.slice_set(&of_new, 0, 0)
            }
        }
    }
}

/// Writes `values` (`[rows, c]`) into the rows `rows` of `table`.
fn write_rows(table: &Tensor, rows: &Tensor, values: &Tensor) -> Result<()> {
    let index = rows.unsqueeze(1)?.broadcast_as(values.shape())?.contiguous()?;
    table.scatter_set(&index, values, 0)
}
