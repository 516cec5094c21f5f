//! `pipeline inspect`: claims proven and violations named, pages, and what a target may see.

mod pages;
mod tables;
mod verify;
