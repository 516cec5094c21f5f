//! Memory that kernels read and write, and the arguments of kernels.

#[cfg(feature = "emulator")]
use std::ffi::c_void;
use std::marker::PhantomData;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, DevicePtr as _, DevicePtrMut as _, LaunchArgs, PushKernelArg as _,
};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Shape, Storage, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, cuda_backend::CudaDType};
use half::bf16;

use super::element::Element;
#[cfg(feature = "cuda")]
use super::element::cuda;
#[cfg(feature = "cuda")]
use super::staging;
use super::{Kernel, Launch, Machine};

/// Operands of kernels; sums, and all other numbers, are 32-bit floats.
pub(super) trait Real: Element + Send + Sync + 'static {
    /// Part of the kernels' names.
    const NAME: &'static str;
    /// File of the self-attention kernels.
    const ATTENTION: &'static str;
    /// Number type of matrix products.
    const KIND: Kind;
    /// Returns `n` 32-bit floats at `values` as numbers of this type; `None` if they already are.
    fn rounded(machine: &Machine, values: Argument<'_>, n: usize) -> Result<Option<Buffer<Self>>>;
}

/// Type of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    F32,
    Bf16,
}

#[cfg(feature = "cuda")]
impl Kind {
    /// Returns the bytes of a number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => size_of::<bf16>(),
        }
    }
}

impl Real for f32 {
    const NAME: &'static str = "float";
    const ATTENTION: &'static str = "attention";
    const KIND: Kind = Kind::F32;

    fn rounded(_: &Machine, _: Argument<'_>, _: usize) -> Result<Option<Buffer<Self>>> {
        Ok(None)
    }
}

impl Real for bf16 {
    const NAME: &'static str = "bf16";
    const ATTENTION: &'static str = "attention_bf16";
    const KIND: Kind = Kind::Bf16;

    fn rounded(machine: &Machine, values: Argument<'_>, n: usize) -> Result<Option<Buffer<Self>>> {
        let mut out = Buffer::new(machine, n)?;
        let kernel = Kernel { file: "elementwise", name: "halves" };
        // SAFETY: one thread for four of the `n` numbers.
        unsafe { machine.launch(kernel, Launch::fours(n), &mut [values, out.write(), n.into()])? };
        Ok(Some(out))
    }
}

/// 32-bit floats as numbers of type `T`: a rounded copy, or the original if `T` is `f32`.
pub(super) struct Rounded<'a, T> {
    original: Input<'a>,
    rounded: Option<Buffer<T>>,
}

impl<'a, T: Real> Rounded<'a, T> {
    /// Rounds `input`.
    pub(super) fn new(machine: &Machine, input: Input<'a>) -> Result<Self> {
        Ok(Self { original: input, rounded: T::rounded(machine, input.read(), input.len)? })
    }

    /// Reuses `rounded`, the copy of `input` from an earlier pass.
    pub(super) fn again(input: Input<'a>, rounded: Option<Buffer<T>>) -> Self {
        Self { original: input, rounded }
    }

    /// Returns the rounded copy, for [`again`](Self::again).
    pub(super) fn keep(self) -> Option<Buffer<T>> {
        self.rounded
    }

    /// Returns the argument of a kernel that reads the numbers.
    pub(super) fn read(&self) -> Argument<'_> {
        self.rounded.as_ref().map_or_else(|| self.original.read(), Buffer::read)
    }
}

/// Fill pattern for fresh test buffers: a read before the first write yields NaN.
#[cfg(feature = "emulator")]
const UNWRITTEN: u8 = 0xff;

/// Elements in a machine's memory.
pub(crate) enum Buffer<T> {
    #[cfg(feature = "cuda")]
    Cuda(CudaSlice<T>, candle_core::CudaDevice),
    #[cfg(feature = "emulator")]
    Emulated(Vec<T>),
}

