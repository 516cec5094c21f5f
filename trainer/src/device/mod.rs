//! The device that the trainer computes on (setting `device`), and its number format (setting `precision`).
//!
//! CUDA is a build feature (`cuda`). Checkpoints do not depend on the device: a model trained on one is used and trained further
//! on any other, though without bitwise equality.

mod card;

use candle_core::Device;
use schemas::config::{Config, DeviceSetting, Precision};

pub use card::{Card, peak_memory, profiled};

/// Device and precision of a model.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The CPU or a GPU.
    pub device: Device,
    /// Precision of matrix products and attention.
    pub precision: Precision,
}

impl Backend {
    /// The CPU, in f32.
    pub const CPU: Self = Self { device: Device::Cpu, precision: Precision::F32 };
}

/// An error in opening a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without CUDA.
    #[error(
        "device = \"{setting}\": this trainer was built without CUDA; set device = \"cpu\", or build with \
         trainer/cuda/build.sh, which fetches the compiler"
    )]
    WithoutCuda {
        /// The requested device.
        setting: DeviceSetting,
    },
    /// The machine has no NVIDIA driver.
    #[error(
        "device = \"{setting}\": there is no NVIDIA driver here (libcuda.so.1); install one, let the container see \
         the GPU, or set device = \"cpu\""
    )]
    NoDriver {
        /// The requested device.
        setting: DeviceSetting,
    },
    /// The machine has no GPU of this number.
    #[error(
        "device = \"{setting}\": the NVIDIA driver shows {count} GPUs, numbered from 0 (`nvidia-smi -L` lists them, \
         CUDA_VISIBLE_DEVICES can hide them)"
    )]
    NoGpu {
        /// The requested device.
        setting: DeviceSetting,
        /// Number of visible GPUs.
        count: usize,
    },
    /// The driver reported an error.
    #[error("device = \"{setting}\" cannot be used")]
    Failed {
        /// The requested device.
        setting: DeviceSetting,
        /// The driver's error.
        source: candle_core::Error,
    },
}

/// Opens the device that `config` selects.
///
/// # Errors
///
/// The program has no CUDA, or the driver or the GPU is missing or fails.
pub fn open(config: &Config) -> Result<Backend, DeviceError> {
    Ok(Backend { device: device(config.device)?, precision: config.precision })
}

/// Opens the device that `setting` selects.
pub(crate) fn device(setting: DeviceSetting) -> Result<Device, DeviceError> {
    match setting {
        DeviceSetting::Cpu => Ok(Device::Cpu),
        DeviceSetting::Cuda(ordinal) => cuda(setting, ordinal),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(setting: DeviceSetting, _ordinal: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::WithoutCuda { setting })
}

#[cfg(feature = "cuda")]
fn cuda(setting: DeviceSetting, ordinal: usize) -> Result<Device, DeviceError> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys::CUresult};
    // Checked first, because Candle's error does not distinguish these cases.
    match result::init().and_then(|()| result::device::get_count()) {
        // Without a driver, `trainer/cuda/build.sh` provides a stub libcuda.so.1 that only returns this error.
        Err(result::DriverError(CUresult::CUDA_ERROR_STUB_LIBRARY)) => Err(DeviceError::NoDriver { setting }),
        Err(result::DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(DeviceError::NoGpu { setting, count: 0 })
        }
        Err(error) => Err(DeviceError::Failed { setting, source: candle_core::Error::wrap(error) }),
        Ok(count) if ordinal >= count as usize => Err(DeviceError::NoGpu { setting, count: count as usize }),
        Ok(_) => {
            // One stream for all threads, so operations run in order; Candle's default is one stream per thread.
            let device = Device::new_cuda_with_stream(ordinal).and_then(|device| {
                card::prepare(device.as_cuda_device()?)?;
                Ok(device)
            });
            let device = device.map_err(|source| DeviceError::Failed { setting, source })?;
            eprintln!(
                "device {setting}: training and evaluation on a GPU have not been tried on one yet, only compiled; compare \
                 with device = \"cpu\" before you rely on them"
            );
            Ok(device)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns a GPU if there is one; otherwise reports that `test` is skipped.
    #[cfg(feature = "cuda")]
    pub(crate) fn gpu(test: &str) -> Option<Device> {
        static GPU: std::sync::LazyLock<Result<Device, DeviceError>> =
            std::sync::LazyLock::new(|| device(DeviceSetting::Cuda(0)));
        match &*GPU {
            Ok(device) => Some(device.clone()),
            Err(reason) => {
                testkit::skipped(&format!("{test} ({reason})"), "nvidia-smi");
                None
            }
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert!(device(DeviceSetting::Cpu).unwrap().is_cpu());
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_names_the_setting() {
        // More GPUs than any machine has.
        let setting = DeviceSetting::Cuda(1 << 20);
        let message = device(setting).unwrap_err().to_string();
        assert!(message.starts_with("device = \"cuda:1048576\""), "{message}");
        assert_eq!(message.contains("built without CUDA"), !cfg!(feature = "cuda"), "{message}");
    }
}
