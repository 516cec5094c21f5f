//! One file a command.

pub(crate) mod compare;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod pretrain;
pub(crate) mod refresh;
pub(crate) mod retrieve;
pub(crate) mod sft;
