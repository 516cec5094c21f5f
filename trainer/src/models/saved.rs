//! Saved parameter values, of a checkpoint or of another model, that replace random initial ones.
//!
//! Memory: a checkpoint's file is mapped and read tensor by tensor.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Result, Tensor};

/// Tensors by name, from a mapped file or in memory; each parameter copies its own once.
pub struct SavedValues(Kind);

enum Kind {
    File(MmapedSafetensors),
    Tensors(HashMap<String, Tensor>),
}

impl fmt::Debug for SavedValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SavedValues").finish()
    }
}

impl From<HashMap<String, Tensor>> for SavedValues {
    fn from(tensors: HashMap<String, Tensor>) -> Self {
        Self(Kind::Tensors(tensors))
    }
}

impl SavedValues {
    /// Maps a safetensors file; only the tensors asked for are read.
    ///
    /// # Errors
    ///
    /// The file does not exist or is not a safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        // SAFETY: a checkpoint file gets its name once it is complete and never changes; replacing or removing it leaves the
        // mapping intact.
        Ok(Self(Kind::File(unsafe { MmapedSafetensors::new(path) }?)))
    }

    /// Returns the tensor `name` on the CPU, with its saved shape and type.
    ///
    /// # Errors
    ///
    /// There is no tensor of this name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        match &self.0 {
            Kind::File(file) if self.has(name) => file.load(name, &Device::Cpu),
            Kind::Tensors(tensors) if self.has(name) => tensors[name].to_device(&Device::Cpu),
            _ => candle_core::bail!("the checkpoint has no parameter `{name}`"),
        }
    }

    /// True if there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        match &self.0 {
            Kind::File(file) => file.get(name).is_ok(),
            Kind::Tensors(tensors) => tensors.contains_key(name),
        }
    }

    /// Copies the tensor `name` to `device`; the copy shares no memory with others.
    ///
    /// # Errors
    ///
    /// There is no tensor of this name, its shape is not `shape`, or its values are not 32-bit floats.
    pub fn copied(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let fits = |found: &[usize], dtype: DType| {
            if found != shape {
                candle_core::bail!(
                    "parameter `{name}` is {found:?} in the checkpoint and {shape:?} in the model"
                );
            }
            if dtype != DType::F32 {
                candle_core::bail!("parameter `{name}` has values of type {dtype:?} in the checkpoint");
            }
            Ok(())
        };
        match &self.0 {
            Kind::File(file) => {
                let Ok(view) = file.get(name) else {
                    candle_core::bail!("the checkpoint has no parameter `{name}`");
                };
                fits(view.shape(), view.dtype().try_into()?)?;
                file.load(name, device)
            }
            Kind::Tensors(tensors) => {
                let Some(tensor) = tensors.get(name) else {
                    candle_core::bail!("the checkpoint has no parameter `{name}`");
                };
                fits(tensor.dims(), tensor.dtype())?;
                match tensor.device().same_device(device) {
                    true => tensor.copy(),
                    false => tensor.to_device(device),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_copied_and_must_fit() {
        let path = std::env::temp_dir().join(format!("saved-{}.safetensors", std::process::id()));
        let tensor = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let rows = Tensor::new(&[7u32, 9], &Device::Cpu).unwrap();
        let tensors = HashMap::from([("a".to_owned(), tensor), ("rows".to_owned(), rows)]);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        for saved in [SavedValues::open(&path).unwrap(), tensors.into()] {
            let a = saved.copied("a", &[2, 2], &Device::Cpu).unwrap();
            assert_eq!(a.to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
            assert_eq!(saved.get("rows").unwrap().to_vec1::<u32>().unwrap(), [7, 9]);
            let message = |result: Result<Tensor>| result.unwrap_err().to_string();
            assert!(
                message(saved.copied("a", &[4], &Device::Cpu)).contains("[2, 2] in the checkpoint and [4]")
            );
            assert!(message(saved.copied("rows", &[2], &Device::Cpu)).contains("U32"));
            assert!(message(saved.copied("b", &[2], &Device::Cpu)).contains("no parameter `b`"));
            assert!(message(saved.get("b")).contains("no parameter `b`"));
        }
        std::fs::write(&path, b"other").unwrap();
        assert!(SavedValues::open(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
