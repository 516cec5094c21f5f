//! Operations on ragged batches with hand-written gradients: fused on the CPU, by CUDA kernels on a GPU (`kernels`), and from
//! stock operations that keep gradients ([`reference`]) where there is no kernel.
//!
//! A ragged batch of `B` sequences is one `[T, d]` tensor of all tokens, sequence after sequence, and `B + 1` offsets into it,
//! without padding. Candle's own fused layer norm and softmax silently cut gradients, and its embedding gradients are slow; these
//! operations replace them.
//!
//! Every operation is deterministic: the split into pieces depends on the size of the work alone, never on the number of threads,
//! and partial sums are added in a fixed order.

mod activation;
pub mod adam;
pub mod agreement;
mod arguments;
mod attention;
mod bag;
mod cross_entropy;
mod dropout;
mod feed_forward;
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) mod kernels;
mod layer_norm;
mod linear;
mod matrix;
mod packed;
mod pointwise_attention;
mod queries;
mod query_attention;
mod ragged;
pub mod reference;
mod self_attention;
mod unit_rows;
pub mod vector;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor};

pub use activation::silu;
pub use activation::{A as GELU_SCALE, B as GELU_CUBIC};
pub use arguments::{Bags, Candidates, Dropout, NORM_EPSILON, Targets, UNIT_EPSILON};
pub use bag::{bag_mean, gather};
pub use cross_entropy::cross_entropy;
pub use dropout::add_dropped;
pub use feed_forward::{FeedForwardParameters, feed_forward};
#[cfg(feature = "emulator")]
pub use kernels::emulator;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use matrix::{Mat, gemm};
pub use pointwise_attention::pointwise_attention;
pub use queries::Queries;
pub use query_attention::query_attention;
pub use ragged::{AttentionLayout, TIME_BUCKETS, time_bucket};
pub use self_attention::{SelfAttentionParameters, self_attention};
pub use unit_rows::unit_rows;

/// Returns the gradients of a scalar with respect to all variables that it depends on. `compute` returns the scalar and further
/// results, which are passed on.
///
/// All gradients must be taken here: kernels keep what their backward pass needs only during this call.
///
/// # Errors
///
/// Errors of `compute` and of the backward pass; with kernels, also a call within another one.
pub fn differentiate<R>(compute: impl FnOnce() -> Result<(Tensor, R)>) -> Result<(GradStore, R)> {
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    return kernels::differentiate(compute);
    #[cfg(not(any(feature = "cuda", feature = "emulator")))]
    {
        let (value, rest) = compute()?;
        Ok((of_stock_operations(&value)?, rest))
    }
}

/// Returns the gradients through Candle's own operations and the fused ones.
#[expect(clippy::disallowed_methods, reason = "everybody else is to ask `differentiate`")]
fn of_stock_operations(value: &Tensor) -> Result<GradStore> {
    value.backward()
}

/// Whether `tensor` is on a device with the fused operations: the CPU, unless a test replaces them on this thread.
pub fn fused(tensor: &Tensor) -> bool {
    #[cfg(feature = "emulator")]
    if PATH.get() != Path::Fused {
        return false;
    }
    tensor.device().is_cpu()
}

/// Whether `tensor` is on a device with kernels; operations without a kernel run as stock operations.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub fn has_kernels(tensor: &Tensor) -> bool {
    #[cfg(feature = "emulator")]
    if PATH.get() != Path::Fused {
        return PATH.get() == Path::Kernels;
    }
    tensor.device().is_cuda()
}

/// Version of the operations that the CPU runs, for tests.
#[cfg(feature = "emulator")]
#[derive(Debug, Clone, Copy, PartialEq)]
enum Path {
    Fused,
    Stock,
    Kernels,
}

#[cfg(feature = "emulator")]
thread_local! {
    static PATH: std::cell::Cell<Path> = const { std::cell::Cell::new(Path::Fused) };
}

