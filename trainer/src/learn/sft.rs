//! `trainer sft`: fine-tunes a pre-trained model to follow instructions (§3.3).
//!
//! Memory: the chosen examples, the rows of validation, up to three models, and one optimiser.

use std::fmt;
use std::sync::Arc;

use schemas::config::{Config, ConfigError, Paradigm, Pretrain};
use schemas::hash::hash64;
use schemas::history::Role;
use schemas::tables::sft_table;
use serde::Serialize;
use store::Root;
use store::boxed::Boxed;

use super::parent::{Parent, check_names};
use super::training_loop::Run;
use super::{Status, Task, TrainError, TrainOptions, TrainOutcome, selector};
use crate::batch::TrainingBatch;
use crate::checkpoint::{self, Checkpoint, Lineage};
use crate::data::conditions::{Carriers, KnownConditions};
use crate::data::{Catalogue, Examples, ItemIndex, SequencesTable};
use crate::device;
use crate::judge::{AskedConditions, Evaluation, HR_10, Metrics, asked_rows, change, rate};
use crate::kinds::{Learner, TrainedModel};
use crate::models::SequenceModel;
use crate::objectives::{Draws, Objective, objective};
use crate::random;

/// Outcome of fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SftOutcome {
    /// Outcome of the run.
    #[serde(flatten)]
    pub training: TrainOutcome,
    /// Number of examples in one epoch.
    pub examples: usize,
    /// Quality without instructions before and after; absent if the run is unfinished or nothing is held out.
    pub unconditional: Option<Forgetting>,
}

/// HR@10 without instructions on the validation targets, seen items filtered (§3.3.3: catastrophic forgetting).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forgetting {
    /// Before fine-tuning; `None` if the protocol excludes all targets.
    pub before: Option<f64>,
    /// After fine-tuning; `None` likewise.
    pub after: Option<f64>,
}

impl fmt::Display for SftOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.training)?;
        if let Some(Forgetting { before, after }) = self.unconditional {
            write!(
                f,
                "\nwithout instructions, HR@10 on validation: {} before, {} after ({})",
                rate(before).trim_start(),
                rate(after).trim_start(),
                change(before, after)
            )?;
        }
        Ok(())
    }
}

/// Fine-tunes `models/<parent>` into `models/<name>` on the newest tables `sft/<condition>` of `root`, resuming an unfinished run
/// of the same settings. `[model]` and `[pretrain]` are the parent's, whatever the configuration says.
///
/// # Errors
///
/// No condition is configured, a table is missing, invalid or built from another split or log, the parent was fine-tuned, an
/// unfinished run has other settings, or a step fails.
pub fn run<'a>(
    config: &'a Config,
    root: &'a Root,
    parent: &'a str,
    options: TrainOptions<'a>,
) -> Boxed<'a, Result<SftOutcome, TrainError>> {
    Box::pin(fine_tune(config, root, parent, options))
}

async fn fine_tune(
    config: &Config,
    root: &Root,
    parent: &str,
    options: TrainOptions<'_>,
) -> Result<SftOutcome, TrainError> {
    run_after(config, root, parent, None, options).await
}

/// Fine-tunes as [`run`] does, and initialises the instruction parameters from `models/<taught>` if it follows the same
/// conditions under the same paradigm. A few examples then suffice, while parameters that start at zero need all of them.
///
/// # Errors
///
/// As [`run`]; a `taught` that cannot be loaded is ignored.
pub async fn again(
    config: &Config,
    root: &Root,
    parent: &str,
    taught: &str,
    options: TrainOptions<'_>,
) -> Result<SftOutcome, TrainError> {
    run_after(config, root, parent, Some(taught), options).await
}