impl<T: Element> Buffer<T> {
    /// Allocates `n` elements, which must be written before they are read.
    pub(crate) fn new(machine: &Machine, n: usize) -> Result<Self> {
        match machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(device) => {
                // SAFETY: kernels write before they read; the emulator runs the same kernels and shows reads that come first.
                Ok(Self::Cuda(unsafe { device.alloc(n.max(1)) }?, device.clone()))
            }
            #[cfg(feature = "emulator")]
            Machine::Emulator => {
                let mut values = vec![T::default(); n];
                // SAFETY: every bit pattern is a value of each `Element`.
                unsafe { std::ptr::write_bytes(values.as_mut_ptr(), UNWRITTEN, n) };
                Ok(Self::Emulated(values))
            }
        }
    }

    /// Copies `values` to the machine.
    pub(crate) fn from_slice(machine: &Machine, values: &[T]) -> Result<Self> {
        match machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(device) => {
                let slice =
                    if values.is_empty() { device.alloc_zeros(1)? } else { staging::send(device, values)? };
                Ok(Self::Cuda(slice, device.clone()))
            }
            #[cfg(feature = "emulator")]
            Machine::Emulator => Ok(Self::Emulated(values.to_vec())),
        }
    }

    /// Returns the argument of a kernel that reads the elements.
    pub(crate) fn read(&self) -> Argument<'_> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(slice, device) => {
                let stream = device.cuda_stream();
                let (address, _guard) = slice.device_ptr(&stream);
                Argument::address(address)
            }
            #[cfg(feature = "emulator")]
            Self::Emulated(values) => Argument::address(values.as_ptr() as u64),
        }
    }

    /// Returns the argument of a kernel that writes the elements.
    pub(crate) fn write(&mut self) -> Argument<'_> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(slice, device) => {
                let stream = device.cuda_stream();
                let (address, _guard) = slice.device_ptr_mut(&stream);
                Argument::address(address)
            }
            #[cfg(feature = "emulator")]
            Self::Emulated(values) => Argument::address(values.as_mut_ptr() as u64),
        }
    }
}

impl Buffer<f32> {
    fn into_storage(self) -> Storage {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(slice, device) => Storage::Cuda(f32::wrap_cuda_slice(slice, device)),
            #[cfg(feature = "emulator")]
            Self::Emulated(values) => Storage::Cpu(CpuStorage::F32(values)),
        }
    }

    /// Returns a tensor without history.
    pub(crate) fn into_tensor(self, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(self.into_storage(), shape, BackpropOp::none(), false)
    }

    /// Returns a tensor whose gradient can be taken.
    pub(super) fn into_variable(self, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(self.into_storage(), shape, BackpropOp::none(), true)
    }
}

/// Contiguous 32-bit floats of a tensor.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    address: u64,
    /// Number of elements.
    pub(crate) len: usize,
    /// Shape of the tensor.
    pub(crate) shape: &'a Shape,
}

impl<'a> Input<'a> {
    fn at(base: u64, layout: &'a Layout) -> Result<Self> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a kernel needs contiguous input, got {layout:?}");
        };
        Ok(Self {
            address: base + (start * size_of::<f32>()) as u64,
            len: end - start,
            shape: layout.shape(),
        })
    }

    #[cfg(feature = "emulator")]
    pub(super) fn of_cpu(storage: &'a CpuStorage, layout: &'a Layout) -> Result<Self> {
        Self::at(storage.as_slice::<f32>()?.as_ptr() as u64, layout)
    }

    #[cfg(feature = "cuda")]
    pub(super) fn of_cuda(storage: &'a CudaStorage, layout: &'a Layout) -> Result<Self> {
        let slice = storage.as_cuda_slice::<f32>()?;
        let stream = storage.device.cuda_stream();
        let (address, _guard) = slice.device_ptr(&stream);
        Self::at(address, layout)
    }

    pub(super) fn of(storage: &'a Storage, layout: &'a Layout) -> Result<Self> {
        match storage {
            #[cfg(feature = "cuda")]
            Storage::Cuda(storage) => Self::of_cuda(storage, layout),
            #[cfg(feature = "emulator")]
            Storage::Cpu(storage) => Self::of_cpu(storage, layout),
            _ => candle_core::bail!("a kernel was given a tensor of another device"),
        }
    }

    /// Returns the argument of a kernel that reads the elements.
    pub(crate) fn read(&self) -> Argument<'a> {
        Argument::address(self.address)
    }
}

