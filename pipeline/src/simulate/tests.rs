//! Whole simulations, small.
