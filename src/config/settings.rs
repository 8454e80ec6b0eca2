//! The options of a mount that hold as they are typed, whatever the disk is like.
//!
//! This is their one description beside the table of options: [`MountOptions`](super::MountOptions)
//! reads them, [`MountConfig`](super::MountConfig) hands them on, `mount --check --json` prints them.

use std::ffi::OsString;
use std::time::Duration;

use log::LevelFilter;
use serde::{Serialize, Serializer};

use super::{OpenRequests, WatchMode};
use crate::shown::Name;

/// The settings of a mount. The names of their JSON have units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// `control_name=`: the file name of the control directory in the root.
    #[serde(serialize_with = "file_name")]
    pub control_name: OsString,
    /// `open=`: whether the kernel asks when a client opens a file.
    pub open: OpenRequests,
    /// `watch=`: whether the source is watched for changes.
    pub watch: WatchMode,
    /// `entry_timeout=`: time for which the kernel may trust a name; `None` leaves it to the daemon.
    #[serde(rename = "entry_timeout_s", serialize_with = "seconds")]
    pub entry_timeout: Option<Duration>,
    /// `attr_timeout=`: the same for attributes.
    #[serde(rename = "attr_timeout_s", serialize_with = "seconds")]
    pub attr_timeout: Option<Duration>,
    /// `negative_timeout=`: the same for a missing name.
    #[serde(rename = "negative_timeout_s", serialize_with = "seconds")]
    pub negative_timeout: Option<Duration>,
    /// `threads=`: event loops, 1 to 64.
    pub threads: usize,
    /// `busy_poll=`: time that an event loop stays awake for the next request, at most 1 ms.
    #[serde(rename = "busy_poll_us", serialize_with = "microseconds")]
    pub busy_poll: Duration,
    /// `clone_fd`: every event loop has a `/dev/fuse` descriptor of its own.
    pub clone_fd: bool,
    /// `sandbox`: the daemon gives away the rights that it does not need.
    pub sandbox: bool,
    /// `max_mappings=`: the greatest number of mappings kept; `None` leaves it to the daemon.
    pub max_mappings: Option<u64>,
    /// `log=`: the level of the daemon's log; `None` leaves it to the environment.
    #[serde(serialize_with = "level")]
    pub log: Option<LevelFilter>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            control_name: ".mmapfs".into(),
            open: OpenRequests::default(),
            watch: WatchMode::default(),
            entry_timeout: None,
            attr_timeout: None,
            negative_timeout: None,
            threads: 4,
            busy_poll: Duration::from_micros(50),
            clone_fd: true,
            sandbox: true,
            max_mappings: None,
            log: None,
        }
    }
}

fn file_name<S: Serializer>(name: &OsString, out: S) -> Result<S::Ok, S::Error> {
    Name::from(name).serialize(out)
}

fn seconds<S: Serializer>(time: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(out)
}

fn microseconds<S: Serializer>(time: &Duration, out: S) -> Result<S::Ok, S::Error> {
    time.as_micros().serialize(out)
}

fn level<S: Serializer>(level: &Option<LevelFilter>, out: S) -> Result<S::Ok, S::Error> {
    level.map(|level| level.as_str().to_ascii_lowercase()).serialize(out)
}
