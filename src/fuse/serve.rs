//! The work of the adapter for each request: decode it, make one call, send one reply.

mod attributes;
mod data;
mod directories;
mod names;
