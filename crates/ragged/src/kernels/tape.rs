//! Tape of the operations on a machine, replayed backwards for their gradients.
//!
//! Candle's own operations take at most three tensors, and Candle starts the sum of every gradient from zeros: two more passes
//! over memory for each tensor of the model. Operations on the tape take any number of tensors, and a single gradient is used as
//! it is. Candle differentiates its own operations in between. The tape holds the results of the forward pass until
//! [`differentiate`] returns.

use std::cell::RefCell;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, cuda_backend::CudaDType as _};

/// Maps the result and its gradient to the inputs that have a gradient, each with its gradient.
type Backward = Box<dyn FnOnce(&Tensor, &Tensor) -> Result<Vec<(Tensor, Tensor)>>>;

thread_local! {
    /// Results so far, in order; `None` while nothing is recorded.
    static TAPE: RefCell<Option<Vec<(Tensor, Backward)>>> = const { RefCell::new(None) };
}

/// Stops recording when dropped, also after an error.
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
    // Operations that use a result come later on the tape: its gradient is complete when its turn comes.
    for (out, backward) in results.into_iter().rev() {
        let Some(dout) = gradients.remove(&out) else { continue };
        for (input, gradient) in backward(&out, &dout)? {
            add(&mut gradients, &input, gradient)?;
        }
    }
    Ok((gradients, rest))
}

/// Whether operations are being recorded for a gradient.
pub(super) fn is_recording() -> bool {
    TAPE.with_borrow(Option::is_some)
}

/// Records how the gradient of `out` becomes those of its inputs.
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

/// Adds `gradient` to that of `of`, or of the variables that Candle computed `of` from.
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

/// Scalar whose gradient with respect to its input is the given tensor.
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
