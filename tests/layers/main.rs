//! Files with pages in several layers: against a vector of bytes, on full filesystems, killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod killed;
mod model;
mod promises;
mod stack;
