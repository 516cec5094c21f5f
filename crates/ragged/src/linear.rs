//! `x W + b`, with its gradients.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use schemas::config::Precision;

use super::{Mat, cpu_tensor, f32_slice, fused, gemm, vector, with_f32};

const ROWS: usize = 128;
/// Minimum rows of a part, whose share of the weights' gradient is summed separately; a batch has at most 16 parts.
const GRADIENT_ROWS: usize = 1024;
const GRADIENT_PARTS: usize = 16;

/// Returns `x W + b` for all tokens, `[T, outputs]`: `x` is `[T, inputs]`, `weight` `[inputs, outputs]`, `bias` `[outputs]` or
/// absent. On a GPU, `precision` is the number format of the product.
///
/// # Errors
///
/// `x`, `weight` and `bias` whose shapes do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    if x.dim(1)? != weight.dim(0)? {
        candle_core::bail!("linear: {:?} times {:?}", x.shape(), weight.shape());
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != [weight.dims()[1]]) {
        candle_core::bail!("linear: {:?} plus {:?}", weight.shape(), bias.shape());
    }
    if fused(x) {
        // Candle's operations take a fixed number of tensors: an empty bias stands for none.
        let bias = match bias {
            Some(bias) => bias.clone(),
            None => Tensor::zeros(0, x.dtype(), x.device())?,
        };
        return x.contiguous()?.apply_op3(weight, &bias, Linear);
    }
    let product = match precision {
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        Precision::Bf16 if super::has_kernels(x) => super::kernels::linear(x, weight)?,
        _ => x.matmul(weight)?,
    };
    bias.map_or(Ok(product.clone()), |bias| product.broadcast_add(bias))
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (f32_slice(s1, l1)?, f32_slice(s2, l2)?, f32_slice(s3, l3)?);
        let (inputs, outputs) = l2.shape().dims2()?;
        let tokens = l1.shape().dims2()?.0;
        let mut y = vec![0f32; tokens * outputs];
        y.par_chunks_mut(ROWS * outputs).zip(x.par_chunks(ROWS * inputs)).for_each(|(y, x)| {
            let n = x.len() / inputs;
            gemm(
                y,
                outputs,
                false,
                Mat::new(x, n, inputs, inputs),
                Mat::new(weight, inputs, outputs, outputs),
            );
            if !bias.is_empty() {
                y.chunks_exact_mut(outputs).for_each(|y| vector::add_scaled(y, 1.0, bias));
            }
        });
        Ok((CpuStorage::F32(y), (tokens, outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (inputs, outputs) = weight.dims2()?;
        let with_bias = bias.elem_count() > 0;
        let (dx, dweight, dbias) = with_f32(x, |x| {
            with_f32(weight, |weight| {
                with_f32(dy, |dy| Ok(backward(x, weight, dy, inputs, outputs, with_bias)))
            })
        })?;
        Ok((
            Some(cpu_tensor(dx, x.shape())?),
            Some(cpu_tensor(dweight, weight.shape())?),
            with_bias.then(|| cpu_tensor(dbias, outputs)).transpose()?,
        ))
    }
}

fn backward(
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    inputs: usize,
    outputs: usize,
    with_bias: bool,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut dx = vec![0f32; x.len()];
    dx.par_chunks_mut(ROWS * inputs).zip(dy.par_chunks(ROWS * outputs)).for_each(|(dx, dy)| {
        let n = dy.len() / outputs;
        gemm(
            dx,
            inputs,
            false,
            Mat::new(dy, n, outputs, outputs),
            Mat::new(weight, inputs, outputs, outputs).t(),
        );
    });
    let part = (x.len() / inputs).div_ceil(GRADIENT_PARTS).max(GRADIENT_ROWS);
    let parts: Vec<(Vec<f32>, Vec<f32>)> = x
        .par_chunks(part * inputs)
        .zip(dy.par_chunks(part * outputs))
        .map(|(x, dy)| {
            let n = dy.len() / outputs;
            let mut dweight = vec![0f32; inputs * outputs];
            gemm(
                &mut dweight,
                outputs,
                false,
                Mat::new(x, n, inputs, inputs).t(),
                Mat::new(dy, n, outputs, outputs),
            );
            let mut dbias = vec![0f32; outputs];
            if with_bias {
                dy.chunks_exact(outputs).for_each(|dy| vector::add_scaled(&mut dbias, 1.0, dy));
            }
            (dweight, dbias)
        })
        .collect();
    let (mut dweight, mut dbias) = (vec![0f32; inputs * outputs], vec![0f32; outputs]);
    for (w, b) in &parts {
        vector::add_scaled(&mut dweight, 1.0, w);
        vector::add_scaled(&mut dbias, 1.0, b);
    }
    (dx, dweight, dbias)
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn agrees_with_stock_and_finite_differences() {
        let inputs = [check::random((7, 5), 1), check::random((5, 3), 2), check::random(3, 3)];
        let [x, weight, bias] = &inputs;
        let stock = x.matmul(weight).unwrap().broadcast_add(bias).unwrap();
        assert!(check::distance(&linear(x, weight, Some(bias), Precision::F32).unwrap(), &stock) < 1e-6);
        let factor = check::random((7, 3), 4);
        check::gradients(&inputs, |t| {
            (linear(&t[0], &t[1], Some(&t[2]), Precision::F32)? * &factor)?.sum_all()
        });
        check::gradients(&inputs[..2], |t| {
            (linear(&t[0], &t[1], None, Precision::F32)? * &factor)?.sum_all()
        });
    }

    #[test]
    fn gradients_of_many_rows_agree_with_stock() {
        let inputs = [check::random((2500, 4), 1), check::random((4, 3), 2)]
            .map(|t| candle_core::Var::from_tensor(&t).unwrap());
        let [x, weight] = &inputs;
        let factor = check::random((2500, 3), 4);
        let fused = check::of(|| linear(x, weight, None, Precision::F32)? * &factor);
        let stock = check::of(|| x.matmul(weight)? * &factor);
        for input in &inputs {
            assert!(check::distance(fused.get(input).unwrap(), stock.get(input).unwrap()) < 1e-3);
        }
    }
}
