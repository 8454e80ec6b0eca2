//! The reports on a mount, its files and its mappings.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::command::CommandError;
use super::exec::{Executor, failed};
use super::report::{
    Errors, Feature, FileReport, GuardReport, Handles, Inodes, Kernel, MapReport, Mappings, Memory,
    OpenFileReport, ScratchReport, StatusReport, StickyAdvice, Timeouts, Watch,
};
use crate::flags::{MapMode, Sharing};
use crate::mapping::BackingFile;
use crate::range::ByteRange;
use crate::shown::Name;
use crate::sys;
use crate::tree::{Found, GuardCounts, ScratchCounts, WhyMapped};

impl Executor {
    /// The state of the mount.
    pub(super) fn status(&self) -> StatusReport {
        let context = &self.context;
        let counts = self.tree.counts();
        let mode = &context.mode;
        let timeouts = (context.timeouts)(self.tree.validity(), self.tree.drops_all_names());
        let [entry, attr, negative] = timeouts.map(|timeout| timeout.as_secs_f64());
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: context.started.elapsed().as_secs_f64(),
            source: context.source.clone(),
            mountpoint: context.mountpoint.clone(),
            access: context.view.access.to_string(),
            flags: mode.flags.to_string(),
            prot: mode.prot.to_string(),
            advice: mode.advice.to_string(),
            plane: mode.plane.to_string(),
            no_passthrough: self.tree.passthrough_closed(),
            rules: context.rules.clone(),
            log: Some((context.log.place)()),
            read_only: context.read_only,
            privileged: context.privileged,
            threads: context.threads,
            clone_fd: context.clone_fd,
            scratch: self.tree.scratch().map(scratch),
            timeouts: Timeouts { entry_s: entry, attr_s: attr, negative_s: negative },
            watch: self.watch(),
            kernel: self.kernel(),
            inodes: Inodes { known: counts.inodes, lookups: counts.lookups },
            handles: Handles { files: counts.files, directories: counts.directories },
            open_files: self.open_files(),
            mappings: Mappings {
                count: counts.mappings.count,
                limit: counts.mappings.limit,
                bytes: counts.mappings.bytes,
                evicted: counts.mappings.evicted,
            },
            requests: context.counters.requests(),
            errors: Errors {
                faults: counts.mappings.faults,
                failed_requests: context.counters.failed(),
            },
            memory: Memory {
                rss_bytes: sys::file::rss_bytes(),
                descriptors: sys::file::descriptors_in_use(),
                descriptor_limit: sys::file::descriptor_limit().0,
            },
        }
    }

    fn open_files(&self) -> Vec<OpenFileReport> {
        let open = self.tree.open_files();
        open.iter()
            .map(|inode| OpenFileReport {
                path: named(&inode.path),
                ino: inode.ino.0,
                handles: inode.handles,
                plane: String::from(plane(inode.why_mapped)),
                plane_reason: inode.why_mapped.map(|reason| reason.to_string()),
            })
            .collect()
    }

    fn watch(&self) -> Watch {
        let counts = self.tree.watch_counts();
        Watch {
            by: self.tree.watch_state().ok(),
            events: counts.events.load(Ordering::Relaxed),
            invalidations: counts.invalidations.load(Ordering::Relaxed),
            overflows: counts.overflows.load(Ordering::Relaxed),
        }
    }

    fn kernel(&self) -> Kernel {
        let mut kernel = self.context.kernel.get().cloned().unwrap_or_else(|| Kernel {
            protocol: self.protocol(),
            max_write: 0,
            features: Vec::new(),
        });
        kernel.features.extend(self.own_features());
        kernel.features.extend(self.features.lock().iter().cloned());
        kernel
    }

    /// The features that do not come from the FUSE protocol, and what is done without them.
    fn own_features(&self) -> Vec<Feature> {
        let feature = |name: &str, in_use: bool, without: &str| Feature {
            name: name.to_owned(),
            in_use,
            reason: (!in_use).then(|| without.to_owned()),
        };
        let (watched, how) = match self.tree.watch_state() {
            Ok(how) => (true, how),
            Err(reason) => (false, format!("{reason}: changes are seen when timeouts end")),
        };
        let closed = self.tree.passthrough_closed();
        let without = closed.as_deref().unwrap_or_default();
        let reason = format!("{without}: the daemon moves the bytes of every file");
        vec![
            Feature { name: String::from("watch"), in_use: watched, reason: Some(how) },
            feature("passthrough", closed.is_none(), &reason),
            feature(
                "file_handles",
                self.tree.uses_file_handles(),
                "needs CAP_DAC_READ_SEARCH and a source with file handles: files are found by \
                 directory and name",
            ),
            feature(
                "act_as_caller",
                self.context.privileged,
                "needs CAP_SETUID and CAP_SETGID: new files belong to the daemon's user",
            ),
            feature(
                "guarded_copy",
                sys::guard::GUARDED,
                "not on this architecture: writes are made by pwrite(2)",
            ),
            feature(
                "cachestat",
                self.tree.cache_stat_works(),
                "needs Linux 6.5: dirty pages are unknown, residency is known for what is mapped",
            ),
        ]
    }

    /// The state of one path.
    pub(super) fn file_report(&self, found: &Found) -> Result<FileReport, CommandError> {
        let mode = self.tree.mode_at(found);
        let page = sys::page_size() as u64;
        let mut report = FileReport {
            path: named(&found.path),
            ino: found.stat.ino,
            kind: kind(found.stat.kind()).to_owned(),
            size: found.stat.size,
            access: access(&mode).to_owned(),
            flags: mode.flags.to_string(),
            prot: mode.prot.to_string(),
            advice: mode.advice.to_string(),
            sticky: Vec::new(),
            plane: String::from("none"),
            plane_reason: None,
            handles: 0,
            mapped: false,
            mapped_bytes: 0,
            pages: found.stat.size.div_ceil(page),
            scratch_pages: None,
            base: None,
            resident: None,
            mount_resident: None,
            dirty: None,
            writeback: None,
            locked_bytes: 0,
            faults: 0,
        };
        if found.stat.kind() != libc::S_IFREG {
            report.plane_reason = Some(String::from("only regular files are mapped"));
            report.pages = 0;
            return Ok(report);
        }
        let why_mapped = self.tree.why_mapped(found);
        report.plane = String::from(plane(why_mapped));
        report.plane_reason = why_mapped.map(|reason| reason.to_string());
        // Files in use are described as they are, before asking takes them into use.
        report.handles = self.tree.handles(found);
        self.tree.in_use(found).iter().for_each(|file| describe_use(file, &mut report));
        let whole = ByteRange { start: 0, end: found.stat.size };
        let opening = |err| failed(&found.path, "opening it", err);
        let state = self.tree.page_state(found, whole).map_err(opening)?;
        (report.resident, report.dirty) = (state.resident, state.dirty);
        report.writeback = state.writeback;
        report.scratch_pages = self.tree.own_pages(found);
        report.base = self.tree.fate_of_base(found);
        if report.plane != "mapped" {
            return Ok(report);
        }
        match self.tree.mappable(found) {
            Ok(()) => {}
            Err(Errno::INVAL) if found.stat.size == 0 => {
                report.plane_reason = Some(String::from("an empty file has no mapping"));
            }
            Err(err) => {
                report.plane = String::from("read/write");
                report.plane_reason = Some(format!("mmap: {err}"));
            }
        }
        Ok(report)
    }

    /// Every mapping.
    pub(super) fn maps(&self) -> Vec<MapReport> {
        let files = self.tree.files_in_use();
        files.iter().filter_map(|(path, file)| map_report(path, file)).collect()
    }
}

