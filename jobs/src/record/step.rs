//! The steps of a day, in order.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DayStep {
    /// Log and catalogue to tables.
    Ingest,
    /// Small shards to large ones.
    Compact,
    /// Events to windows of histories: all windows, and those with new events.
    Sequences,
    /// Instruction examples.
    SftSets,
    /// Each user's own recall instructions.
    Instructions,
    /// New events, predicted by the previously published model.
    Prequential,
    /// The base: a refresh, or a full training.
    Train,
    /// SFT: the base learns to follow instructions.
    Sft,
    /// The guard's targets, ranked by the new and the published model.
    Evaluate,
    /// Judgement whether the new model may be published.
    Gate,
    /// Publication of the new model.
    Publish,
    /// Deletion of unneeded models and versions of tables.
    Retention,
    /// The day's page.
    Report,
}

impl DayStep {
    /// All steps, in order.
    pub(crate) const ALL: [Self; 13] = [
        Self::Ingest,
        Self::Compact,
        Self::Sequences,
        Self::SftSets,
        Self::Instructions,
        Self::Prequential,
        Self::Train,
        Self::Sft,
        Self::Evaluate,
        Self::Gate,
        Self::Publish,
        Self::Retention,
        Self::Report,
    ];

    /// Returns the name on command lines and in records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Compact => "compact",
            Self::Sequences => "sequences",
            Self::SftSets => "sft-sets",
            Self::Instructions => "instructions",
            Self::Prequential => "prequential",
            Self::Train => "train",
            Self::Sft => "sft",
            Self::Evaluate => "evaluate",
            Self::Gate => "gate",
            Self::Publish => "publish",
            Self::Retention => "retention",
            Self::Report => "report",
        }
    }

    /// Returns a heading that says what the step does.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Ingest => "log and catalogue to tables",
            Self::Compact => "small shards to large ones",
            Self::Sequences => "events to windows of histories",
            Self::SftSets => "instruction examples",
            Self::Instructions => "each user's own recall instructions",
            Self::Prequential => "what is new, predicted by the published model",
            Self::Train => "the base model",
            Self::Sft => "the base learns to follow instructions",
            Self::Evaluate => "held-out targets, ranked among the whole catalogue",
            Self::Gate => "may it be published?",
            Self::Publish => "the model that is served",
            Self::Retention => "what nobody needs any more",
            Self::Report => "the page of the day",
        }
    }
}

impl fmt::Display for DayStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line_and_the_record() {
        for (i, step) in DayStep::ALL.into_iter().enumerate() {
            assert_eq!(step.to_possible_value().unwrap().get_name(), step.name());
            assert_eq!(serde_json::to_value(step).unwrap(), step.name());
            assert_eq!(DayStep::ALL.into_iter().filter(|&earlier| earlier < step).count(), i);
        }
    }
}
