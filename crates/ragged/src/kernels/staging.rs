//! Asynchronous copies to a GPU through page-locked memory, which the GPU reads in stream order while the sender continues.
//! Copies out of ordinary memory would wait for all work started before. A thread holds at most 16 blocks of 8 MiB (larger ones
//! for larger values).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtrMut as _, DriverError, PinnedHostSlice, result,
    sys::CUevent_flags,
};
use candle_core::{CudaDevice, Result};

use super::element::{Element, cuda};

/// Minimum bytes of a block.
const BLOCK: usize = 8 << 20;
/// Maximum blocks of a thread: a thread this far ahead of the GPU waits for it.
const BLOCKS: usize = 16;
/// Alignment of each value in a block, in bytes.
const ALIGNMENT: usize = 16;

/// Copies `values`, at least one, to the GPU. Kernels launched from now on see them.
pub(super) fn send<T: Element>(device: &CudaDevice, values: &[T]) -> Result<CudaSlice<T>> {
    thread_local! {
        static STAGING: RefCell<Staging> = const { RefCell::new(Staging { current: None, waiting: VecDeque::new() }) };
    }
    let stream = device.cuda_stream();
    // SAFETY: all of it is written below.
    let mut slice = unsafe { device.alloc::<T>(values.len()) }?;
    {
        let (address, _guard) = slice.device_ptr_mut(&stream);
        // SAFETY: elements are plain numbers.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        STAGING.with_borrow_mut(|staging| staging.send(&stream, bytes, address)).map_err(cuda)?;
    }
    Ok(slice)
}

struct Staging {
    /// Block that is being filled.
    current: Option<Block>,
    /// Full blocks, the oldest first.
    waiting: VecDeque<Block>,
}

struct Block {
    memory: PinnedHostSlice<u8>,
    stream: Arc<CudaStream>,
    used: usize,
    /// Event after the last copy out of the block.
    copied: CudaEvent,
}

impl Staging {
    fn send(
        &mut self,
        stream: &Arc<CudaStream>,
        bytes: &[u8],
        to: u64,
    ) -> std::result::Result<(), DriverError> {
        let fits = |block: &Block| {
            Arc::ptr_eq(&block.stream, stream) && block.used + bytes.len() <= block.memory.len()
        };
        if !self.current.as_ref().is_some_and(fits) {
            self.waiting.extend(self.current.take());
            self.current = Some(self.empty(stream, bytes.len())?);
        }
        let Some(block) = &mut self.current else { unreachable!("there is one now") };
        // SAFETY: the piece lies in the block, and no unfinished copy reads it.
        unsafe {
            let piece = block.memory.as_mut_ptr()?.add(block.used);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece, bytes.len());
            let piece = std::slice::from_raw_parts(piece.cast_const(), bytes.len());
            result::memcpy_htod_async(to, piece, stream.cu_stream())?;
        }
        block.used = (block.used + bytes.len()).next_multiple_of(ALIGNMENT);
        block.copied.record(stream)
    }

    /// Returns a block with room for `n` bytes that no copy reads: one whose copies are done, or a new one, or at the limit of
    /// [`BLOCKS`] the oldest that fits, after waiting for its copies.
    fn empty(&mut self, stream: &Arc<CudaStream>, n: usize) -> std::result::Result<Block, DriverError> {
        let fits = |block: &Block| Arc::ptr_eq(&block.stream, stream) && n <= block.memory.len();
        let full = self.waiting.len() >= BLOCKS;
        let place = self.waiting.iter().position(|block| fits(block) && (full || block.copied.is_complete()));
        if let Some(mut block) = place.and_then(|place| self.waiting.remove(place)) {
            block.copied.synchronize()?;
            block.used = 0;
            return Ok(block);
        }
        if full {
            // No block is large enough: a new one replaces the oldest.
            self.waiting.pop_front();
        }
        let context = stream.context();
        context.bind_to_thread()?;
        // SAFETY: written before it is read.
        let memory = unsafe { context.alloc_pinned::<u8>(n.max(BLOCK).next_power_of_two()) }?;
        let copied = context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))?;
        Ok(Block { memory, stream: stream.clone(), used: 0, copied })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // Waits for the last copy before the memory is freed. An error cannot be handled here.
        let _ = self.copied.synchronize();
    }
}
