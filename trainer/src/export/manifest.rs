//! What an export says about itself.

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

/// `manifest.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Manifest {
    /// `climber-pilot-export`.
    pub format: &'static str,
    /// The name of the model.
    pub model: String,
    /// Where it came from.
    pub lineage: Lineage,
    /// Its `[model]` settings.
    pub settings: Model,
    /// Items of the catalogue: `item_index` goes from 1 to this.
    pub items: usize,
    /// Those of them that may be retrieved.
    pub active_items: usize,
    /// Width of item vectors and hidden states.
    pub d: usize,
    /// The longest history that the model was trained on: of a longer one, its last items are what to give.
    pub max_history: usize,
    /// What a score is.
    pub scores: ScoreKind,
    /// How conditions enter the model, where it follows any.
    pub paradigm: Option<Paradigm>,
    /// Conditions in `conditions.json`.
    pub conditions: usize,
    /// Version of ONNX's operators in `model.onnx`.
    pub opset: i64,
    /// The inputs of `model.onnx`.
    pub inputs: Vec<Port>,
    /// Its outputs.
    pub outputs: Vec<Port>,
    /// The other files.
    pub files: BTreeMap<String, FileEntry>,
}

/// What a score is, for whoever computes it from a hidden state and the item vectors.
#[derive(Debug, Clone, Serialize)]
pub struct ScoreKind {
    /// `inner-product` or `cosine`.
    pub similarity: &'static str,
    /// What the similarity is divided by.
    pub temperature: f64,
    /// The two sides in words.
    pub sides: &'static str,
}

/// An input or output of the graph.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// `int64`, `float32` or `bool`.
    pub r#type: &'static str,
    /// Numbers, and names of what differs from run to run: `n` items of a history, `P` conditions.
    pub shape: Vec<Value>,
    /// What it is.
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
    /// Of a derived condition: which items carry it, by their age at the time of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<Age>,
}

/// The conditions that `model` follows.
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

/// What an export came to.
#[derive(Debug, Clone, Serialize)]
pub struct ExportReport {
    /// Where it is.
    pub directory: PathBuf,
    /// What it says about itself.
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
