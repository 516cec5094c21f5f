//! The Climber-Pilot model: training and evaluation.

pub mod checkpoint;
pub mod data;
pub mod evaluate;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optimizer;
pub mod pretrain;
pub mod random;
pub mod vocabulary;
