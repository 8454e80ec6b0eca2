//! The FUSE side: requests of the kernel become calls of one tree, and their results become
//! replies. Decides nothing about files.

mod adapter;
mod busy_poll;
mod convert;
mod failures;
mod features;
mod handlers;
pub mod mount;
mod notify;
pub mod probe;
mod serve;
mod session;
mod timeouts;
mod trace;
mod worker_pool;

/// The library that speaks FUSE, as a target of the log, and the part of it that sends replies.
pub const LOG_TARGETS: (&str, &str) = ("fuser", "fuser::reply");

pub use adapter::{Adapter, AdapterOptions};
pub use busy_poll::BusyPoll;
pub use features::{WITHOUT_IDMAP, wanted};
pub use handlers::Handlers;
pub use notify::KernelCaches;
pub use session::{Connection, Session};
pub use timeouts::Timeouts;
