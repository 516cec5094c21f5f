//! Boxed futures for the entry points of crates.

use std::pin::Pin;

/// A boxed future, returned in place of an `async fn`. An `async fn` is compiled again in every crate that awaits it, with all
/// that it awaits (Delta's readers, DataFusion's plans); behind a pointer it is compiled once.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Boxed`] for a future that is not `Send`.
pub type LocalBoxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
