//! Matrix products: cuBLAS's on a GPU.

use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys};

use super::{Argument, Machine};

/// A matrix of 32-bit floats in a machine's memory, its rows `columns` apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    address: u64,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl Matrix {
    /// `rows × columns`, from row `first` on of what is at `place`.
    pub(super) fn new(place: &Argument<'_>, first: usize, rows: usize, columns: usize) -> Self {
        let address = place.as_address() + (first * columns * size_of::<f32>()) as u64;
        Self { address, rows, columns, transposed: false }
    }

    /// The transpose, without moving anything.
    pub(super) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Rows and columns.
    fn size(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }
}

impl Machine {
    /// `c = a b` or, with `add`, `c += a b`.
    ///
    /// # Safety
    ///
    /// The matrices are in this machine's memory, and nobody else uses `c`.
    pub(super) unsafe fn product(&self, c: Matrix, add: bool, a: Matrix, b: Matrix) -> Result<()> {
        let ((m, k), (of_b, n)) = (a.size(), b.size());
        if k != of_b || c.size() != (m, n) || c.transposed {
            candle_core::bail!("{m}×{k} times {of_b}×{n} is no {:?}", c.size());
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        if [m, n, k].into_iter().any(|size| i32::try_from(size).is_err()) {
            candle_core::bail!("{m}×{k} times {of_b}×{n} is more than matrix products count");
        }
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let blas = device.cublas_handle();
                let (one, beta) = (1f32, if add { 1f32 } else { 0f32 });
                let operation = |matrix: &Matrix| match matrix.transposed {
                    true => sys::cublasOperation_t::CUBLAS_OP_T,
                    false => sys::cublasOperation_t::CUBLAS_OP_N,
                };
                let float = sys::cudaDataType_t::CUDA_R_32F;
                // Columns lie one after the other for cuBLAS: it sees all transposed, and cᵀ = bᵀ aᵀ.
                // SAFETY: promised by the caller; the sizes fit each other.
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
                        float,
                        b.columns as i32,
                        a.address as *const _,
                        float,
                        a.columns as i32,
                        std::ptr::from_ref(&beta).cast(),
                        c.address as *mut _,
                        float,
                        c.columns as i32,
                        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                        sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                    )
                }
                .map_err(|error| candle_core::Error::Cuda(Box::new(error)))
            }
            #[cfg(test)]
            Self::Emulator => {
                use crate::ops::{Mat, gemm};
                // SAFETY: promised by the caller.
                let [of_a, of_b] = [a, b].map(|matrix| unsafe {
                    let n = matrix.rows * matrix.columns;
                    let values = std::slice::from_raw_parts(matrix.address as *const f32, n);
                    let mat = Mat::new(values, matrix.rows, matrix.columns, matrix.columns);
                    if matrix.transposed { mat.t() } else { mat }
                });
                // SAFETY: promised by the caller.
                let of_c = unsafe { std::slice::from_raw_parts_mut(c.address as *mut f32, m * n) };
                gemm(of_c, n, add, of_a, of_b);
                Ok(())
            }
        }
    }
}
