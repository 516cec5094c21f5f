//! Stops jobs on Ctrl-C and SIGTERM.

use std::future::Future;

use pipeline::compact::CompactError;
use pipeline::ingest::IngestError;
use pipeline::privacy::ForgetError;
use store::vacuum::VacuumError;
use terminal::Interrupt;

/// The job was asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("stopped during {during}; the same command (without --force) goes on there")]
pub(crate) struct Stopped {
    pub(crate) during: String,
}

/// True if a step ended because the job was asked to stop. Some steps stop by themselves, with an error of their own.
pub(crate) fn is_stop(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<Stopped>()
            || matches!(cause.downcast_ref(), Some(IngestError::Interrupted))
            || matches!(cause.downcast_ref(), Some(CompactError::Interrupted { .. }))
            || matches!(cause.downcast_ref(), Some(ForgetError::Interrupted))
            || matches!(cause.downcast_ref(), Some(VacuumError::Interrupted { .. }))
    })
}

/// Runs `work` until it ends or a stop is requested, which drops it: `work` must leave nothing behind then.
pub(crate) async fn unless_stopped<T>(
    interrupt: &Interrupt,
    during: &str,
    work: impl Future<Output = T>,
) -> Result<T, Stopped> {
    tokio::select! {
        result = work => Ok(result),
        () = interrupt.wait() => Err(Stopped { during: during.into() }),
    }
}
