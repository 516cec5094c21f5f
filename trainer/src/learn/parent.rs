//! Loads and checks the model that refreshing or fine-tuning starts from.

use schemas::config::{Config, ConfigError};
use store::Root;

use super::TrainError;
use crate::checkpoint::{self, Checkpoint};
use crate::data::Catalogue;
use crate::device::Backend;

/// A pre-trained or refreshed model from which training continues.
pub(super) struct Parent {
    pub(super) checkpoint: Checkpoint,
    /// Hash of its weights.
    pub(super) hash: String,
}

impl Parent {
    /// Loads `models/<parent>`.
    ///
    /// # Errors
    ///
    /// The checkpoint cannot be loaded, or the model was fine-tuned.
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

    /// Returns `config` with the parent's `[model]` and `[pretrain]` settings.
    pub(super) fn config(&self, config: &Config) -> Config {
        Config {
            model: self.checkpoint.config.model.clone(),
            pretrain: self.checkpoint.config.pretrain.clone(),
            ..config.clone()
        }
    }
}

/// Refuses invalid names, and equal ones. `what` describes the parent and the new model in the message.
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
