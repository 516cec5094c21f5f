//! The operations on a GPU, by CUDA kernels (`crates/ragged/kernels/*.cu`).
//!
//! Launches do not depend on the device: a [`Machine`] is a CUDA device, or in tests the CPU, which runs the same source
//! (`emulator`). Operations without a kernel run as stock operations ([`reference`](super::reference)).

mod applied;
mod attention;
mod bag;
mod cross_entropy;
mod dropout;
mod element;
#[cfg(feature = "emulator")]
pub mod emulator;
mod feed_forward;
mod layer_norm;
mod linear;
mod matrix;
mod memory;
mod query_attention;
mod self_attention;
#[cfg(feature = "cuda")]
mod staging;
mod sums;
mod tape;

use std::io::Write as _;

#[cfg(feature = "cuda")]
use candle_core::CudaDevice;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver;
use candle_core::{Device, Result};

pub(super) use bag::{bag_mean, gather};
pub(super) use cross_entropy::cross_entropy;
pub(super) use dropout::add_dropped;
pub(super) use feed_forward::feed_forward;
pub(super) use layer_norm::layer_norm;
pub(super) use linear::linear;
use memory::Input;
pub(crate) use memory::{Argument, Buffer, place_of};
pub(super) use query_attention::{WIDTH as QUERY_WIDTH, query_attention};
pub(super) use self_attention::self_attention;
pub(crate) use tape::differentiate;

/// Threads of a block, unless the kernel sets its own number.
const THREADS: u32 = 128;
/// Lanes of a warp.
const WARP: u32 = 32;

/// Device that runs kernels.
#[derive(Debug, Clone)]
pub(crate) enum Machine {
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(CudaDevice),
    /// The CPU, through the emulator.
    #[cfg(feature = "emulator")]
    Emulator,
}

impl PartialEq for Machine {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            #[cfg(feature = "cuda")]
            (Self::Cuda(one), Self::Cuda(other)) => one.id() == other.id(),
            #[cfg(feature = "emulator")]
            (Self::Emulator, Self::Emulator) => true,
            #[cfg(all(feature = "cuda", feature = "emulator"))]
            _ => false,
        }
    }
}

/// A kernel's file, without `.cu`, and its name there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel<'a> {
    pub(crate) file: &'static str,
    pub(crate) name: &'a str,
}

/// Size of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launch {
    /// Number of blocks, in three dimensions.
    pub(crate) blocks: [u32; 3],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Bytes of shared memory of a block.
    pub(crate) shared: usize,
}

impl Launch {
    /// Returns a launch of at least `threads` threads, in one dimension.
    pub(crate) fn threads(threads: usize) -> Self {
        Self { blocks: [threads.div_ceil(THREADS as usize) as u32, 1, 1], threads: THREADS, shared: 0 }
    }

    /// Returns a launch of one thread for each four of `n` elements.
    fn fours(n: usize) -> Self {
        Self::threads(n.div_ceil(4))
    }

    /// Returns a launch of at least `warps` warps, in one dimension.
    fn warps(warps: usize) -> Self {
        Self::threads(warps * WARP as usize)
    }
}

/// Reports once per process that stock operations compute `what`, in 32 bits and with more memory.
fn without_kernels(what: &str) {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        let _ = writeln!(
            std::io::stderr(),
            "the GPU has no kernels for {what}: stock operations compute it, in 32 bits, slower and with more memory"
        );
    });
}

/// PTX of the compiled kernels, by file.
#[cfg(feature = "cuda")]
const FILES: [(&str, &str); 9] = [
    ("adam", include_str!(concat!(env!("OUT_DIR"), "/adam.ptx"))),
    ("attention", include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"))),
    ("attention_bf16", include_str!(concat!(env!("OUT_DIR"), "/attention_bf16.ptx"))),
    ("bag", include_str!(concat!(env!("OUT_DIR"), "/bag.ptx"))),
    ("cross_entropy", include_str!(concat!(env!("OUT_DIR"), "/cross_entropy.ptx"))),
    ("elementwise", include_str!(concat!(env!("OUT_DIR"), "/elementwise.ptx"))),
    ("layer_norm", include_str!(concat!(env!("OUT_DIR"), "/layer_norm.ptx"))),
    ("query_attention", include_str!(concat!(env!("OUT_DIR"), "/query_attention.ptx"))),
    ("reduce", include_str!(concat!(env!("OUT_DIR"), "/reduce.ptx"))),
];

impl Machine {
    /// Returns the machine whose memory holds the tensors of `device`.
    pub(crate) fn of(device: &Device) -> Result<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Self::Cuda(device.clone())),
            #[cfg(feature = "emulator")]
            Device::Cpu => Ok(Self::Emulator),
            other => candle_core::bail!("there are no kernels for {other:?}"),
        }
    }

    /// Returns the maximum bytes of shared memory of a block.
    fn shared_memory(&self) -> Result<usize> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let attribute =
                    driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
                let bytes = device.cuda_stream().context().attribute(attribute);
                Ok(bytes.map_err(|error| candle_core::Error::Cuda(Box::new(error)))? as usize)
            }
            #[cfg(feature = "emulator")]
            Self::Emulator => Ok(emulator::SHARED_MEMORY),
        }
    }

    /// Launches a kernel; does nothing without blocks.
    ///
    /// # Errors
    ///
    /// A number above `u32::MAX` in the arguments, and errors of the driver.
    ///
    /// # Safety
    ///
    /// The arguments are those of the kernel, and the shape of the launch keeps it within their memory.
    pub(crate) unsafe fn launch(
        &self,
        kernel: Kernel<'_>,
        launch: Launch,
        arguments: &mut [Argument<'_>],
    ) -> Result<()> {
        if launch.blocks.contains(&0) {
            return Ok(());
        }
        if let Some(number) = arguments.iter().find_map(Argument::too_many) {
            candle_core::bail!(
                "{}: {number} is more than kernels count; take fewer histories at a time",
                kernel.name
            );
        }
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let Some((_, ptx)) = FILES.iter().find(|(file, _)| *file == kernel.file) else {
                    candle_core::bail!("no kernels were compiled from {}.cu", kernel.file);
                };
                let function = {
                    // Two threads that load one file at once would unload each other's.
                    static LOADING: std::sync::Mutex<()> = std::sync::Mutex::new(());
                    let _one = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    device.get_or_load_custom_func(kernel.name, kernel.file, ptx)?
                };
                // The driver grants more than 48 KiB only on request.
                if launch.shared > 48 << 10 {
                    let attribute =
                        driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    function.set_attribute(attribute, launch.shared as i32).map_err(|error| {
                        let kib = launch.shared >> 10;
                        let what = format!("{}, with {kib} KiB of shared memory in a block", kernel.name);
                        candle_core::Error::Cuda(Box::new(error)).context(what)
                    })?;
                }
                let mut builder = function.builder();
                for argument in &*arguments {
                    argument.push(&mut builder);
                }
                let [x, y, z] = launch.blocks;
                let config = driver::LaunchConfig {
                    grid_dim: (x, y, z),
                    block_dim: (launch.threads, 1, 1),
                    shared_mem_bytes: launch.shared as u32,
                };
                // SAFETY: guaranteed by the caller.
                unsafe { builder.launch(config) }
                    .map_err(|error| candle_core::Error::Cuda(Box::new(error)))?;
                Ok(())
            }
            #[cfg(feature = "emulator")]
            Self::Emulator => {
                // SAFETY: guaranteed by the caller.
                unsafe { emulator::launch(kernel, launch, arguments) }
            }
        }
    }
}
