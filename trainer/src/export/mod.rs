//! Export of a trained model for other systems: weights, item vectors, and the serving graph (§3.4) as ONNX.
//!
//! ```text
//! model.safetensors      the checkpoint's weights file: parameters, and the row of the id table of each item
//! item_vectors.npy       f32 [items, d]: row i is the item with item_index i + 1, as scored
//! item_vectors.parquet   item_id, item_index, active, vector
//! model.onnx             branch 1: history and conditions of a user in, hidden states and scores of all items out
//! conditions.json        the conditions that the model knows, by row
//! manifest.json          settings and lineage of the model, inputs and outputs of the graph, sizes and hashes of the files
//! ```
//!
//! A score is always `hidden · item vector`: for cosine scores, item vectors have length 1 and hidden states are divided by the
//! temperature.
//!
//! Memory: the model, and the item vectors about three times while the graph is encoded.

mod directory;
mod graph;
mod manifest;
mod proto;
mod serving;
#[cfg(test)]
mod tests;
mod vectors;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prost::Message as _;
use schemas::config::{Architecture, Config, MaskMode, Paradigm};
use serde::Serialize;
use store::Root;
use store::boxed::Boxed;
use terminal::{Interrupt, Progress};

pub use directory::{FileEntry, MANIFEST};
pub use manifest::{ExportReport, Manifest, Port, ScoreKind};
pub use vectors::ITEM_VECTORS_NPY;

use crate::checkpoint::{self, CheckpointError, Lineage};
use crate::data::{Catalogue, DataError};
use crate::device::Backend;
use crate::models::SequenceModel;
use directory::Staging;
use vectors::Items;

/// File name of the graph.
pub const MODEL_ONNX: &str = "model.onnx";
/// File name of the weights, in checkpoints and exports.
const WEIGHTS: &str = "model.safetensors";
/// Size of item vectors, in bytes, from which the graph refers to [`ITEM_VECTORS_NPY`]; an ONNX file must stay below 2 GiB.
const EXTERNAL_FROM_BYTES: usize = 1 << 30;
/// Maximum size of a Protocol Buffers message, in bytes.
const LARGEST_ONNX_BYTES: usize = i32::MAX as usize;

/// An error that ends an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The checkpoint cannot be loaded.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The catalogue cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The serving graph does not support the model.
    #[error(
        "model `{model}` has {key} = \"{value}\", which the serving graph does not know; it knows {known}"
    )]
    Unsupported {
        /// Name of the model.
        model: String,
        /// Key of the unsupported setting.
        key: &'static str,
        /// Value of the setting.
        value: String,
        /// Supported values.
        known: &'static str,
    },
    /// An item's vector is not finite: the model diverged.
    #[error(
        "model `{model}` gives the item with item_index {item} a vector that is not finite; train it anew"
    )]
    NotFinite {
        /// Name of the model.
        model: String,
        /// Index of the item.
        item: usize,
    },
    /// The graph exceeds the size limit of an ONNX file.
    #[error(
        "the ONNX graph of model `{model}` would take {bytes} bytes; the format allows {LARGEST_ONNX_BYTES}"
    )]
    TooLarge {
        /// Name of the model.
        model: String,
        /// Size of the graph in bytes, without item vectors in an external file.
        bytes: usize,
    },
    /// The destination exists and is not an export.
    #[error("{path} is not an export and stays as it is ({problem}); give --out a new directory")]
    Occupied {
        /// Path of the destination.
        path: PathBuf,
        /// Reason why it is not an export.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The user interrupted the export; nothing was written.
    #[error("interrupted; nothing was exported")]
    Interrupted,
}

/// Inputs of an export.
struct Source<'a> {
    name: &'a str,
    model: &'a SequenceModel,
    config: &'a Config,
    lineage: &'a Lineage,
    /// Path of the checkpoint's weights file.
    weights: &'a Path,
    catalogue: &'a Catalogue,
    external_from_bytes: usize,
}

/// Exports `models/<name>` to the directory `out`, which must be absent, empty or an older export. Always computes on the CPU.
///
/// # Errors
///
/// The model cannot be loaded, is not supported or has diverged; `out` holds other files; writing fails; or the run is
/// interrupted.
pub fn run<'a>(
    root: &'a Root,
    name: &'a str,
    out: &'a Path,
    interrupt: &'a Interrupt,
) -> Boxed<'a, Result<ExportReport, ExportError>> {
    Box::pin(export(root, name, out, interrupt))
}

