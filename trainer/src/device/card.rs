//! What computes, and how much memory it takes.

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

/// A GPU or a processor, in words and numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Card {
    /// As its maker calls it.
    pub name: String,
    /// Of a GPU: bytes of its memory.
    pub memory: Option<u64>,
    /// Multiprocessors of a GPU, or threads that a processor runs.
    pub units: usize,
    /// Of a GPU: the compute capability.
    pub capability: Option<String>,
}

impl Card {
    /// What `device` is.
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

/// The most bytes of a GPU's memory that were in use at a time since the last call; nothing on the CPU, and where the driver counts none.
pub fn peak_memory(device: &Device) -> Result<Option<u64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) if device.cuda_stream().context().has_async_alloc() => {
            device.cuda_stream().synchronize().map_err(candle_core::Error::wrap)?;
            let mut bytes = 0u64;
            let used = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
            // SAFETY: the pool is the device's; this attribute is 64 bits, and what it is set to, 0, begins anew.
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

/// Prepares a GPU for training: the driver keeps the memory that this process has freed for its next step, instead of handing it back
/// whenever somebody waits; products of 16-bit numbers are summed up in 32 bits to the end; and nobody keeps account of who uses which
/// memory, because all happens on one stream, one after the other.
#[cfg(feature = "cuda")]
pub(super) fn prepare(device: &candle_core::CudaDevice) -> Result<()> {
    // SAFETY: there is no second stream.
    unsafe { device.disable_event_tracking() };
    let exact = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the handle is the device's.
    unsafe { cublasSetMathMode(*device.cublas_handle().handle(), exact) }
        .result()
        .map_err(candle_core::Error::wrap)?;
    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's; this attribute is 64 bits.
    unsafe {
        let pool = get_default_mem_pool(stream.context().cu_device()).map_err(candle_core::Error::wrap)?;
        cuMemPoolSetAttribute(pool, threshold, std::ptr::from_mut(&mut all).cast())
            .result()
            .map_err(candle_core::Error::wrap)
    }
}

/// Calls `f` between the marks that tell a profiler of CUDA programs what to look at; on the CPU there are none.
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
