//! Matrix products in a machine's memory: by cuBLAS on a GPU, by the `gemm` crate in the emulator.

use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::{
    cublas::{result::gemm_ex, sys},
    driver::result::memset_d8_async,
};

#[cfg(feature = "cuda")]
use super::element::cuda;
use super::memory::{Kind, Real};
use super::{Argument, Machine};

/// Matrix in a machine's memory, with rows `pitch` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    address: u64,
    kind: Kind,
    rows: usize,
    columns: usize,
    pitch: usize,
    transposed: bool,
}

impl Matrix {
    /// Returns a view of `rows × columns` numbers of type `T` at `place`, from row `first` on.
    pub(super) fn new<T: Real>(place: Argument<'_>, first: usize, rows: usize, columns: usize) -> Self {
        let address = place.behind::<T>(first * columns).as_address();
        Self { address, kind: T::KIND, rows, columns, pitch: columns, transposed: false }
    }

    /// Sets the distance between rows to `pitch` elements.
    pub(super) fn pitched(self, pitch: usize) -> Self {
        Self { pitch, ..self }
    }

    /// Returns the transposed view.
    pub(super) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Returns the numbers of rows and columns.
    fn size(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }
}

impl Machine {
    /// Computes `c = a b` or, with `add`, `c += a b`, summed in 32-bit floats. `a` and `b` have one type of numbers; `c` has the
    /// same or 32-bit floats.
    ///
    /// # Errors
    ///
    /// Sizes and types that do not fit each other, sizes above `i32::MAX`, and errors of cuBLAS.
    ///
    /// # Safety
    ///
    /// The matrices are in this machine's memory, and nothing else uses `c`.
    pub(super) unsafe fn product(&self, c: Matrix, add: bool, a: Matrix, b: Matrix) -> Result<()> {
        let ((m, k), (of_b, n)) = (a.size(), b.size());
        let types = a.kind == b.kind && [a.kind, Kind::F32].contains(&c.kind);
        if k != of_b || c.size() != (m, n) || c.transposed || !types {
            candle_core::bail!("{m}×{k} times {of_b}×{n} is no {:?}", c.size());
        }
        if m == 0 || n == 0 || k == 0 && add {
            return Ok(());
        }
        if [m, n, k].into_iter().any(|size| i32::try_from(size).is_err()) {
            candle_core::bail!("{m}×{k} times {of_b}×{n} is more than matrix products count");
        }
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                if k == 0 {
                    let stream = device.cuda_stream();
                    // SAFETY: guaranteed by the caller.
                    let cleared = unsafe {
                        memset_d8_async(c.address, 0, m * c.pitch * c.kind.size(), stream.cu_stream())
                    };
                    return cleared.map_err(cuda);
                }
                let blas = device.cublas_handle();
                let (one, beta) = (1f32, if add { 1f32 } else { 0f32 });
                let operation = |matrix: &Matrix| match matrix.transposed {
                    true => sys::cublasOperation_t::CUBLAS_OP_T,
                    false => sys::cublasOperation_t::CUBLAS_OP_N,
                };
                let kind = |matrix: &Matrix| match matrix.kind {
                    Kind::F32 => sys::cudaDataType_t::CUDA_R_32F,
                    Kind::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
                };
                // cuBLAS is column-major: it sees all matrices transposed, and cᵀ = bᵀ aᵀ.
                // SAFETY: guaranteed by the caller; the sizes fit each other.
                unsafe {
                    gemm_ex(
                        *blas.handle(),
                        operation(&b),
                        operation(&a),
                        n as i32,
                        m as i32,
                        k as i32,
                        std::ptr::from_ref(&one).cast(),
                        b.address as *const _,
                        kind(&b),
                        b.pitch as i32,
                        a.address as *const _,
                        kind(&a),
                        a.pitch as i32,
                        std::ptr::from_ref(&beta).cast(),
                        c.address as *mut _,
                        kind(&c),
                        c.pitch as i32,
                        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                        sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                    )
                }
                .map_err(|error| candle_core::Error::Cuda(Box::new(error)))
            }
            #[cfg(feature = "emulator")]
            Self::Emulator => {
                use crate::{Mat, gemm};
                let mut values = vec![0f32; m * n];
                // SAFETY: guaranteed by the caller.
                unsafe {
                    let [of_a, of_b] = [a.values(), b.values()];
                    let mat = |matrix: &Matrix, values| {
                        let mat = Mat::new(values, matrix.rows, matrix.columns, matrix.columns);
                        if matrix.transposed { mat.t() } else { mat }
                    };
                    if add {
                        values = c.values();
                    }
                    gemm(&mut values, n, add, mat(&a, &of_a), mat(&b, &of_b));
                    c.fill(&values);
                }
                Ok(())
            }
        }
    }
}

#[cfg(feature = "emulator")]
impl Matrix {
    /// Returns its numbers as 32-bit floats, without the gaps between rows.
    unsafe fn values(&self) -> Vec<f32> {
        // SAFETY: the emulator's memory is the CPU's.
        let at = |place: usize| unsafe {
            match self.kind {
                Kind::F32 => *(self.address as *const f32).add(place),
                Kind::Bf16 => (*(self.address as *const half::bf16).add(place)).to_f32(),
            }
        };
        self.places().map(at).collect()
    }

    /// Writes `values`, as numbers of its type.
    unsafe fn fill(&self, values: &[f32]) {
        for (place, &value) in self.places().zip(values) {
            // SAFETY: the emulator's memory is the CPU's.
            unsafe {
                match self.kind {
                    Kind::F32 => *(self.address as *mut f32).add(place) = value,
                    Kind::Bf16 => *(self.address as *mut half::bf16).add(place) = half::bf16::from_f32(value),
                }
            }
        }
    }

    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let &Self { rows, columns, pitch, .. } = self;
        (0..rows).flat_map(move |row| row * pitch..row * pitch + columns)
    }
}