async fn export(
    root: &Root,
    name: &str,
    out: &Path,
    interrupt: &Interrupt,
) -> Result<ExportReport, ExportError> {
    let directory = root.model_path(name);
    let attributes = checkpoint::attributes(&directory)?;
    let catalogue = Catalogue::load(root, &attributes).await?;
    let checkpoint = checkpoint::load(&directory, &catalogue, &Backend::CPU)?;
    let weights = checkpoint::find(&directory).unwrap_or(directory).join(WEIGHTS);
    let source = Source {
        name,
        model: checkpoint.sequence_model("exported")?,
        config: &checkpoint.config,
        lineage: &checkpoint.lineage,
        weights: &weights,
        catalogue: &catalogue,
        external_from_bytes: EXTERNAL_FROM_BYTES,
    };
    source.write(out, interrupt)
}

impl Source<'_> {
    fn write(&self, out: &Path, interrupt: &Interrupt) -> Result<ExportReport, ExportError> {
        self.check()?;
        let staging = Staging::new(out)?;
        let mut progress = Progress::start("export", 5, "files");
        let mut next = |name: &str| {
            progress.add(1);
            progress.message(name.into());
            if interrupt.requested() { Err(ExportError::Interrupted) } else { Ok(staging.file(name)) }
        };

        let items = Items::new(self.model, &self.config.model, self.catalogue.items())?;
        if let Some(item) = items.not_finite() {
            return Err(ExportError::NotFinite { model: self.name.into(), item });
        }
        let path = next(ITEM_VECTORS_NPY)?;
        items.write_npy(&path).map_err(io_error(&path))?;
        let path = next("item_vectors.parquet")?;
        items.write_parquet(&path, self.catalogue).map_err(io::Error::other).map_err(io_error(&path))?;
        let path = next(MODEL_ONNX)?;
        let external = size_of_val(items.vectors()) >= self.external_from_bytes;
        let onnx = serving::model(self.model, &self.config.model, &items, external)?;
        let bytes = onnx.encoded_len();
        if bytes > LARGEST_ONNX_BYTES {
            return Err(ExportError::TooLarge { model: self.name.into(), bytes });
        }
        fs::write(&path, onnx.encode_to_vec()).map_err(io_error(&path))?;
        let path = next("conditions.json")?;
        write_json(&path, &manifest::conditions(self.model, self.config))?;
        let path = next(WEIGHTS)?;
        store::files::copy(self.weights, &path).map_err(io_error(self.weights))?;

        let manifest = Manifest::new(self, &items, &onnx, staging.files()?);
        write_json(&staging.file(MANIFEST), &manifest)?;
        staging.publish()?;
        Ok(ExportReport { directory: out.to_owned(), manifest })
    }

    /// Checks that the graph supports the model.
    fn check(&self) -> Result<(), ExportError> {
        let model = &self.config.model;
        let unsupported = |key, value: &str, known| ExportError::Unsupported {
            model: self.name.into(),
            key,
            value: value.into(),
            known,
        };
        if model.architecture != Architecture::ClimberPilot {
            return Err(unsupported("model.architecture", model.architecture.name(), "climber-pilot"));
        }
        if model.mask == MaskMode::Row {
            // Mask `row` depends on what was visible when each event was a target; a history alone does not contain that.
            return Err(unsupported("model.mask", model.mask.name(), "gather and none"));
        }
        if let Some(paradigm @ (Paradigm::Lum | Paradigm::AdalnZero)) = self.model.paradigm() {
            return Err(unsupported("sft.paradigm", paradigm.name(), "cgsa, pinrec and unconditional"));
        }
        if self.catalogue.items() == 0 {
            return Err(DataError::Empty { table: schemas::tables::ITEMS.into() }.into());
        }
        Ok(())
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ExportError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::from).map_err(io_error(path))?;
    fs::write(path, text).map_err(io_error(path))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ExportError + '_ {
    |source| ExportError::Io { path: path.to_owned(), source }
}
