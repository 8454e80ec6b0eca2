//! The FUSE side: requests of the kernel become calls of the volume or of the control directory,
//! and their results become replies. Decides nothing about files.

mod adapter;
mod convert;
mod features;
mod handlers;
pub mod mount;
mod notify;
mod trace;

pub use adapter::{Adapter, AdapterOptions};
pub use notify::KernelCaches;
