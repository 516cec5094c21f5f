//! Futures whose code stands in one crate.

use std::pin::Pin;

/// What a crate's entry points give instead of being `async fn`s. The code of an `async fn` is compiled in every crate that awaits
/// it, and with it that of all that it awaits: Delta's readers, DataFusion's plans. Behind a pointer it is compiled once.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Boxed`], for one that stays on its thread.
pub type LocalBoxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
