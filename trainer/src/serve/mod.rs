//! Serving a trained model: evaluation, retrieval, the gate and the commands see any model as a [`Recommender`].
//!
//! `dot_product.rs` serves every model that scores by inner products; `index/` searches for it, exactly or in a graph.
//! `popular.rs` and `co_occurrence.rs` are recommenders without a model. `rank.rs` computes the rank of one item, `top_k.rs` the
//! best items of a list. Nothing here opens a checkpoint or a table.

mod co_occurrence;
mod dot_product;
mod index;
mod list;
mod merge;
mod popular;
pub(crate) mod rank;
mod recommender;
pub mod top_k;

pub use co_occurrence::{CoOccurrence, Followers};
pub use dot_product::{DotProduct, GraphSetting, Serving};
pub use list::{List, Origin};
pub use merge::{Merge, Merged, merge};
pub use popular::{Popular, PopularityOrder};
pub use rank::{RankQuery, Ranks, rank};
pub use recommender::{
    Answers, Carrying, ListFilter, ListQuery, Read, Reading, RecommendError, Recommender, Scores,
};
pub use top_k::{NotFinite, Scored, TopK};
