//! Compiles `kernels/*.cu` to PTX for the `cuda` feature; the driver compiles the PTX for its GPU at load time. Needs `nvcc`,
//! from `CUDA_HOME` or the `PATH`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["CUDA_HOME", "CUDA_COMPUTE_CAP", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let nvcc = match env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin").join("nvcc"),
        None => PathBuf::from("nvcc"),
    };
    // PTX for Ampere (8.0) also runs on every newer GPU.
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for entry in fs::read_dir("kernels")? {
        let file = entry?.path();
        if file.extension().is_none_or(|ending| ending != "cu") {
            continue;
        }
        let ptx = out.join(file.with_extension("ptx").file_name().ok_or("a kernel's file has no name")?);
        let mut command = Command::new(&nvcc);
        command.args(["-ptx", "-std=c++17", "-O3"]).arg(format!("-arch=compute_{capability}"));
        let status = command.arg(&file).arg("-o").arg(&ptx).status().map_err(|error| {
            format!(
                "{}: {error}; trainer/cuda/build.sh fetches the CUDA compiler, and CUDA_HOME says where one is",
                nvcc.display()
            )
        })?;
        if !status.success() {
            return Err(format!("{} was not compiled ({status})", file.display()).into());
        }
        // Strips comments and spaces, a third of the PTX, because the text becomes part of the program.
        let text = fs::read_to_string(&ptx)?;
        let lines =
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with("//"));
        let lines: Vec<String> = lines.map(|line| line.replace(" \t", " ").replace(", ", ",")).collect();
        fs::write(&ptx, lines.join("\n"))?;
    }
    Ok(())
}
