//! Where the trainer computes, the setting `device`, and with which numbers, `precision`.
//!
//! CUDA is a feature of the build (`cuda`). Checkpoints do not know devices: a model that was trained on one is used
//! and trained further on any other, though not to the same bits.

mod card;

use candle_core::Device;
use schemas::config::{Config, DeviceSetting, Precision};

pub use card::{Card, peak_memory, profiled};

/// Where a model computes, and with what.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The processor or a GPU.
    pub device: Device,
    /// The numbers of matrix products and attention.
    pub precision: Precision,
}

impl Backend {
    /// The processor.
    pub const CPU: Self = Self { device: Device::Cpu, precision: Precision::F32 };
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program knows the CPU alone.
    #[error(
        "device = \"{setting}\": this trainer was built without CUDA; set device = \"cpu\", or build with \
         trainer/cuda/build.sh, which fetches the compiler"
    )]
    WithoutCuda {
        /// What was asked for.
        setting: DeviceSetting,
    },
    /// The machine has no driver.
    #[error(
        "device = \"{setting}\": there is no NVIDIA driver here (libcuda.so.1); install one, let the container see \
         the GPU, or set device = \"cpu\""
    )]
    NoDriver {
        /// What was asked for.
        setting: DeviceSetting,
    },
    /// The machine has fewer GPUs.
    #[error(
        "device = \"{setting}\": the NVIDIA driver shows {count} GPUs, numbered from 0 (`nvidia-smi -L` lists them, \
         CUDA_VISIBLE_DEVICES can hide them)"
    )]
    NoGpu {
        /// What was asked for.
        setting: DeviceSetting,
        /// GPUs that can be seen.
        count: usize,
    },
    /// The driver refused.
    #[error("device = \"{setting}\" cannot be used")]
    Failed {
        /// What was asked for.
        setting: DeviceSetting,
        /// The driver's answer.
        source: candle_core::Error,
    },
}

/// Where `config` says that the trainer computes.
pub fn open(config: &Config) -> Result<Backend, DeviceError> {
    Ok(Backend { device: device(config.device)?, precision: config.precision })
}

/// The device that `setting` names.
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
    // Asked first, because Candle's error does not say which of these it is.
    match result::init().and_then(|()| result::device::get_count()) {
        // Where there is no driver, `trainer/cuda/build.sh` has the program start with a libcuda.so.1 that answers only this.
        Err(result::DriverError(CUresult::CUDA_ERROR_STUB_LIBRARY)) => Err(DeviceError::NoDriver { setting }),
        Err(result::DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(DeviceError::NoGpu { setting, count: 0 })
        }
        Err(error) => Err(DeviceError::Failed { setting, source: candle_core::Error::wrap(error) }),
        Ok(count) if ordinal >= count as usize => Err(DeviceError::NoGpu { setting, count: count as usize }),
        Ok(_) => {
            // One stream for all threads, in which everything happens one after the other; Candle's default is one for each.
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

    /// A GPU, where there is one; says that `test` is skipped where there is none.
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
        // More than any machine has.
        let setting = DeviceSetting::Cuda(1 << 20);
        let message = device(setting).unwrap_err().to_string();
        assert!(message.starts_with("device = \"cuda:1048576\""), "{message}");
        assert_eq!(message.contains("built without CUDA"), !cfg!(feature = "cuda"), "{message}");
    }
}
