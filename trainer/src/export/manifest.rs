//! The manifest of an export, and the report of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemas::config::{Age, Config, Model, Paradigm};
use serde::Serialize;
use serde_json::Value;

use super::Source;
use super::directory::{FORMAT, FileEntry};
use super::proto::{self, DataType, Size, ValueInfo};
use super::serving::OPSET;
use super::vectors::Items;
use crate::checkpoint::Lineage;
use crate::data::ConditionRow;
use crate::models::SequenceModel;

/// Content of `manifest.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Manifest {
    /// Always `climber-pilot-export`.
    pub format: &'static str,
    /// Name of the model.
    pub model: String,
    /// Data and models that it was trained from.
    pub lineage: Lineage,
    /// `[model]` settings.
    pub settings: Model,
    /// Number of items in the catalogue; `item_index` is `1..=items`.
    pub items: usize,
    /// Number of items that can be retrieved.
    pub active_items: usize,
    /// Length of item vectors and hidden states.
    pub d: usize,
    /// Longest history that the model was trained on, in items; of a longer history, pass the last items.
    pub max_history: usize,
    /// Definition of a score.
    pub scores: ScoreKind,
    /// How conditions enter the model; `None` if it knows none.
    pub paradigm: Option<Paradigm>,
    /// Number of conditions in `conditions.json`.
    pub conditions: usize,
    /// Version of the ONNX operators in `model.onnx`.
    pub opset: i64,
    /// Inputs of `model.onnx`.
    pub inputs: Vec<Port>,
    /// Outputs of `model.onnx`.
    pub outputs: Vec<Port>,
    /// Sizes and hashes of the other files, by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// Definition of a score, for readers who compute it from a hidden state and the item vectors.
#[derive(Debug, Clone, Serialize)]
pub struct ScoreKind {
    /// `inner-product` or `cosine`.
    pub similarity: &'static str,
    /// Divisor of the similarity.
    pub temperature: f64,
    /// Description of both factors.
    pub sides: &'static str,
}

/// An input or output of the graph.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Port {
    /// Name in the graph.
    pub name: String,
    /// `int64`, `float32` or `bool`.
    pub r#type: &'static str,
    /// Sizes: numbers, or names of sizes that vary: `n` items of a history, `P` conditions.
    pub shape: Vec<Value>,
    /// Description.
    pub about: String,
}

impl Port {
    fn new(info: &ValueInfo) -> Self {
        let tensor = info.r#type.clone().unwrap_or_default().tensor_type.unwrap_or_default();
        let sizes = tensor.shape.clone().unwrap_or_default().dim.into_iter().filter_map(|dim| dim.value);
        Self {
            name: info.name.clone(),
            r#type: match tensor.elem_type() {
                DataType::Float => "float32",
                DataType::Int64 => "int64",
                DataType::Bool => "bool",
                DataType::Undefined => "undefined",
            },
            shape: sizes
                .map(|size| match size {
                    Size::Fixed(size) => size.into(),
                    Size::Named(name) => name.into(),
                })
                .collect(),
            about: info.doc_string.clone(),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |size: &Value| size.as_str().map_or_else(|| size.to_string(), str::to_owned);
        let shape: Vec<String> = self.shape.iter().map(size).collect();
        write!(f, "{} {} [{}]", self.name, self.r#type, shape.join(", "))
    }
}

/// One row of `conditions.json`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ConditionEntry {
    row: ConditionRow,
    attribute: String,
    value: String,
    /// For a derived condition, the age of the items that carry it at the time of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<Age>,
}

/// Returns the conditions that `model` knows, by row.
pub(super) fn conditions(model: &SequenceModel, config: &Config) -> Vec<ConditionEntry> {
    let conditions = model.vocabulary().conditions();
    let of_row = |row| {
        let condition = conditions.get(row)?;
        let age = config.conditions.derived.get(&condition.attribute).copied();
        Some(ConditionEntry { row, attribute: condition.attribute, value: condition.value, age })
    };
    conditions.all().iter().filter_map(of_row).collect()
}

impl Manifest {
    pub(super) fn new(
        source: &Source<'_>,
        items: &Items,
        onnx: &proto::Model,
        files: BTreeMap<String, FileEntry>,
    ) -> Self {
        let settings = &source.config.model;
        let cosine = settings.score_temperature > 0.0;
        let ports = |infos: fn(&proto::Graph) -> &Vec<ValueInfo>| {
            onnx.graph.iter().flat_map(infos).map(Port::new).collect()
        };
        Self {
            format: FORMAT,
            model: source.name.into(),
            lineage: source.lineage.clone(),
            settings: settings.clone(),
            items: items.len(),
            active_items: source.catalogue.active.iter().filter(|&&active| active).count(),
            d: settings.d,
            max_history: source.config.sequences.max_len,
            scores: ScoreKind {
                similarity: if cosine { "cosine" } else { "inner-product" },
                temperature: if cosine { settings.score_temperature } else { 1.0 },
                sides: if cosine {
                    "item vectors have length 1; hidden states have length 1, are divided by the temperature and, under a \
                     condition, multiplied by its factor, so that their inner product is the score"
                } else {
                    "the inner product of a hidden state and an item vector is the score"
                },
            },
            paradigm: source.model.paradigm(),
            conditions: source.model.vocabulary().conditions().len(),
            opset: OPSET,
            inputs: ports(|graph| &graph.input),
            outputs: ports(|graph| &graph.output),
            files,
        }
    }
}

/// Result of an export.
#[derive(Debug, Clone, Serialize)]
pub struct ExportReport {
    /// Directory of the export.
    pub directory: PathBuf,
    /// Its manifest.
    #[serde(flatten)]
    pub manifest: Manifest,
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directory, manifest } = self;
        let Manifest { model, items, active_items, d, conditions, scores, .. } = manifest;
        writeln!(f, "{}: model `{model}`", directory.display())?;
        writeln!(f, "  {items} items ({active_items} active), d = {d}, {conditions} conditions")?;
        for (name, FileEntry { bytes, .. }) in &manifest.files {
            writeln!(f, "  {name:<21} {bytes:>12} bytes")?;
        }
        for (kind, ports) in [("input", &manifest.inputs), ("output", &manifest.outputs)] {
            for port in ports {
                writeln!(f, "  {kind:<7} {port}")?;
            }
        }
        writeln!(f, "  at most {} items of a history; {}", manifest.max_history, scores.sides)
    }
}
