//! Scratch mounts (`access=copy`): against plain copies of their base, sentence by sentence, and
//! with the overlays of others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
// The model test of plain mounts uses all of these, this one a part.
#[allow(dead_code)]
#[path = "../model/operation.rs"]
mod operation;
#[allow(dead_code)]
#[path = "../model/world.rs"]
mod world;

mod attributes;
mod base;
mod base_changed;
mod bound;
mod bound_full;
mod cloned;
mod coherence;
mod counted;
mod covered;
mod damaged;
mod exerciser;
mod full;
mod guard;
mod interchange;
mod kept;
mod killed;
mod listings;
mod many;
mod model;
mod nested;
mod numbers;
mod planted;
mod power;
mod renames;
mod reuse;
mod rules;
mod shared;
mod stores;
mod threads;
mod tidy;
mod watched;
mod watched_kinds;
mod watched_model;
