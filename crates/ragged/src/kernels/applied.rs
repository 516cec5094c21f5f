//! Operations on a machine as functions of tensors, with their gradients on the [`tape`].

use candle_core::{Result, Shape, Tensor};

use super::{Buffer, Input, Machine, tape};

/// Operation on `N` tensors of 32-bit floats.
pub(super) trait Operation<const N: usize>: 'static {
    /// Results of the forward pass kept for the backward pass.
    type Kept: 'static;
    /// Returns the result, its shape, and the results kept.
    fn forward(&self, machine: &Machine, inputs: [Input<'_>; N]) -> Result<(Buffer<f32>, Shape, Self::Kept)>;
    /// Returns the gradients of the inputs that have one; `out` holds the result and its gradient.
    fn backward(
        &self,
        machine: &Machine,
        inputs: [Input<'_>; N],
        kept: Self::Kept,
        out: (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; N]>;
}

/// Returns `tensor` as kernels require it: contiguous from the start of its storage, where memory is aligned for any load.
fn whole(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    if tensor.layout().start_offset() == 0 { Ok(tensor) } else { tensor.force_contiguous() }
}

/// Applies `f` to each element.
fn each<'a, const N: usize, A, B>(all: &'a [A; N], f: impl FnMut(&'a A) -> Result<B>) -> Result<[B; N]> {
    let results = all.iter().map(f).collect::<Result<Vec<B>>>()?;
    results.try_into().map_err(|_| candle_core::Error::msg("as many results as there are inputs").bt())
}

/// Applies `op` to `inputs`, contiguous or not. Only [`crate::differentiate`] computes its gradient.
pub(super) fn apply<const N: usize, O: Operation<N>>(op: O, inputs: [&Tensor; N]) -> Result<Tensor> {
    let inputs: [Tensor; N] = each(&inputs, |input| whole(input))?;
    let machine = Machine::of(inputs[0].device())?;
    let (out, shape, kept) = {
        let held = inputs.each_ref().map(Tensor::storage_and_layout);
        op.forward(&machine, each(&held, |(storage, layout)| Input::of(storage, layout))?)?
    };
    if !tape::is_recording() || !inputs.iter().any(Tensor::track_op) {
        return Ok(out.into_tensor(shape));
    }
    let out = out.into_variable(shape);
    tape::record(out.clone(), move |out, dout| {
        let dout = whole(dout)?;
        let gradients = {
            let held = inputs.each_ref().map(Tensor::storage_and_layout);
            let given = each(&held, |(storage, layout)| Input::of(storage, layout))?;
            let results = [out, &dout].map(Tensor::storage_and_layout);
            let [out, dout] = each(&results, |(storage, layout)| Input::of(storage, layout))?;
            op.backward(&machine, given, kept, (out, dout))?
        };
        let of_inputs = inputs.into_iter().zip(gradients).filter(|(input, _)| input.track_op());
        of_inputs
            .filter_map(|(input, gradient)| Some((gradient?, input)))
            .map(|(gradient, input)| Ok((input.clone(), gradient.into_tensor(input.shape()))))
            .collect()
    });
    Ok(out)
}
