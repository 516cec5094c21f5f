//! The model that another one begins from.

use schemas::config::{Config, ConfigError};
use store::Root;

use super::TrainError;
use crate::checkpoint::{self, Checkpoint};
use crate::data::Catalogue;
use crate::device::Backend;

/// A pre-trained or refreshed model, as training goes on from it.
pub(super) struct Parent {
    pub(super) checkpoint: Checkpoint,
    /// Of its weights.
    pub(super) hash: String,
}

impl Parent {
    /// Reads `models/<parent>`, which must not have been fine-tuned.
    pub(super) fn load(
        root: &Root,
        parent: &str,
        catalogue: &Catalogue,
        backend: &Backend,
    ) -> Result<Self, TrainError> {
        let directory = root.model_path(parent);
        let hash = checkpoint::hash(&directory)?;
        let checkpoint = checkpoint::load(&directory, catalogue, backend)?;
        if checkpoint.model.paradigm().is_some() {
            let from = checkpoint.lineage.parent.map_or(String::new(), |parent| format!(", `{parent}`"));
            return Err(TrainError::Taught { parent: parent.into(), from });
        }
        Ok(Self { checkpoint, hash })
    }

    /// `config` with what the checkpoint fixes: the architecture, and the loss of its pre-training.
    pub(super) fn config(&self, config: &Config) -> Config {
        Config {
            model: self.checkpoint.config.model.clone(),
            pretrain: self.checkpoint.config.pretrain.clone(),
            ..config.clone()
        }
    }
}

/// Refuses names that cannot be, and one for both: `what` the parent is, and what becomes of it.
pub(super) fn check_names(name: &str, parent: &str, what: [&str; 2]) -> Result<(), TrainError> {
    checkpoint::check_name(name)?;
    checkpoint::check_name(parent)?;
    if name == parent {
        let [is, becomes] = what;
        let problem = format!("`{parent}` is the {is}; give the {becomes} one another name");
        return Err(ConfigError::Invalid { key: "--name".into(), problem }.into());
    }
    Ok(())
}
