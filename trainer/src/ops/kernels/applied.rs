//! Operations on a machine as Candle's: the forward pass takes storages, the backward pass tensors.

use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, StorageRef, Tensor};

use super::{Buffer, Input, Machine};

/// An operation on three tensors of 32-bit floats. One that has fewer takes some twice, and gives their gradient once.
pub(super) trait Operation: Send + Sync + 'static {
    /// What Candle calls it.
    const NAME: &'static str;
    /// What the backward pass needs of the forward pass.
    type Kept: Send + Sync;
    /// The result, its shape, and what is kept.
    fn forward(&self, machine: &Machine, inputs: [Input<'_>; 3]) -> Result<(Buffer<f32>, Shape, Self::Kept)>;
    /// The gradients of the inputs that have one, from the result and its gradient.
    fn backward(
        &self,
        machine: &Machine,
        inputs: [Input<'_>; 3],
        kept: &Self::Kept,
        out: (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 3]>;
}

/// `tensor` as kernels want it: contiguous, from the beginning of its storage on, where memory is aligned for any load.
fn whole(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    if tensor.layout().start_offset() == 0 { Ok(tensor) } else { tensor.force_contiguous() }
}

fn input<'a>((storage, layout): &'a (StorageRef<'_>, &'a Layout)) -> Result<Input<'a>> {
    Input::of(storage, layout)
}

/// Applies `op` to `tensors`, contiguous or not.
pub(super) fn apply<O: Operation>(op: O, [a, b, c]: [&Tensor; 3]) -> Result<Tensor> {
    let op = Applied { op, kept: OnceLock::new() };
    whole(a)?.apply_op3(&whole(b)?, &whole(c)?, op)
}

/// One application of an operation.
struct Applied<O: Operation> {
    op: O,
    kept: OnceLock<O::Kept>,
}

impl<O: Operation> Applied<O> {
    fn forward(&self, machine: &Machine, inputs: [Input<'_>; 3]) -> Result<(Buffer<f32>, Shape)> {
        let (out, shape, kept) = self.op.forward(machine, inputs)?;
        let _ = self.kept.set(kept);
        Ok((out, shape))
    }
}

impl<O: Operation> CustomOp3 for Applied<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    #[cfg(not(test))]
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("{}: this kernel is not for the CPU", O::NAME)
    }

    #[cfg(test)]
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [Input::of_cpu(s1, l1)?, Input::of_cpu(s2, l2)?, Input::of_cpu(s3, l3)?];
        let (out, shape) = self.forward(&Machine::Emulator, inputs)?;
        Ok((out.into_cpu_storage(), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let inputs = [Input::of_cuda(s1, l1)?, Input::of_cuda(s2, l2)?, Input::of_cuda(s3, l3)?];
        let (out, shape) = self.forward(&Machine::Cuda(s1.device.clone()), inputs)?;
        Ok((out.into_cuda_storage()?, shape))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else {
            candle_core::bail!("{}: backward before forward", O::NAME);
        };
        let dout = whole(dout)?;
        let machine = Machine::of(dout.device())?;
        let tensors = [a, b, c, out, &dout].map(Tensor::storage_and_layout);
        let [a_in, b_in, c_in, out_in, dout_in] = &tensors;
        let inputs = [input(a_in)?, input(b_in)?, input(c_in)?];
        let [da, db, dc] = self.op.backward(&machine, inputs, kept, (input(out_in)?, input(dout_in)?))?;
        let gradient = |d: Option<Buffer<f32>>, of: &Tensor| d.map(|d| d.into_tensor(of.shape())).transpose();
        Ok((gradient(da, a)?, gradient(db, b)?, gradient(dc, c)?))
    }
}