/// Returns the address of a tensor's 32-bit floats, for a kernel that updates them in place.
pub(crate) fn place_of(tensor: &Tensor) -> Result<Argument<'_>> {
    struct Place(std::sync::atomic::AtomicU64);
    impl Place {
        fn found(&self, base: u64, layout: &Layout) -> Result<()> {
            self.0.store(Input::at(base, layout)?.address, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        }
    }
    impl InplaceOp1 for Place {
        fn name(&self) -> &'static str {
            "place"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            match storage {
                CpuStorage::F32(values) => self.found(values.as_mut_ptr() as u64, layout),
                _ => candle_core::bail!("a kernel needs 32-bit floats"),
            }
        }

        #[cfg(feature = "cuda")]
        fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
            let stream = storage.device.cuda_stream();
            let slice = storage.as_cuda_slice_mut::<f32>()?;
            let (address, _guard) = slice.device_ptr_mut(&stream);
            self.found(address, layout)
        }
    }
    let place = Place(0.into());
    tensor.inplace_op1(&place)?;
    Ok(Argument::address(place.0.into_inner()))
}

/// Argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) struct Argument<'a> {
    value: Value,
    of: PhantomData<&'a ()>,
}

#[derive(Clone, Copy)]
enum Value {
    Address(u64),
    Number(u32),
    /// Number above `u32::MAX`, which kernels cannot count.
    TooMany(usize),
    Float(f32),
}

impl Argument<'_> {
    /// Returns the argument for memory that the caller keeps until all kernels so far are done, or frees in their order: a
    /// machine has one stream, which runs everything in sequence.
    pub(super) fn address(address: u64) -> Self {
        Self { value: Value::Address(address), of: PhantomData }
    }

    /// Returns the address; 0 for a number.
    pub(super) fn as_address(&self) -> u64 {
        match self.value {
            Value::Address(address) => address,
            Value::Number(_) | Value::TooMany(_) | Value::Float(_) => 0,
        }
    }

    /// Returns the address `n` elements further on.
    pub(crate) fn behind<T>(self, n: usize) -> Self {
        Self::address(self.as_address() + (n * size_of::<T>()) as u64)
    }

    /// Returns the number if it is above `u32::MAX`.
    pub(super) fn too_many(&self) -> Option<usize> {
        match self.value {
            Value::TooMany(number) => Some(number),
            _ => None,
        }
    }

    /// Returns a null address.
    pub(crate) fn null() -> Self {
        Self::address(0)
    }

    /// Returns the bytes of the value.
    #[cfg(feature = "emulator")]
    pub(super) fn size(&self) -> usize {
        match self.value {
            Value::Address(_) => size_of::<u64>(),
            Value::Number(_) | Value::TooMany(_) | Value::Float(_) => size_of::<u32>(),
        }
    }

    /// Returns a pointer to the value.
    #[cfg(feature = "emulator")]
    pub(super) fn place(&mut self) -> *mut c_void {
        match &mut self.value {
            Value::Address(value) => std::ptr::from_mut(value).cast(),
            Value::Number(value) => std::ptr::from_mut(value).cast(),
            Value::TooMany(value) => std::ptr::from_mut(value).cast(),
            Value::Float(value) => std::ptr::from_mut(value).cast(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn push<'b>(&'b self, builder: &mut LaunchArgs<'b>) {
        match &self.value {
            Value::Address(value) => builder.arg(value),
            Value::Number(value) => builder.arg(value),
            Value::TooMany(_) => unreachable!("such a kernel is not started"),
            Value::Float(value) => builder.arg(value),
        };
    }
}

impl From<u32> for Argument<'_> {
    fn from(number: u32) -> Self {
        Self { value: Value::Number(number), of: PhantomData }
    }
}

impl From<usize> for Argument<'_> {
    fn from(number: usize) -> Self {
        let value = u32::try_from(number).map_or(Value::TooMany(number), Value::Number);
        Self { value, of: PhantomData }
    }
}

impl From<f32> for Argument<'_> {
    fn from(number: f32) -> Self {
        Self { value: Value::Float(number), of: PhantomData }
    }
}
