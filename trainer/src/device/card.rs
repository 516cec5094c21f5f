//! Description of a compute device, its memory use, and its preparation for training.

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::{
    cublas::sys::{cublasMath_t, cublasSetMathMode},
    driver::{
        result::device::get_default_mem_pool,
        sys::{CUdevice_attribute, CUmemPool_attribute, cuMemPoolGetAttribute, cuMemPoolSetAttribute},
    },
};
use candle_core::{Device, Result};
use serde::Serialize;

/// Description of a GPU or CPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Card {
    /// Name given by the vendor.
    pub name: String,
    /// Memory of a GPU, bytes; `None` for a CPU.
    pub memory: Option<u64>,
    /// Multiprocessors of a GPU, or hardware threads available on a CPU.
    pub units: usize,
    /// Compute capability of a GPU; `None` for a CPU.
    pub capability: Option<String>,
}

impl Card {
    /// Describes `device`.
    ///
    /// # Errors
    ///
    /// The CUDA driver does not answer.
    pub fn of(device: &Device) -> Result<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let stream = device.cuda_stream();
                let context = stream.context();
                let units = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
                let (major, minor) = context.compute_capability().map_err(candle_core::Error::wrap)?;
                Ok(Self {
                    name: context.name().map_err(candle_core::Error::wrap)?,
                    memory: Some(context.total_mem().map_err(candle_core::Error::wrap)? as u64),
                    units: context.attribute(units).map_err(candle_core::Error::wrap)? as usize,
                    capability: Some(format!("{major}.{minor}")),
                })
            }
            _ => {
                let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                let name =
                    processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
                Ok(Self {
                    name: name.map_or("a processor", |(_, name)| name).to_owned(),
                    memory: None,
                    units: std::thread::available_parallelism().map_or(1, usize::from),
                    capability: None,
                })
            }
        }
    }
}

/// Returns the peak bytes of GPU memory in use since the last call; `None` on the CPU, and if the driver does not count.
///
/// # Errors
///
/// A CUDA call fails.
pub fn peak_memory(device: &Device) -> Result<Option<u64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) if device.cuda_stream().context().has_async_alloc() => {
            device.cuda_stream().synchronize().map_err(candle_core::Error::wrap)?;
            let mut bytes = 0u64;
            let used = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
            // SAFETY: the pool belongs to the device; the attribute is 64 bits, and setting it to 0 resets it.
            unsafe {
                let pool = get_default_mem_pool(device.cuda_stream().context().cu_device())
                    .map_err(candle_core::Error::wrap)?;
                cuMemPoolGetAttribute(pool, used, std::ptr::from_mut(&mut bytes).cast())
                    .result()
                    .map_err(candle_core::Error::wrap)?;
                let mut zero = 0u64;
                cuMemPoolSetAttribute(pool, used, std::ptr::from_mut(&mut zero).cast())
                    .result()
                    .map_err(candle_core::Error::wrap)?;
            }
            Ok(Some(bytes))
        }
        _ => Ok(None),
    }
}

/// Prepares a GPU for training. The driver keeps freed memory for the next step instead of releasing it at synchronization;
/// 16-bit products accumulate in 32 bits throughout; and event tracking is off, because all work runs in order on one stream.
#[cfg(feature = "cuda")]
pub(super) fn prepare(device: &candle_core::CudaDevice) -> Result<()> {
    // SAFETY: there is no second stream.
    unsafe { device.disable_event_tracking() };
    let exact = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the handle belongs to the device.
    unsafe { cublasSetMathMode(*device.cublas_handle().handle(), exact) }
        .result()
        .map_err(candle_core::Error::wrap)?;
    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool belongs to the device; the attribute is 64 bits.
    unsafe {
        let pool = get_default_mem_pool(stream.context().cu_device()).map_err(candle_core::Error::wrap)?;
        cuMemPoolSetAttribute(pool, threshold, std::ptr::from_mut(&mut all).cast())
            .result()
            .map_err(candle_core::Error::wrap)
    }
}

/// Calls `f` between the start and stop marks of the CUDA profiler; on the CPU, just calls `f`.
///
/// # Errors
///
/// `f` or a CUDA call fails.
pub fn profiled<R>(device: &Device, f: impl FnOnce() -> Result<R>) -> Result<R> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        use candle_core::cuda_backend::cudarc::driver::{profiler_start, profiler_stop};
        let stream = device.cuda_stream();
        stream.synchronize().and_then(|()| profiler_start()).map_err(candle_core::Error::wrap)?;
        let result = f();
        stream.synchronize().and_then(|()| profiler_stop()).map_err(candle_core::Error::wrap)?;
        return result;
    }
    let _ = device;
    f()
}
