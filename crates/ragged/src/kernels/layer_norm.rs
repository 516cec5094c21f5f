//! Layer norm on a GPU.

use candle_core::{Result, Shape, Tensor};

use super::applied::{Operation, apply};
use super::memory::Real;
use super::sums::{Parts, rows_a_block};
use super::{Argument, Buffer, Input, Kernel, Launch, Machine, THREADS, WARP};
use crate::arguments::NORM_EPSILON;

/// Columns that a lane of a warp holds in the compiled kernels.
const A_LANE: [usize; 4] = [4, 8, 16, 32];
/// Maximum columns of a row: a warp holds them in its registers.
pub(super) const COLUMNS: usize = A_LANE[3] * WARP as usize;

/// See [`crate::layer_norm()`]. `None` if rows are too wide for the kernels.
pub(crate) fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Option<Tensor>> {
    let (rows, d) = x.dims2()?;
    if gamma.dims() != [d] || beta.dims() != [d] {
        candle_core::bail!("layer_norm: {:?} by {:?} and {:?}", x.shape(), gamma.shape(), beta.shape());
    }
    if d > COLUMNS {
        return Ok(None);
    }
    apply(LayerNorm { rows, d }, [x, gamma, beta]).map(Some)
}

/// Layer norm of rows `[rows, d]`, at most [`COLUMNS`] wide.
pub(super) struct LayerNorm {
    pub(super) rows: usize,
    pub(super) d: usize,
}

impl LayerNorm {
    /// Returns the columns that a lane holds in the kernels for these rows.
    fn a_lane(&self) -> usize {
        A_LANE.into_iter().find(|&columns| columns * WARP as usize >= self.d).unwrap_or(A_LANE[3])
    }

    /// Returns the normalised rows, `[rows, d]`.
    pub(super) fn run<T: Real>(
        &self,
        machine: &Machine,
        x: Argument<'_>,
        [gamma, beta]: [Argument<'_>; 2],
    ) -> Result<Buffer<T>> {
        let &Self { rows, d } = self;
        let mut y = Buffer::new(machine, rows * d)?;
        let name = format!("layer_norm_{}_{}", T::NAME, self.a_lane());
        // SAFETY: one warp for each row; `x` and `y` are `[rows, d]`, γ and β `[d]`.
        unsafe {
            let arguments = &mut [x, gamma, beta, y.write(), rows.into(), d.into(), NORM_EPSILON.into()];
            let kernel = Kernel { file: "layer_norm", name: &name };
            machine.launch(kernel, Launch::warps(rows), arguments)?;
        }
        Ok(y)
    }

    /// Returns the gradient of `x`, plus `beside` unless that is null, and the parts of the gradients of γ (the first `d`
    /// columns) and β.
    pub(super) fn run_backward<T: Real>(
        &self,
        machine: &Machine,
        x: Argument<'_>,
        gamma: Argument<'_>,
        dy: Argument<'_>,
        beside: Argument<'_>,
    ) -> Result<(Buffer<f32>, Parts)> {
        let &Self { rows, d } = self;
        let a_block = rows_a_block(rows);
        let blocks = rows.div_ceil(a_block);
        let mut dx = Buffer::new(machine, rows * d)?;
        let mut parts = Parts::new(machine, blocks, 1, 2 * d)?;
        let name = format!("layer_norm_backward_{}_{}", T::NAME, self.a_lane());
        let warps = (THREADS / WARP) as usize;
        let launch = Launch {
            blocks: [blocks as u32, 1, 1],
            threads: THREADS,
            shared: 2 * warps * d * size_of::<f32>(),
        };
        // SAFETY: the blocks share the rows; `parts` has room for what each writes.
        unsafe {
            let arguments = &mut [
                x,
                gamma,
                dy,
                beside,
                dx.write(),
                parts.values.write(),
                rows.into(),
                d.into(),
                a_block.into(),
                NORM_EPSILON.into(),
            ];
            machine.launch(Kernel { file: "layer_norm", name: &name }, launch, arguments)?;
        }
        Ok((dx, parts))
    }
}

impl Operation<3> for LayerNorm {
    type Kept = ();

    fn forward(
        &self,
        machine: &Machine,
        [x, gamma, beta]: [Input<'_>; 3],
    ) -> Result<(Buffer<f32>, Shape, ())> {
        let y = self.run(machine, x.read(), [gamma.read(), beta.read()])?;
        Ok((y, (self.rows, self.d).into(), ()))
    }

    fn backward(
        &self,
        machine: &Machine,
        [x, gamma, _]: [Input<'_>; 3],
        (): (),
        (_, dy): (Input<'_>, Input<'_>),
    ) -> Result<[Option<Buffer<f32>>; 3]> {
        let d = self.d;
        let (dx, parts) =
            self.run_backward::<f32>(machine, x.read(), gamma.read(), dy.read(), Argument::null())?;
        Ok([Some(dx), Some(parts.sum(machine, 0..d)?), Some(parts.sum(machine, d..2 * d)?)])
    }
}
