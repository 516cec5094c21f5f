//! The subcommands of `trainer`, one file each.

pub(crate) mod compare;
pub(crate) mod device;
pub(crate) mod evaluate;
pub(crate) mod export;
mod new_model;
pub(crate) mod pretrain;
pub(crate) mod refresh;
pub(crate) mod retrieve;
pub(crate) mod sft;

use anyhow::{Context as _, Result};
use store::Root;
use store::publication;

/// Returns `model`, or the name of the published model if `None`.
fn or_served(root: &Root, model: Option<&str>) -> Result<String> {
    if let Some(model) = model {
        return Ok(model.into());
    }
    let published = publication::published(root)?;
    let published =
        published.context("no model is published (`climber daily` does that); name one with --model")?;
    eprintln!("model `{}`, served by publication {}", published.served, published.number);
    Ok(published.served)
}
