//! The tree that a mount serves: a volume, or a scratch over one, and the watch of its source.

use std::sync::Arc;

use rustix::mount::MountFlags;

use crate::config::{ControlVisibility, MountConfig, SourceKind};
use crate::error::Failure;
use crate::layers;
use crate::layers::scratch::{Places, Scratch};
use crate::shown::Show;
use crate::sys;
use crate::tree::Managed;
use crate::volume::{ChangeSink, Policy, Volume, VolumeOptions};
use crate::watch::{Changes, Watch, Watching};

/// The volume that is watched from the start, since it can change by itself, and the receiver of
/// its changes.
pub(super) struct Watched {
    watch: Watch,
    volume: Arc<Volume>,
    sink: Arc<dyn ChangeSink>,
}

impl Watched {
    /// Passes changes on, now that the volume is connected to the kernel.
    pub(super) fn start(self, config: &MountConfig) -> Result<Watching, Failure> {
        self.watch.start(self.volume, self.sink, &config.source, &config.mountpoint)
    }
}

/// The tree that is served, with its watch.
pub(super) type Opened = (Arc<dyn Managed>, Option<Watched>);

/// Opens the source, and the scratch over it where there is one.
pub(super) fn open(config: &MountConfig, process: Changes) -> Result<Opened, Failure> {
    let options = volume_options(config);
    let Some(scratch) = &config.scratch else {
        let volume = Volume::open_source(options)
            .map_err(|err| Failure::failed(config.source.shown(), format!("opening it: {err}")))?;
        let volume = Arc::new(volume);
        // Watched before the kernel is told anything.
        let watch = Watch::of(&volume, config.settings.watch, process)?;
        let tree = Arc::clone(&volume);
        let watched =
            watch.map(|watch| Watched { watch, volume: Arc::clone(&volume), sink: volume });
        return Ok((tree, watched));
    };
    let places = Places::of_process();
    let (share, base_changed) = (scratch.share, scratch.base_changed.unwrap_or_default());
    let scratch = Scratch::open(scratch, &options.source, &config.mountpoint, &places)?;
    let overlay = Arc::new(layers::assemble(options, scratch, share, base_changed)?);
    let base = overlay.base();
    let watch = Watch::of(&base, config.settings.watch, process)?;
    if let Err(err) = overlay.start_guard() {
        log::warn!("guarding the base: {err}: changes of it are refused when they are seen");
    }
    overlay.guard_kept();
    if let Err(err) = overlay.start_comparing() {
        log::warn!("comparing the base with what it was: {err}");
    }
    let sink = Arc::clone(&overlay);
    Ok((overlay, watch.map(|watch| Watched { watch, volume: base, sink })))
}

fn volume_options(config: &MountConfig) -> VolumeOptions {
    let file = config.source_kind == SourceKind::File;
    let directory = if file { config.source.parent() } else { None };
    let options = VolumeOptions {
        source: directory.unwrap_or(&config.source).to_owned(),
        only: config.source.file_name().filter(|_| file).map(Into::into),
        root_is_file: file && config.mountpoint_kind == SourceKind::File,
        reserved: has_control(config).then(|| config.settings.control_name.clone()),
        policy: Policy { mode: config.mode, rules: config.rules.clone() },
        // Half of what the kernel allows: advice on a part of a mapping splits it.
        max_mappings: config
            .settings
            .max_mappings
            .unwrap_or_else(|| sys::file::max_map_count() / 2),
        keeps_atime: !config.kernel.flags.contains(MountFlags::NOATIME),
        keeps_attributes: config.settings.attr_timeout.is_none_or(|timeout| !timeout.is_zero()),
    };
    if let Some(name) = options.reserved.as_ref().filter(|_| !file)
        && config.source.join(name).symlink_metadata().is_ok()
    {
        log::warn!(
            "{}: hidden behind the control directory; -o control_name= gives that another name",
            config.source.join(name).shown(),
        );
    }
    options
}

fn has_control(config: &MountConfig) -> bool {
    config.control != ControlVisibility::Off
}
