//! `pipeline inspect`: proofs and violations, pages, and what a target may see.

mod pages;
pub(crate) mod tables;
mod verify;