async fn run_after(
    config: &Config,
    root: &Root,
    parent: &str,
    taught: Option<&str>,
    options: TrainOptions<'_>,
) -> Result<SftOutcome, TrainError> {
    check_names(options.name, parent, ["pre-trained model", "fine-tuned"])?;
    if config.sft.conditions.is_empty() {
        let problem =
            "is empty; name what the model is to follow, such as --set 'sft.conditions=[\"genre\"]'".into();
        return Err(ConfigError::Invalid { key: "sft.conditions".into(), problem }.into());
    }
    let backend = device::open(config)?;
    let mut attributes = checkpoint::attributes(&root.model_path(parent))?;
    let derived = &config.conditions.derived;
    let asked = config.sft.conditions.iter().filter(|name| !derived.contains_key(*name));
    attributes.extend(asked.filter(|name| !attributes.contains(name)).cloned().collect::<Vec<_>>());
    let catalogue = Catalogue::load(root, &attributes).await?;
    let origin = Parent::load(root, parent, &catalogue, &backend)?;
    let (config, loaded) = (&origin.config(config), &origin.checkpoint);
    config.sft.check_parent(&config.model)?;
    let settings = config.sft.training(&config.pretrain)?;
    let conditions = KnownConditions::new(&config.sft.conditions, derived, &catalogue);
    let taught = taught.and_then(|name| {
        // A model that cannot be loaded is ignored.
        let loaded = checkpoint::load(&root.model_path(name), &catalogue, &backend).ok()?;
        let model = loaded.model;
        let same =
            model.vocabulary().conditions() == &conditions && model.paradigm() == Some(config.sft.paradigm);
        same.then(|| (name.to_owned(), model))
    });
    // Each parent gets other examples; a resumed run gets the same ones.
    let mut lot = random::generator(config.seed, "examples", hash64(origin.hash.as_bytes()));
    let wanted = Some(config.sft.examples).filter(|&wanted| wanted > 0).map(|wanted| (wanted, &mut lot));
    let examples = Examples::load(root, &conditions, catalogue.items(), wanted).await?;
    let sequences = asked_rows(config, root, catalogue.items(), Role::Validation).await?;
    agree(&examples, &sequences, parent, &loaded.lineage.sequences.config_hash)?;
    let holds_out_for_ever = config.sequences.holds_out_for_ever(&sequences.source.config_hash);
    let asked = sequences.source.events_version.parse().ok();
    if let Some(warning) = leak(parent, loaded.lineage.learned_events(), asked, holds_out_for_ever) {
        eprintln!("warning: {warning}");
    }
    for source in &examples.sources {
        let ours = derived.get(&source.condition).map(ToString::to_string);
        if source.age != ours {
            let age = |age: &Option<String>| age.clone().unwrap_or_else(|| "none".into());
            let (examples, configured) = (age(&source.age), age(&ours));
            let table = sft_table(&source.condition);
            return Err(TrainError::OtherAge { table, examples, configured });
        }
    }
    let lineage = Lineage {
        // The rows of validation; `parent_hash` identifies the pre-training rows.
        sequences: sequences.source.clone(),
        items_version: catalogue.version,
        parent: Some(parent.into()),
        parent_hash: Some(origin.hash.clone()),
        fresh: None,
        inherited_events: loaded.lineage.learned_events(),
        taught_by: taught.as_ref().map(|(name, _)| name.clone()),
        examples: examples.sources.clone(),
        made_by: options.made_by(),
        code_version: env!("CARGO_PKG_VERSION").into(),
    };
    let validation = Evaluation::new(&sequences, &catalogue, &config.evaluate, config.seed, Role::Validation);
    let (units, learned) = units(&examples, config);
    let draws =
        Draws::new(catalogue.items(), units.iter().map(|&history| predicted(&examples, history, config)));
    let unconditional_weight = match config.sft.paradigm {
        // This paradigm reads only without instructions.
        Paradigm::Unconditional => 0.0,
        _ => config.sft.unconditional_weight,
    };
    let task = FineTuning {
        config,
        objective: objective(&settings, draws, config.seed, unconditional_weight),
        units,
        settings,
        parent: loaded.sequence_model("fine-tuned")?,
        taught: taught.map(|(_, model)| model),
        carriers: Carriers::new(&conditions, derived, &catalogue),
        conditions,
        examples: &examples,
        validation,
    };
    let run = Run::new(config, root, options, &backend, &catalogue, &task, lineage);
    if let Some(training) = run.prepare()? {
        return Ok(SftOutcome { training, examples: learned, unconditional: None });
    }
    if task.units.is_empty() {
        return Err(TrainError::NoExamples { conditions: config.sft.conditions.join(", ") });
    }
    let training = run.finish()?;
    let mut unconditional = None;
    if training.status == Status::Trained && !task.validation.is_empty() {
        let tuned = checkpoint::load(&root.model_path(options.name), &catalogue, &backend)?;
        unconditional = Some(Forgetting {
            before: task.unconditional(&*loaded.model)?,
            after: task.unconditional(&*tuned.model)?,
        });
    }
    Ok(SftOutcome { training, examples: learned, unconditional })
}

/// Returns a warning if the parent has learned newer events than those of the `sequences` that validation asks, which may include
/// what `sequences` holds out. `learned` and `asked` are versions of `events`.
fn leak(parent: &str, learned: Option<u64>, asked: Option<u64>, holds_out_for_ever: bool) -> Option<String> {
    let (learned, asked) = (learned?, asked?);
    (learned > asked && !holds_out_for_ever).then(|| {
        format!(
            "validation asks `sequences` of version {asked} of `events`, and `{parent}` has learned what came up to version \
             {learned}, what is held out there among it: the epoch is selected by it; run `pipeline build-sequences` first"
        )
    })
}

/// Checks that the examples, the parent and the rows of validation come from one split, and the tables from one log, so that none
/// learns what another holds out.
fn agree(
    examples: &Examples,
    sequences: &SequencesTable,
    parent: &str,
    pretrained: &str,
) -> Result<(), TrainError> {
    let rows = ("sequences".to_owned(), &sequences.source.config_hash);
    let tables = examples.sources.iter().map(|s| (sft_table(&s.condition), &s.config_hash));
    for (table, config_hash) in std::iter::once(rows).chain(tables) {
        if config_hash != pretrained {
            let (parent, rows) = (parent.to_owned(), pretrained.to_owned());
            return Err(TrainError::OtherSplit { table, settings: config_hash.clone(), parent, rows });
        }
    }
    for source in &examples.sources {
        if source.events_version != sequences.source.events_version {
            return Err(TrainError::OtherEvents {
                table: sft_table(&source.condition),
                examples: source.events_version.clone(),
                sequences: sequences.source.events_version.clone(),
            });
        }
    }
    Ok(())
}

