//! Holds the options of a mount against the disk and the table of mounts.
//!
//! Everything that can be known to fail is refused here, before anything is mounted. The state that
//! it finds can change before the mount is made; the mount then fails by itself.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use rustix::thread::{CapabilitySet, capabilities};

use super::mountinfo::{Answer, Mount};
use super::{
    ControlVisibility, MountConfig, MountOptions, MountTable, OpenRequests, RuleSet, ScratchConfig,
    SourceKind,
};
use crate::error::Failure;
use crate::flags::{MapMode, ViewOptions};
use crate::shown::Show;

#[cfg(test)]
mod tests;

/// The device that every FUSE daemon opens.
const DEVICE: &str = "/dev/fuse";
/// The configuration of fusermount3(1).
const FUSE_CONF: &str = "/etc/fuse.conf";

impl MountConfig {
    /// Checks a mount of `source` on `mountpoint`. Relative paths are relative to the current
    /// directory. Nothing is mounted.
    ///
    /// # Errors
    /// Kind `Usage` for options that do not fit each other and for mistakes in the rules file, kind
    /// `Failed` for whatever the disk, the table of mounts or the lack of privilege stands against.
    pub fn prepare(
        source: &Path,
        mountpoint: &Path,
        options: MountOptions,
    ) -> Result<MountConfig, Failure> {
        let mode =
            options.view.resolve().map_err(|error| Failure::usage(shown(&options), error))?;
        let rules_file = options.rules.as_deref().map(absolute).transpose()?;
        let rules_stay = rules_file.as_deref().is_some_and(|file| !can_be_read_again(file));
        let rules = match &rules_file {
            Some(file) => RuleSet::load(file, &options.view)?,
            None => RuleSet::default(),
        };
        let scratch = scratch(options.scratch, &mode, &rules)?;
        let source = Place::source(source)?;
        let mountpoint = Place::mountpoint(mountpoint)?;
        apart(&source, &mountpoint)?;
        if let Some(dir) = scratch.as_ref().and_then(|scratch| scratch.dir.as_deref()) {
            ScratchConfig::check_place(dir, &source.path, &mountpoint.path)?;
        }
        if scratch.is_some() && mountpoint.kind == SourceKind::File {
            let reason = "access=copy: a file is served on a directory, not on a file";
            return Err(Failure::usage(mountpoint.path.shown(), reason));
        }
        fuse_is_there(Path::new(DEVICE))?;

        let mut kernel = options.kernel;
        others_may_enter(kernel.allow_other || kernel.allow_root)?;
        let writable = mode.writable() || rules.rules().iter().any(|rule| rule.mode.writable());
        // Only `ro` makes the kernel refuse writing by itself: it would refuse the control file
        // too. Otherwise the daemon answers EROFS.
        kernel.read_only = kernel.flags.contains(MountFlags::RDONLY) || !writable;
        if options.settings.open == OpenRequests::None && !kernel.read_only {
            let reason = "files in it could be written: it goes with access=read or ro";
            return Err(Failure::usage("option `open=none`", reason));
        }
        if options.settings.open == OpenRequests::None {
            // The kernel then keeps no times of access, for which it would ask after every read.
            // The control file cannot be opened to be written anyway.
            kernel.flags.insert(MountFlags::RDONLY);
        }
        kernel.fsname = options.fsname.unwrap_or_else(|| source.path.clone().into());

        Ok(MountConfig {
            source: source.path,
            source_kind: source.kind,
            control: match mountpoint.kind {
                SourceKind::Directory => options.control,
                SourceKind::File => ControlVisibility::Off,
            },
            mountpoint: mountpoint.path,
            mountpoint_kind: mountpoint.kind,
            view: options.view,
            mode,
            rules_file,
            rules_stay,
            rules,
            scratch,
            settings: options.settings,
            log_file: options.log_file.as_deref().map(absolute).transpose()?,
            kernel,
        })
    }
}

