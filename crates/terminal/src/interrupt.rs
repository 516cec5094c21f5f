//! Stops long work on Ctrl-C and SIGTERM.

use std::sync::Arc;

use tokio::sync::watch;

use crate::exit::EXIT_FAILED;

/// A request to stop, shared by its clones.
///
/// Long loops check [`requested`](Self::requested) between two pieces of work and clean up before they return.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<watch::Sender<bool>>);

impl Interrupt {
    /// Returns a request that the first Ctrl-C or SIGTERM of the process sets; the second ends the process with [`EXIT_FAILED`].
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime. The runtime needs more than one thread, or a busy loop keeps it from seeing the signal.
    pub fn on_signal() -> Self {
        let interrupt = Self::default();
        let handle = interrupt.clone();
        tokio::spawn(async move {
            if signalled().await.is_ok() {
                handle.request();
                eprintln!("stopping; press Ctrl-C again to stop at once");
            }
            if signalled().await.is_ok() {
                std::process::exit(i32::from(EXIT_FAILED));
            }
        });
        interrupt
    }

    /// Requests the stop.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Returns true if the stop was requested.
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves when the stop is requested: for work that can be dropped at any point.
    pub async fn wait(&self) {
        // The sender lives as long as `self`, so only a request ends this wait.
        let _ = self.0.subscribe().wait_for(|&requested| requested).await;
    }
}

/// Resolves at the next Ctrl-C or SIGTERM, which schedulers send.
async fn signalled() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}