/// Iterates over the items that the examples of a history predict with a loss.
fn predicted<'a>(
    examples: &'a Examples,
    history: u32,
    config: &Config,
) -> impl Iterator<Item = ItemIndex> + 'a {
    let without_history = config.pretrain.loss_without_history;
    TrainingBatch::instructed_items(examples, history, config.model.mask, without_history)
}

/// Returns the histories with examples that carry loss, and the number of those examples.
fn units(examples: &Examples, config: &Config) -> (Vec<u32>, usize) {
    let all = (0..examples.histories.len() as u32).map(|h| (h, predicted(examples, h, config).count()));
    let units: Vec<(u32, usize)> = all.filter(|&(_, n)| n > 0).collect();
    (units.iter().map(|&(history, _)| history).collect(), units.iter().map(|&(_, n)| n).sum())
}

/// Fine-tuning on instruction examples.
struct FineTuning<'a> {
    config: &'a Config,
    settings: Pretrain,
    parent: &'a SequenceModel,
    /// Model that the instruction parameters are copied from.
    taught: Option<Box<dyn TrainedModel>>,
    conditions: KnownConditions,
    carriers: Carriers,
    examples: &'a Examples,
    /// Histories with at least one example that carries loss.
    units: Vec<u32>,
    objective: Box<dyn Objective>,
    validation: Evaluation<'a>,
}

impl FineTuning<'_> {
    /// Returns HR@10 of `model` without instructions.
    fn unconditional(&self, model: &dyn TrainedModel) -> Result<Option<f64>, TrainError> {
        let (protocol, _) = selector(self.settings.select_by);
        let results = self.validation.model("", model, &[protocol])?;
        Ok(results.iter().find(|m| m.filter_seen).and_then(|m| m.means[HR_10]))
    }
}

impl Task for FineTuning<'_> {
    fn settings(&self) -> &Pretrain {
        &self.settings
    }

    fn condition_rate(&self) -> f64 {
        self.config.sft.condition_learning_rate / self.config.sft.learning_rate
    }

    fn units(&self) -> (&[u32], &'static str) {
        (&self.units, "histories")
    }

    fn batch(&self, histories: &[u32]) -> TrainingBatch {
        let model = &self.config.model;
        let without_history = self.settings.loss_without_history;
        TrainingBatch::instructed(self.examples, histories, model.mask, model.branches, without_history)
    }

    fn objective(&self) -> &dyn Objective {
        &*self.objective
    }

    fn begin(&self) -> Result<Box<dyn Learner>, TrainError> {
        let Config { model, sft, seed, .. } = self.config;
        let vocabulary = Arc::new(self.parent.vocabulary().with_conditions(self.conditions.clone()));
        let step = |source| TrainError::Step { step: 0, source };
        let model = SequenceModel::taught(self.parent, model, sft, vocabulary, *seed).map_err(step)?;
        if let Some(taught) = self.taught.as_ref().and_then(|taught| taught.sequence_model()) {
            model.set_conditions(taught).map_err(step)?;
        }
        Box::new(model).into_learner(&self.settings, None).map_err(step)
    }

    /// Validates under the conditions of each target's own item, averaged over all configured conditions.
    fn validate(&self, name: &str, model: &dyn TrainedModel) -> Result<Vec<Metrics>, TrainError> {
        if self.validation.is_empty() {
            return Ok(Vec::new());
        }
        let (protocol, _) = selector(self.settings.select_by);
        let instructed = AskedConditions { conditions: &self.conditions, carriers: &self.carriers };
        let attributes: Vec<&str> = self.conditions.attributes().collect();
        Ok(self.validation.instructed(name, model, instructed, protocol, &attributes)?)
    }

    fn difference(&self, checkpoint: &Checkpoint) -> Option<String> {
        let theirs = &checkpoint.config;
        let ours = self.config;
        if theirs.sft != ours.sft {
            return Some("another [sft]".into());
        }
        if theirs.evaluate.sample != ours.evaluate.sample {
            return Some("another evaluate.sample, which decides what selects the epoch".into());
        }
        (theirs.conditions.derived != ours.conditions.derived).then(|| "another [conditions.derived]".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_knows_what_validation_holds_out_is_announced() {
        let warning = leak("m", Some(8), Some(7), false).unwrap();
        assert!(warning.contains("version 7") && warning.contains("`m`"), "{warning}");
        for (learned, asked, for_ever) in [
            (Some(7), Some(7), false),
            (Some(8), Some(7), true),
            (None, Some(7), false),
            (Some(6), Some(7), false),
        ] {
            assert_eq!(leak("m", learned, asked, for_ever), None);
        }
    }
}
