//! `pipeline inspect`: claims proven and violations named, pages, and what a target may see.

mod pages;
pub(crate) mod tables;
mod verify;
