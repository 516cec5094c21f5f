//! Exports of small models with random values.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand_distr::{Distribution, StandardNormal};
use schemas::config::{Model, Sft};
use tempfile::TempDir;

use super::*;
use crate::data::conditions::KnownConditions;
use crate::data::vocabulary::Vocabulary;
use crate::data::{ItemIndex, SequencesSource};
use crate::device::Backend;

mod agreement;
mod files;

const ITEMS: usize = 12;

/// Inputs of an export, as a checkpoint gives them.
struct Example {
    model: SequenceModel,
    config: Config,
    catalogue: Catalogue,
    lineage: Lineage,
    directory: TempDir,
    external_from_bytes: usize,
}

fn catalogue() -> Catalogue {
    let genres: [&[&str]; 3] = [&["a"], &["b", "c"], &[]];
    let ids: Vec<String> = (1..=ITEMS).map(|i| format!("item {i}")).collect();
    let items: Vec<_> = ids.iter().enumerate().map(|(i, id)| (id.as_str(), genres[i % 3])).collect();
    let mut catalogue = Catalogue::example(&items);
    catalogue.active[2] = false;
    catalogue
}

fn settings() -> Model {
    Model {
        d: 8,
        layers: 2,
        heads: 2,
        branches: 2,
        feed_forward: 2,
        max_distance: 8,
        min_count: 2,
        hash_buckets: 3,
        ..Model::default()
    }
}

impl Example {
    /// Returns a model; with `instructions`, one that knows genres and new releases.
    fn new(model: Model, instructions: Option<Sft>) -> Self {
        let mut catalogue = catalogue();
        let config = Config { model, sft: instructions.clone().unwrap_or_default(), ..Config::default() };
        let counts: Vec<u32> = (0..=ITEMS as u32).map(|i| i % 4).collect();
        let mut vocabulary = Vocabulary::new(&config.model, &catalogue, &counts);
        if instructions.is_some() {
            let names = ["genre".to_owned(), "new-release".to_owned()];
            let conditions = KnownConditions::new(&names, &config.conditions.derived, &catalogue);
            vocabulary = vocabulary.with_conditions(conditions);
        }
        catalogue.version = 3;
        let model =
            SequenceModel::new(&config.model, &config.sft, Arc::new(vocabulary), 1, &Backend::CPU).unwrap();
        // Initial biases are zero and would hide their effect.
        for (name, var) in model.parameters().iter() {
            let mut generator = crate::random::generator(2, name, 0);
            let noise = StandardNormal.sample_iter(&mut generator).map(|x: f32| 0.3 * x);
            let noise = Tensor::from_iter(noise.take(var.elem_count()), &Device::Cpu).unwrap();
            var.set(&(var.as_tensor() + noise.reshape(var.shape()).unwrap()).unwrap()).unwrap();
        }
        let lineage = Lineage {
            sequences: SequencesSource::default(),
            items_version: catalogue.version,
            parent: None,
            parent_hash: None,
            fresh: None,
            inherited_events: None,
            taught_by: None,
            examples: Vec::new(),
            made_by: None,
            code_version: "test".into(),
        };
        let directory = tempfile::tempdir().unwrap();
        candle_core::safetensors::save(&model.tensors(), directory.path().join(WEIGHTS)).unwrap();
        Self { model, config, catalogue, lineage, directory, external_from_bytes: EXTERNAL_FROM_BYTES }
    }

    fn out(&self) -> PathBuf {
        self.directory.path().join("out")
    }

    fn write(&self, interrupt: &Interrupt) -> Result<ExportReport, ExportError> {
        let source = Source {
            name: "m",
            model: &self.model,
            config: &self.config,
            lineage: &self.lineage,
            weights: &self.directory.path().join(WEIGHTS),
            catalogue: &self.catalogue,
            external_from_bytes: self.external_from_bytes,
        };
        source.write(&self.out(), interrupt)
    }

    fn export(&self) -> ExportReport {
        self.write(&Interrupt::default()).unwrap()
    }

    fn error(&self) -> String {
        self.write(&Interrupt::default()).unwrap_err().to_string()
    }

    /// Returns the vectors as scored, `[items, d]`.
    fn candidates(&self) -> Tensor {
        let items: Vec<ItemIndex> = ItemIndex::all(ITEMS).collect();
        self.model.candidates(&self.model.item_vectors(&items).unwrap().vectors).unwrap()
    }
}

fn paradigm(paradigm: Paradigm, condition_embedding: bool) -> Option<Sft> {
    Some(Sft { paradigm, condition_embedding, ..Sft::default() })
}
