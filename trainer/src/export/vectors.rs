//! Vectors of all items, written as a numpy array and as a Parquet file. Memory: `[items, d]` floats.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, RecordBatch, StringArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema};
use candle_core::Result;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use ragged::UNIT_EPSILON;
use schemas::config::Model;

use crate::data::{Catalogue, ItemIndex};
use crate::models::SequenceModel;

/// File name of the numpy array; a graph without the vectors refers to it.
pub const ITEM_VECTORS_NPY: &str = "item_vectors.npy";

/// Rows per Parquet batch.
const BATCH: usize = 1 << 14;
/// Size of the header: the elements begin on a memory page, so that the file can be mapped.
const PAGE: usize = 4_096;

/// Vectors of the items, from item 1 on.
#[derive(Debug, Clone)]
pub(super) struct Items {
    vectors: Vec<f32>,
    lengths: Option<Vec<f32>>,
    d: usize,
}

impl Items {
    /// Name of [`vectors`](Self::vectors) in the graph.
    pub(super) const VECTORS: &str = "item_vectors";

    /// Computes the vectors of the first `items` items of the catalogue, with `model` and its `settings`.
    pub(super) fn new(model: &SequenceModel, settings: &Model, items: usize) -> Result<Self> {
        let items: Vec<ItemIndex> = ItemIndex::all(items).collect();
        let embedded = model.item_vectors(&items)?.vectors.detach();
        let vectors = model.candidates(&embedded)?.flatten_all()?.to_vec1::<f32>()?;
        let embedded = embedded.flatten_all()?.to_vec1::<f32>()?;
        let square = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let length = |row| (square(row) + f64::from(UNIT_EPSILON)).sqrt() as f32;
        let cosine = settings.score_temperature > 0.0;
        let lengths = cosine.then(|| embedded.chunks_exact(settings.d).map(length).collect());
        Ok(Self { vectors, lengths, d: settings.d })
    }

    /// Returns the number of items.
    pub(super) fn len(&self) -> usize {
        self.vectors.len() / self.d
    }

    /// Returns the vectors as scored, `[items, d]`; of length 1 for cosine scores.
    pub(super) fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// Returns, for cosine scores, the factor that turns each vector into an input of the model: `[items]`.
    pub(super) fn lengths(&self) -> Option<&[f32]> {
        self.lengths.as_deref()
    }

    /// Returns the index of the first item whose vector is not finite.
    pub(super) fn not_finite(&self) -> Option<usize> {
        let place = self.vectors.iter().position(|x| !x.is_finite())?;
        Some(place / self.d + 1)
    }

    /// Writes [`ITEM_VECTORS_NPY`]: f32 `[items, d]` in C order; row `i` is the item with `item_index` `i + 1`.
    pub(super) fn write_npy(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&npy_header(self.len(), self.d))?;
        for x in &self.vectors {
            file.write_all(&x.to_le_bytes())?;
        }
        file.flush()
    }

    /// Writes the Parquet file with columns `item_id`, `item_index`, `active` and `vector`, by `item_index`.
    pub(super) fn write_parquet(&self, path: &Path, catalogue: &Catalogue) -> parquet::errors::Result<()> {
        let element = Arc::new(Field::new("element", DataType::Float32, false));
        let vector = DataType::FixedSizeList(element.clone(), self.d as i32);
        let schema = Arc::new(Schema::new(vec![
            Field::new("item_id", DataType::Utf8, false),
            Field::new("item_index", DataType::UInt32, false),
            Field::new("active", DataType::Boolean, false),
            Field::new("vector", vector, false),
        ]));
        // All values are distinct, so dictionaries would be built in vain.
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(false)
            .build();
        let mut writer = ArrowWriter::try_new(File::create(path)?, schema.clone(), Some(properties))?;
        for from in (0..self.len()).step_by(BATCH) {
            let rows = from..(from + BATCH).min(self.len());
            let of_catalogue = rows.start + 1..rows.end + 1;
            let elements = self.vectors[rows.start * self.d..rows.end * self.d].to_vec();
            let vectors = FixedSizeListArray::try_new(
                element.clone(),
                self.d as i32,
                Arc::new(Float32Array::from(elements)),
                None,
            )?;
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(&catalogue.item_ids[of_catalogue.clone()])),
                Arc::new(UInt32Array::from_iter_values(of_catalogue.clone().map(|index| index as u32))),
                Arc::new(BooleanArray::from(catalogue.active[of_catalogue].to_vec())),
                Arc::new(vectors),
            ];
            writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
        }
        writer.close().map(drop)
    }
}

/// Returns the header of a numpy array (format 1.0) of f32 `[items, d]`.
pub(super) fn npy_header(items: usize, d: usize) -> Vec<u8> {
    const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
    let fields = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({items}, {d}), }}");
    let length = PAGE - MAGIC.len() - size_of::<u16>();
    let mut header = MAGIC.to_vec();
    header.extend((length as u16).to_le_bytes());
    header.extend(format!("{fields:<width$}\n", width = length - 1).bytes());
    header
}
