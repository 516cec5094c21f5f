//! Emulator of the kernels on the CPU: compiles their source with the machine's C++ compiler against
//! `crates/ragged/kernels/emulator.hpp`. Tests everything but speed where there is no GPU; without a compiler, such tests are
//! skipped.

use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use candle_core::Result;
use libloading::Library;

use super::{Argument, Kernel, Launch};

type Emulate = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    usize,
    *mut *mut c_void,
    *const usize,
    usize,
    u32,
) -> *const c_char;

/// Shared memory of a block in bytes: that of the largest GPUs.
pub(super) const SHARED_MEMORY: usize = 227 << 10;

/// The compiled kernels, one of which runs at a time; or the reason why there are none.
static LIBRARY: LazyLock<std::result::Result<Mutex<Library>, String>> =
    LazyLock::new(|| compile().map(Mutex::new));

thread_local! {
    static ORDER: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

fn compile() -> std::result::Result<Library, String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let library = directory.path().join("kernels.so");
    // Found at run time: a clone that shares the build has its own sources. Tests of another crate start in that crate's
    // directory.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
    let above = Path::new(&manifest).ancestors().map(|above| above.join("crates/ragged/kernels"));
    let kernels = above.into_iter().find(|kernels| kernels.is_dir());
    let kernels = kernels
        .ok_or_else(|| format!("{}: there are no crates/ragged/kernels", Path::new(&manifest).display()))?;
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]);
    command.args(["-fPIC", "-shared", "-DEMULATED", "-x", "c++", "-o"]).arg(&library);
    let mut files: Vec<_> = std::fs::read_dir(&kernels)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>())
        .map_err(|error| format!("{}: {error}", kernels.display()))?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "cu"));
    files.sort();
    let output = command.args(files).output().map_err(|error| format!("{compiler}: {error}"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: loading the library only registers its kernels.
    unsafe { Library::new(&library) }.map_err(|error| error.to_string())
}

/// Whether the kernels can be emulated; reports that `test` is skipped if not.
///
/// # Panics
///
/// If there is a compiler and it rejects the kernels.
pub fn there_is(test: &str) -> bool {
    match &*LIBRARY {
        Ok(_) => true,
        Err(reason) => {
            testkit::skipped(&format!("{test} (the kernels cannot be compiled: {reason})"), "c++");
            false
        }
    }
}

/// Calls `f` with the threads of a block in another order: 0 forwards, 1 backwards, others shuffled. The result of `f` must not
/// depend on it.
pub fn in_order<R>(order: u32, f: impl FnOnce() -> R) -> R {
    let before = ORDER.replace(order);
    let result = f();
    ORDER.set(before);
    result
}

/// Runs a kernel on the CPU; see [`super::Machine::launch`].
///
/// # Safety
///
/// As for [`super::Machine::launch`].
pub(super) unsafe fn launch(
    Kernel { file, name }: Kernel<'_>,
    launch: Launch,
    arguments: &mut [Argument<'_>],
) -> Result<()> {
    let library = match &*LIBRARY {
        Ok(library) => library,
        Err(reason) => candle_core::bail!("{reason}"),
    };
    let library = library.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let of_kernel = CString::new(name).map_err(candle_core::Error::wrap)?;
    let sizes: Vec<usize> = arguments.iter().map(Argument::size).collect();
    let mut places: Vec<*mut c_void> = arguments.iter_mut().map(Argument::place).collect();
    // SAFETY: the symbol has this type; the caller guarantees the rest.
    let problem = unsafe {
        let emulate = library.get::<Emulate>(b"emulate").map_err(candle_core::Error::wrap)?;
        emulate(
            of_kernel.as_ptr(),
            launch.blocks.as_ptr(),
            [launch.threads, 1, 1].as_ptr(),
            launch.shared,
            places.as_mut_ptr(),
            sizes.as_ptr(),
            sizes.len(),
            ORDER.get(),
        )
    };
    if problem.is_null() {
        return Ok(());
    }
    // SAFETY: a result that is not null is text that lives as long as the library.
    let problem = unsafe { CStr::from_ptr(problem) };
    candle_core::bail!("kernels/{file}.cu, {name}: {}", problem.to_string_lossy())
}