fn map_report(path: &Path, file: &BackingFile) -> Option<MapReport> {
    let region = file.region()?;
    let mode = file.mode();
    let size = file.size().ok()?;
    let dev = file.key().dev;
    let start = region.address() as u64;
    let sticky = file.persistent_advice();
    let whole = sticky.iter().rfind(|known| known.range.start == 0 && known.range.end >= size);
    let advice = match whole {
        Some(known) => known.advice.to_string(),
        None if sticky.is_empty() => mode.advice.to_string(),
        None => String::from("mixed"), // `status PATH` has the ranges.
    };
    Some(MapReport {
        start,
        end: start + region.len() as u64,
        prot: permissions(&mode, region.is_writable()),
        offset: 0,
        dev: format!("{:02x}:{:02x}", rustix::fs::major(dev), rustix::fs::minor(dev)),
        ino: file.key().ino,
        path: named(path),
        access: access(&mode).to_owned(),
        flags: mode.flags.to_string(),
        advice,
        size,
        resident: file.resident(ByteRange { start: 0, end: size }),
    })
}

fn describe_use(file: &BackingFile, report: &mut FileReport) {
    report.locked_bytes += file.locked_bytes();
    report.faults += file.faults();
    if let Some(region) = file.region() {
        report.mapped = true;
        report.mapped_bytes += region.len() as u64;
    }
    for sticky in file.persistent_advice() {
        let range = [sticky.range.start, sticky.range.end];
        let known = StickyAdvice { range, advice: sticky.advice.to_string() };
        // Each layer of a file has what was said for the file.
        if !report.sticky.contains(&known) {
            report.sticky.push(known);
        }
    }
}

