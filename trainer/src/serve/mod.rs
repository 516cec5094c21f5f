//! Asking a trained model: [`Recommender`] is all that evaluation, retrieval, the gate and the jobs know of one.
//!
//! `dot_product.rs` is the road of every model that scores by inner products, `index/` its search, exact or by a graph;
//! `popular.rs` and `co_occurrence.rs` are recommenders without a model. `rank.rs` and `top_k.rs` are the two ways to look at
//! scores: the place of one item, and the first places. Nothing here opens a checkpoint or a table.

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
