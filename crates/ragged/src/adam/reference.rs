//! Adam's step from stock operations: the oracle of the fused step, and the path of devices without it.

use candle_core::{D, DType, Result, Tensor};

use super::{BETA1, BETA2, EPSILON, Update, matrix};

/// Returns the sum of the squares of all elements of all `tensors`.
pub(super) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    // Adds up on the device, so that the CPU waits once.
    let squares = tensors
        .iter()
        .map(|tensor| tensor.sqr()?.sum_all()?.to_dtype(DType::F64)?.reshape(1))
        .collect::<Result<Vec<_>>>()?;
    if squares.is_empty() {
        return Ok(0.0);
    }
    Tensor::cat(&squares, 0)?.sum_all()?.to_scalar()
}

/// Updates `weight` and its `moments` in place like [`Update::apply`], on any device. `scale` is the factor that clips the
/// gradient.
pub(super) fn apply(
    update: &Update,
    scale: f32,
    (weight, moments): (&Tensor, &Tensor),
    gradient: &Tensor,
    rows: Option<&[u32]>,
) -> Result<()> {
    let (n, columns) = matrix(weight);
    // If all rows change, writing the whole tensor is faster.
    let rows = match rows {
        Some(rows) if rows.len() < n => Some(Tensor::from_slice(rows, rows.len(), weight.device())?),
        _ => None,
    };
    // Detached: neither the weight nor the gradient is differentiated here.
    let (whole, gradient) = (weight.detach().reshape((n, columns))?, gradient.detach());
    let (old, of_old) = match &rows {
        Some(rows) => (whole.index_select(rows, 0)?, moments.index_select(rows, 0)?),
        None => (whole, moments.clone()),
    };
    let gradient = gradient.reshape(old.shape())?;
    let gradient = ((gradient * f64::from(scale))? + (&old * f64::from(update.decay))?)?;
    let first = (of_old.narrow(1, 0, columns)? * BETA1)? + (&gradient * (1.0 - BETA1))?;
    let second = (of_old.narrow(1, columns, columns)? * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?;
    let (first, second) = (first?, second?);
    let divisor = ((second.sqrt()? * f64::from(update.root))? + f64::from(EPSILON))?;
    let new = (old - ((&first * f64::from(update.rate))? / divisor)?)?;
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

/// Writes `values` (`[rows, c]`) into the rows `rows` of `table`.
fn write_rows(table: &Tensor, rows: &Tensor, values: &Tensor) -> Result<()> {
    let index = rows.unsqueeze(1)?.broadcast_as(values.shape())?.contiguous()?;
    table.scatter_set(&index, values, 0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::{UpdateMoments, UpdateWeights, kernel, sum_of_squares as fused_sum_of_squares};
    use super::*;
    use crate::kernels::emulator;

    fn values(shape: (usize, usize), from: f32) -> Tensor {
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|i| ((i as f32 + from) * 0.7).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn rows_are_updated_like_the_fused_ones_and_the_others_not_at_all() {
        let (scale, update) = (0.5, Update { decay: 0.1, rate: 0.2, root: 3.0 });
        for rows in [None, Some(vec![1, 4]), Some(vec![0, 1, 2, 3, 4, 5])] {
            let gradient = values((rows.as_ref().map_or(6, Vec::len), 3), 1.0);
            let begin = || (values((6, 3), 2.0), values((6, 6), 3.0).abs().unwrap());
            let (weight, moments) = begin();
            apply(&update, scale, (&weight, &moments), &gradient, rows.as_deref()).unwrap();
            let (fused_weight, fused_moments) = begin();
            let shared = rows.clone().map(std::sync::Arc::new);
            let op = UpdateMoments { columns: 3, rows: shared.clone(), scale, decay: update.decay };
            fused_moments.inplace_op3(&gradient, &fused_weight, &op).unwrap();
            let op = UpdateWeights { columns: 3, rows: shared, rate: update.rate, root: update.root };
            fused_weight.inplace_op2(&fused_moments, &op).unwrap();
            let mut pairs = vec![(&weight, &fused_weight), (&moments, &fused_moments)];
            let (kernel_weight, kernel_moments) = begin();
            if emulator::there_is("adam") {
                let clipping = Tensor::new(&[7f32, scale], &Device::Cpu).unwrap();
                let updated = (&kernel_weight, &kernel_moments);
                kernel::apply(&update, &clipping, updated, &gradient, rows.as_deref()).unwrap();
                let none = Tensor::new(&[f32::INFINITY, f32::NAN], &Device::Cpu).unwrap();
                kernel::apply(&update, &none, updated, &gradient, rows.as_deref()).unwrap();
                pairs.extend([(&kernel_weight, &fused_weight), (&kernel_moments, &fused_moments)]);
            }
            for (stock, fused) in pairs {
                let apart = (stock - fused).unwrap().abs().unwrap().max_all().unwrap();
                assert!(apart.to_scalar::<f32>().unwrap() < 1e-6, "{stock} {fused}");
            }
            let (before, after) = (begin().0.to_vec2::<f32>().unwrap(), weight.to_vec2::<f32>().unwrap());
            for row in 0..6 {
                let touched = rows.as_ref().is_none_or(|rows| rows.contains(&(row as u32)));
                assert_eq!(before[row] != after[row], touched, "row {row} of {rows:?}");
            }
        }
    }

    #[test]
    fn squares_add_up_over_all_tensors() {
        let tensors = [values((5, 4), 1.0), values((1, 7), 2.0)];
        let fused: f64 = tensors.iter().map(|t| fused_sum_of_squares(t).unwrap()).sum();
        assert!((sum_of_squares(&tensors.each_ref()).unwrap() - fused).abs() < 1e-5);
        assert_eq!(sum_of_squares(&[]).unwrap(), 0.0);
        if emulator::there_is("sum_of_squares") {
            let clipping =
                |most| kernel::clipping(&tensors.each_ref(), most).unwrap().to_vec1::<f32>().unwrap();
            let norm = fused.sqrt() as f32;
            assert_eq!(clipping(100.0), [norm, 1.0]);
            assert_eq!(clipping(1.0), [norm, 1.0 / norm]);
            let infinite = Tensor::new(&[1f32, f32::INFINITY], &Device::Cpu).unwrap();
            assert!(kernel::clipping(&[&infinite], 1.0).unwrap().to_vec1::<f32>().unwrap()[1].is_nan());
        }
    }
}
