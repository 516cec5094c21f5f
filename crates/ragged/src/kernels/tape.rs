//! What operations on a machine leave for their gradients, played backwards.
//!
//! Candle's own operations take three tensors at most, and it sums up every gradient from zeros on: two more passes over memory for
//! each tensor of the model. Here an operation takes as many tensors as it needs, and a gradient that is the only one is the sum. What
//! Candle's operations do between ours, Candle differentiates.

use std::cell::RefCell;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, cuda_backend::CudaDType as _};

/// From the result and its gradient, the inputs that have a gradient, and theirs.
type Backward = Box<dyn FnOnce(&Tensor, &Tensor) -> Result<Vec<(Tensor, Tensor)>>>;

thread_local! {
    /// The results so far, in their order.
    static TAPE: RefCell<Option<Vec<(Tensor, Backward)>>> = const { RefCell::new(None) };
}

/// Stops writing, whatever happens.
struct Writing;

impl Drop for Writing {
    fn drop(&mut self) {
        TAPE.take();
    }
}

/// See [`crate::differentiate`].
pub(crate) fn differentiate<R>(compute: impl FnOnce() -> Result<(Tensor, R)>) -> Result<(GradStore, R)> {
    if is_recording() {
        candle_core::bail!("a gradient within a gradient");
    }
    TAPE.set(Some(Vec::new()));
    let writing = Writing;
    let (value, rest) = compute()?;
    let results = TAPE.take().unwrap_or_default();
    drop(writing);
    let mut gradients = super::super::of_stock_operations(&value)?;
    // Whoever uses a result stands behind it: its gradient is complete when its turn comes.
    for (out, backward) in results.into_iter().rev() {
        let Some(dout) = gradients.remove(&out) else { continue };
        for (input, gradient) in backward(&out, &dout)? {
            add(&mut gradients, &input, gradient)?;
        }
    }
    Ok((gradients, rest))
}

/// Whether gradients will be asked for.
pub(super) fn is_recording() -> bool {
    TAPE.with_borrow(Option::is_some)
}

/// Keeps how the gradient of `out` becomes those of what it was computed from.
pub(super) fn record(
    out: Tensor,
    backward: impl FnOnce(&Tensor, &Tensor) -> Result<Vec<(Tensor, Tensor)>> + 'static,
) {
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            tape.push((out, Box::new(backward)));
        }
    });
}

/// Adds to the gradient of `of`, or of what Candle computed it from.
fn add(gradients: &mut GradStore, of: &Tensor, gradient: Tensor) -> Result<()> {
    if !of.is_variable() {
        return gradients.extend(super::super::of_stock_operations(&of.apply_op1(Seed(gradient))?)?);
    }
    let sum = match gradients.remove(of) {
        Some(before) => (before + gradient)?,
        None => gradient,
    };
    gradients.insert(of, sum);
    Ok(())
}

/// A number whose gradient of a tensor is this.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = storage.device.clone();
        Ok((f32::wrap_cuda_slice(device.alloc_zeros::<f32>(1)?, device), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