/// The settings of the scratch, where there has to be one.
fn scratch(
    given: ScratchConfig,
    mode: &MapMode,
    rules: &RuleSet,
) -> Result<Option<ScratchConfig>, Failure> {
    let refuse =
        |option: &str, reason: &str| Err(Failure::usage(format!("option `{option}`"), reason));
    if !mode.copies() && !rules.any_copies() {
        return match given.first_given() {
            Some(option) => refuse(option, "it goes with access=copy, in the options or in a rule"),
            None => Ok(None),
        };
    }
    if given.rebase && given.dir.is_none() {
        return refuse("rebase", "it goes with scratch=");
    }
    let dir = given.dir.as_deref().map(absolute).transpose()?;
    if dir.as_deref().and_then(descriptor).is_some() {
        return refuse("scratch", "it names a descriptor of no directory that has a path");
    }
    Ok(Some(ScratchConfig { dir, ..given }))
}

/// Whether this process may mount by itself (CAP_SYS_ADMIN); otherwise fusermount3 does it.
pub fn may_mount() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// The view options as they are typed, for messages.
fn shown(options: &MountOptions) -> impl fmt::Display {
    let ViewOptions { access, flags, prot, advice, plane } = options.view;
    let words = [
        Some(format!("access={access}")),
        flags.map(|flags| format!("flags={flags}")),
        prot.map(|prot| format!("prot={prot}")),
        advice.map(|advice| format!("advice={advice}")),
        plane.map(|plane| format!("plane={plane}")),
    ];
    format!("options `{}`", words.into_iter().flatten().collect::<Vec<_>>().join(","))
}

/// An absolute path, since the daemon leaves the current directory. It names the file of a
/// descriptor (`/dev/fd/3`) by its own path where it has one, since the daemon keeps no descriptor
/// of its caller.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path).map_err(|error| Failure::failed(path.shown(), error))?;
    Ok(match descriptor(&path) {
        Some((link, rest)) => {
            file_of(&link).map_or(path, |file| file.components().chain(rest.components()).collect())
        }
        None => path,
    })
}

/// Whether a file will have its content another time as well, and for another process.
fn can_be_read_again(path: &Path) -> bool {
    descriptor(path).is_none() && fs::metadata(path).is_ok_and(|found| found.is_file())
}

/// The link of the descriptor that a path begins with, and the rest of the path.
fn descriptor(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let dirs = ["/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"];
    let below = dirs.iter().find_map(|dir| path.strip_prefix(dir).ok())?;
    let mut words = below.components();
    let number: u32 = words.next()?.as_os_str().to_str()?.parse().ok()?;
    Some((format!("/proc/self/fd/{number}").into(), words.collect()))
}

/// The path of the file that a descriptor is open on; `None` for a pipe, and for a file that was
/// removed or that this path does not lead to.
fn file_of(link: &Path) -> Option<PathBuf> {
    let path = fs::read_link(link).ok().filter(|path| path.is_absolute())?;
    let (opened, named) = (fs::metadata(link).ok()?, fs::metadata(&path).ok()?);
    ((opened.dev(), opened.ino()) == (named.dev(), named.ino())).then_some(path)
}

/// A path that was found.
struct Place {
    path: PathBuf,
    kind: SourceKind,
    /// Device and inode number.
    id: (u64, u64),
}

impl Place {
    fn source(path: &Path) -> Result<Place, Failure> {
        let failed = |error: io::Error| {
            Failure::failed(path.shown(), format_args!("the source cannot be served: {error}"))
        };
        let canonical = fs::canonicalize(path).map_err(failed)?;
        let metadata = fs::metadata(&canonical).map_err(failed)?;
        let place = Place::of(canonical, &metadata, "served")?;
        match place.kind {
            SourceKind::Directory => fs::read_dir(&place.path).map(drop),
            SourceKind::File => File::open(&place.path).map(drop),
        }
        .map_err(failed)?;
        Ok(place)
    }

