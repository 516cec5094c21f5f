//! Ctrl-C and SIGTERM.

use std::future::Future;

use schemas::cli::Interrupt;

/// The job was asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("stopped during {during}; the same command (without --force) goes on there")]
pub(crate) struct Stopped {
    pub(crate) during: String,
}

/// `work`, unless a stop is requested before it ends: for work that leaves nothing behind when it is dropped.
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
