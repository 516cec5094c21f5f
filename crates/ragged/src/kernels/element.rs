//! Number types of kernels, and the driver's errors.

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, DriverError, ValidAsZeroBits};
use half::bf16;

/// Number types that kernels read and write.
#[cfg(feature = "cuda")]
pub(crate) trait Element: Copy + Default + DeviceRepr + ValidAsZeroBits {}
/// Number types that kernels read and write.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Element: Copy + Default {}

impl Element for f32 {}
impl Element for f64 {}
impl Element for u8 {}
impl Element for u32 {}
impl Element for i64 {}
impl Element for bf16 {}

#[cfg(feature = "cuda")]
pub(super) fn cuda(error: DriverError) -> candle_core::Error {
    candle_core::Error::Cuda(Box::new(error))
}