#[cfg(feature = "emulator")]
fn on_path<R>(path: Path, f: impl FnOnce() -> R) -> R {
    struct Restore(Path);
    impl Drop for Restore {
        fn drop(&mut self) {
            PATH.set(self.0);
        }
    }
    let _restore = Restore(PATH.replace(path));
    f()
}

/// Calls `f` with stock operations in place of the fused ones on the CPU, on this thread.
#[cfg(feature = "emulator")]
pub fn with_stock_operations<R>(f: impl FnOnce() -> R) -> R {
    on_path(Path::Stock, f)
}

/// Calls `f` with emulated kernels in place of the fused operations on the CPU, on this thread; operations without a kernel run
/// as stock operations. Callers check [`emulator::there_is`] first.
#[cfg(feature = "emulator")]
pub fn with_kernels<R>(f: impl FnOnce() -> R) -> R {
    on_path(Path::Kernels, f)
}

/// Returns the elements of a contiguous `f32` tensor on the CPU.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a fused operation needs contiguous input, got {layout:?}"),
    }
}

/// Calls `f` with the elements of `tensor`, copied if it is not contiguous.
fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(f32_slice(storage, layout)?),
        _ => candle_core::bail!("a fused CPU operation was given a tensor of another device"),
    }
}

fn cpu_tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

#[cfg(test)]
pub(crate) mod check {
    //! Finite differences: the check of every hand-written gradient.

    use candle_core::backprop::GradStore;
    use candle_core::{Result, Tensor, Var};

    use super::agreement::results;
    pub(super) use super::agreement::{layout, random};

    /// Returns the gradients of the sum of all elements of `f()`.
    pub(super) fn of(f: impl FnOnce() -> Result<Tensor>) -> GradStore {
        super::differentiate(|| Ok((f()?, ()))).unwrap().0
    }

    /// Compares the gradients of the scalar `f(inputs)` with central differences at every element.
    pub(super) fn gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let gradients = of(|| f(&tensors));
        let value = |inputs: &[Tensor]| f64::from(f(inputs).unwrap().to_scalar::<f32>().unwrap());
        for (i, tensor) in tensors.iter().enumerate() {
            let gradient = gradients.get(tensor).unwrap_or_else(|| panic!("no gradient reached input {i}"));
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let at = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (e, &exact) in gradient.iter().enumerate() {
                let moved = |by: f32| {
                    let mut moved = at.clone();
                    moved[e] += by;
                    let mut inputs: Vec<Tensor> = tensors.iter().map(Tensor::detach).collect();
                    inputs[i] = Tensor::from_vec(moved, tensor.shape(), tensor.device()).unwrap();
                    value(&inputs)
                };
                let step = 1e-2f32;
                let difference = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                let error = (difference - f64::from(exact)).abs();
                assert!(
                    error <= 2e-3 + 1e-2 * difference.abs(),
                    "input {i}, element {e}: gradient {exact}, finite difference {difference}"
                );
            }
        }
    }

    /// Compares `f(inputs)`, to 1e-4, and all gradients of a weighted sum of it, to `tolerance`, with stock operations.
    pub(super) fn agrees_with_stock(
        inputs: &[Tensor],
        tolerance: f32,
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let stock = super::with_stock_operations(|| results(inputs, &f)).unwrap();
        agree(&results(inputs, &f).unwrap(), &stock, tolerance);
    }

    fn agree(ours: &[Tensor], expected: &[Tensor], tolerance: f32) {
        assert!(distance(&ours[0], &expected[0]) < 1e-4);
        for (i, (ours, expected)) in ours.iter().zip(expected).skip(1).enumerate() {
            let distance = distance(ours, expected);
            assert!(distance < tolerance, "input {i}: {distance}");
        }
    }

    /// Returns the largest difference between two tensors.
    pub(super) fn distance(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        let differences = (a - b).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        differences.into_iter().fold(0.0, |most, difference| {
            assert!(difference.is_finite(), "{a} and {b}");
            f32::max(most, difference.abs())
        })
    }
}