fn scratch(counts: ScratchCounts) -> ScratchReport {
    ScratchReport {
        layers: counts.layers.into_iter().map(Name::from).collect(),
        id: counts.id,
        adopted: counts.adopted,
        temporary: counts.temporary,
        in_memory: counts.in_memory,
        pages: counts.pages,
        partial_files: counts.partial_files,
        copied_files: counts.copied_files,
        new_files: counts.new_files,
        new_directories: counts.new_directories,
        whiteouts: counts.whiteouts,
        used_bytes: counts.used_bytes,
        left_bytes: counts.left_bytes,
        limit_bytes: counts.limit_bytes,
        guard: guard(counts.guard),
    }
}

fn guard(counts: GuardCounts) -> GuardReport {
    let told = |files: Vec<(PathBuf, String)>| {
        files.into_iter().map(|(path, reason)| (named(&path), reason)).collect()
    };
    GuardReport {
        cloned_files: counts.cloned_files,
        leased: counts.leased,
        unguarded_files: counts.unguarded_files,
        unguarded: told(counts.unguarded),
        rescued_files: counts.rescued_files,
        rescued_bytes: counts.rescued_bytes,
        waiting: counts.waiting,
        under_way: counts.under_way.iter().map(|(path, bytes)| (named(path), *bytes)).collect(),
        failed: told(counts.failed),
        compared: counts.compared,
        changed: told(counts.changed),
        lease_break_s: counts.lease_break.as_secs(),
    }
}

fn named(path: &Path) -> Name {
    Name::from(if path.as_os_str().is_empty() { Path::new(".") } else { path })
}

fn plane(why_mapped: Option<WhyMapped>) -> &'static str {
    match why_mapped {
        None => "passthrough",
        Some(WhyMapped::Merged | WhyMapped::Below) => "read/write",
        Some(_) => "mapped",
    }
}

fn access(mode: &MapMode) -> &'static str {
    match (mode.copies(), mode.writable()) {
        (true, _) => "copy",
        (false, true) => "write",
        (false, false) => "read",
    }
}

/// As in /proc/PID/maps.
fn permissions(mode: &MapMode, writable: bool) -> String {
    let sharing = if mode.flags.sharing == Sharing::Private { 'p' } else { 's' };
    let write = if writable { 'w' } else { '-' };
    let exec = if mode.prot.exec { 'x' } else { '-' };
    format!("r{write}{exec}{sharing}")
}

fn kind(bits: u32) -> &'static str {
    match bits {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "directory",
        libc::S_IFLNK => "symlink",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        _ => "unknown",
    }
}