    fn mountpoint(path: &Path) -> Result<Place, Failure> {
        let failed = |error: io::Error| {
            Failure::failed(path.shown(), format_args!("it cannot be mounted on: {error}"))
        };
        let canonical = fs::canonicalize(path).map_err(failed)?;
        let table = MountTable::read().map_err(failed)?;
        if let Some(mount) = table.at(&canonical) {
            not_taken(mount)?;
        }
        let metadata = fs::metadata(&canonical).map_err(failed)?;
        Place::of(canonical, &metadata, "mounted on")
    }

    fn of(path: PathBuf, metadata: &Metadata, used: &str) -> Result<Place, Failure> {
        let file_type = metadata.file_type();
        let kind = if file_type.is_dir() {
            SourceKind::Directory
        } else if file_type.is_file() {
            SourceKind::File
        } else {
            let reason = format_args!("only a directory or a regular file can be {used}");
            return Err(Failure::failed(path.shown(), reason));
        };
        Ok(Place { path, kind, id: (metadata.dev(), metadata.ino()) })
    }

    /// Whether `other` is this place or lies above it. Identity counts beside names, so that a
    /// bind mount of the other does not hide it.
    fn is_below(&self, other: &Place) -> bool {
        self.path.starts_with(&other.path)
            || self.path.ancestors().skip(1).any(|above| {
                fs::metadata(above).is_ok_and(|found| (found.dev(), found.ino()) == other.id)
            })
    }
}

/// Refuses a mount point that a FUSE mount in need of care already lies on. Mounts of mmapfs are
/// found without asking them more than whether their daemon is gone.
fn not_taken(mount: &Mount) -> Result<(), Failure> {
    if !mount.is_fuse() {
        return Ok(());
    }
    let shown = mount.mountpoint.shown();
    let fstype = &mount.fstype;
    let reason = match (mount.is_ours(), mount.answer()) {
        (true, Answer::Gone) => format!(
            "a mount of mmapfs whose daemon is gone lies on it: run `mmapfs umount --stale {shown}`"
        ),
        (true, _) => format!(
            "it is a mount point of mmapfs already (source {})",
            mount.source.to_string_lossy().escape_debug()
        ),
        (false, Answer::Gone) => {
            format!("a mount of {fstype} whose daemon is gone lies on it: run `umount -l {shown}`")
        }
        (false, Answer::Silent) => format!("the mount of {fstype} that lies on it does not answer"),
        (false, Answer::Alive | Answer::Refused(_)) => return Ok(()),
    };
    Err(Failure::failed(shown, reason))
}

/// Refuses places that do not fit each other, and a mount that would serve or hide itself.
fn apart(source: &Place, mountpoint: &Place) -> Result<(), Failure> {
    let refuse = |reason: fmt::Arguments<'_>| Err(Failure::failed(mountpoint.path.shown(), reason));
    let shown = source.path.shown();
    if source.id == mountpoint.id || source.path == mountpoint.path {
        return refuse(format_args!("it is the source itself"));
    }
    if source.kind == SourceKind::Directory && mountpoint.kind == SourceKind::File {
        return refuse(format_args!("it is a file: the directory {shown} needs a directory"));
    }
    if mountpoint.is_below(source) {
        return refuse(format_args!("it lies inside the source {shown}"));
    }
    if source.is_below(mountpoint) {
        return refuse(format_args!("the source {shown} lies inside it"));
    }
    Ok(())
}

fn fuse_is_there(device: &Path) -> Result<(), Failure> {
    let there = fs::metadata(device).is_ok_and(|found| found.file_type().is_char_device());
    if there {
        return Ok(());
    }
    let reason = "FUSE is not there: run `modprobe fuse`, or give the container the device";
    Err(Failure::failed(device.shown(), reason))
}

fn others_may_enter(wanted: bool) -> Result<(), Failure> {
    if !wanted || may_mount() || rustix::process::getuid().is_root() {
        return Ok(());
    }
    let conf = fs::read_to_string(FUSE_CONF).unwrap_or_default();
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        return Ok(());
    }
    let reason = format_args!("without root it needs the line `user_allow_other` in {FUSE_CONF}");
    Err(Failure::failed("option `allow_other`", reason))
}
