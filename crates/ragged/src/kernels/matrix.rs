//! Matrix products: cuBLAS's on a GPU.

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

/// A matrix in a machine's memory, its rows `pitch` apart.
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
    /// `rows × columns` numbers of type `T`, from row `first` on of what is at `place`.
    pub(super) fn new<T: Real>(place: Argument<'_>, first: usize, rows: usize, columns: usize) -> Self {
        let address = place.behind::<T>(first * columns).as_address();
        Self { address, kind: T::KIND, rows, columns, pitch: columns, transposed: false }
    }

    /// The same with rows further apart.
    pub(super) fn pitched(self, pitch: usize) -> Self {
        Self { pitch, ..self }
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
    /// `c = a b` or, with `add`, `c += a b`, summed up in 32-bit floats. `a` and `b` hold numbers of one type, `c` those or 32-bit
    /// floats.
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
                    // SAFETY: promised by the caller.
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
                // SAFETY: promised by the caller.
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
    /// Its numbers as 32-bit floats, without what is between the rows.
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

    /// Writes them.
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
