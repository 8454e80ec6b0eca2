//! What a name or a page is made of: base, scratch layers, page maps.
//!
//! A file is a stack of layers. The topmost layer that holds a page gives it, and the top layer
//! takes the writes. [`pages::PageMap`] says which pages an upper file holds, on disk and in
//! memory; [`merged::Merged`] is a file over another one, which may be merged itself.
//! [`overlay::Overlay`] is the tree of names over them, and [`scratch::Scratch`] the directory
//! that holds what was written.
//!
//! Invariants: a layer below the top one is never written; a page is told to be a layer's own only
//! once its data is there.

mod assemble;
mod base;
pub mod base_state;
pub mod changed;
pub mod frozen_file;
pub mod merged;
pub mod overlay;
mod page_owners;
pub mod pages;
pub mod scratch;

pub use assemble::assemble;
