//! Failures that a repetition repairs: commit conflicts, unusable checkpoints, damaged shards.

use std::future::Future;
use std::path::PathBuf;

use pipeline::sequences;
use schemas::tables::{EVENTS, REFRESH, SEQUENCES};
use store::commit::CommitError;
use store::{Root, TableError};
use terminal::with_causes;
use trainer::data::DataError;
use trainer::judge::EvaluateError;
use trainer::learn::TrainError;

use crate::record::DayStep;

/// Attempts to build a table that another job writes too.
const CONFLICTS: usize = 5;

/// Repeats `build` while another job's commits conflict with it, up to `CONFLICTS` times: both write `refresh` and new items.
pub(crate) async fn again_on_conflict<T, F: Future<Output = Result<T, sequences::BuildError>>>(
    build: impl Fn() -> F,
) -> Result<T, sequences::BuildError> {
    for _ in 1..CONFLICTS {
        match build().await {
            Err(sequences::BuildError::Commit(CommitError::Conflict { .. })) => {}
            built => return built,
        }
    }
    build().await
}

/// Continues a training, or begins it anew if an earlier run's checkpoint is unusable: it has other settings, tables or code, or
/// is damaged. The names are the jobs' own, so no other model is lost.
pub(crate) async fn anew_if_unusable<T>(
    train: impl AsyncFn(bool) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    match train(false).await {
        Err(error @ (TrainError::OtherRun { .. } | TrainError::Checkpoint(_))) => {
            eprintln!("{}\ntraining begins anew", with_causes(&error));
            train(true).await
        }
        trained => trained,
    }
}

/// True if the changes since a version of `events` are no longer known: a log entry is gone, or a shard as it was then.
pub(crate) fn cannot_tell_what_is_new(error: &sequences::BuildError) -> bool {
    let gone = |error: &TableError| match error {
        TableError::Expired { .. } | TableError::Future { .. } => true,
        TableError::Shard { table, .. } => table == EVENTS,
        _ => false,
    };
    matches!(error, sequences::BuildError::Table(error) if gone(error))
}

/// Returns the step that rebuilds an unreadable shard's table, and the shard's path; `None` if no step does.
pub(super) fn damaged(root: &Root, error: &anyhow::Error) -> Option<(DayStep, PathBuf)> {
    let data = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(TrainError::Data(data) | TrainError::Evaluate(EvaluateError::Data(data))), _) => data,
        (_, Some(EvaluateError::Data(data))) => data,
        _ => return None,
    };
    let DataError::Table(TableError::Shard { table, shard, .. }) = data else { return None };
    let step = match table.as_str() {
        SEQUENCES | REFRESH => DayStep::Sequences,
        table if table.starts_with("sft/") => DayStep::SftSets,
        _ => return None,
    };
    Some((step, root.shard_path(table, shard)))
}
