//! A volume with its control tree, without a mount.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::control_tree::ControlTree;
use super::exec::{Context, Executor, Log};
use super::router::Router;
use crate::config::{ControlVisibility, RuleSet};
use crate::error::Failure;
use crate::flags::ViewOptions;
use crate::shown::Name;
use crate::sys::cred::Caller;
use crate::volume::{Policy, Volume, VolumeOptions};

/// The name of the control directory.
pub(super) const NAME: &str = ".control";

pub(super) fn caller(pid: u32) -> Caller {
    Caller { uid: 0, gid: 0, pid }
}

pub(super) fn volume(source: &Path) -> Arc<Volume> {
    let mode = ViewOptions::default().resolve().unwrap();
    let options = VolumeOptions {
        source: source.to_owned(),
        only: None,
        root_is_file: false,
        reserved: Some(NAME.into()),
        policy: Policy { mode, rules: RuleSet::default() },
        max_mappings: 10,
        keeps_atime: true,
        keeps_attributes: true,
    };
    Arc::new(Volume::open_source(options).unwrap())
}

pub(super) fn control_tree(volume: Arc<Volume>, silent: bool) -> ControlTree {
    let view = ViewOptions::default();
    let context = Context {
        source: Name::from(Path::new("/source")),
        mountpoint: Name::from(Path::new("/mountpoint")),
        view,
        mode: view.resolve().unwrap(),
        rules: None,
        read_only: false,
        privileged: false,
        threads: 1,
        clone_fd: false,
        timeouts: Box::new(|_, _| [Duration::ZERO; 3]),
        started: Instant::now(),
        kernel: OnceLock::new(),
        counters: Arc::default(),
        log: Log { place: Box::new(String::new), set_level: None },
        reload: Box::new(|| Err(Failure::failed("rules", "there are none"))),
    };
    ControlTree::new((7, 8), silent, Arc::new(Executor::new(volume, context)))
}

pub(super) fn router(source: &Path, visibility: ControlVisibility) -> Router {
    let volume = volume(source);
    let control = control_tree(Arc::clone(&volume), false);
    Router::new(volume, control, NAME.into(), visibility)
}
