//! Stopping a long run at Ctrl-C without leaving anything half-done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop. Clones are the same request.
///
/// Long loops ask [`requested`](Self::requested) between two chunks and return an error of their own, so that
/// what they had begun is cleaned up on the way out.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// One that the first Ctrl-C of the process requests; a second Ctrl-C ends the process at once. Must be
    /// called inside a Tokio runtime with more than one thread.
    pub fn on_ctrl_c() -> Self {
        let interrupt = Self::default();
        let handle = interrupt.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                handle.request();
                eprintln!("stopping; press Ctrl-C again to stop at once");
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(i32::from(schemas::cli::EXIT_FAILED));
            }
        });
        interrupt
    }

    /// Requests the stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the stop was requested.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
