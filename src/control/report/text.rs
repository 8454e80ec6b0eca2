//! Reports as text for people. Every report ends with a newline, and no name or reason from outside
//! can break its line.

use std::fmt::{self, Display, Formatter};

use super::{
    AdviseReport, FileReport, FlushReport, LockReport, MapReport, ReloadReport, Report,
    ScratchReport, StatusReport, VersionReport,
};
use crate::control::command::PathWord;
use crate::shown::{Clean, Name};
use crate::units::{format_size, human_size};

/// The width of the names in the two status reports.
const NAME_WIDTH: usize = 10;

/// Number of open files that are listed by name.
const SHOWN_FILES: usize = 20;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Report::Advise(report) => report.fmt(f),
            Report::Flush(report) => report.fmt(f),
            Report::Status(report) => report.fmt(f),
            Report::File(report) => report.fmt(f),
            Report::Diff(report) => report.fmt(f),
            Report::Maps(maps) => maps.iter().try_for_each(|map| map.fmt(f)),
            Report::Lock(report) => report.fmt(f),
            Report::Reload(report) => report.fmt(f),
            Report::Help(text) => f.write_str(text),
            Report::Version(report) => report.fmt(f),
            Report::Log { level } => writeln!(f, "log level {level}"),
            Report::Error(report) => writeln!(f, "error: {}", Clean(&report.error)),
        }
    }
}

impl Display for AdviseReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let AdviseReport { path, advice, range, pages, .. } = self;
        write!(
            f,
            "{advice} {} of {}: {}, resident {} before, {} after",
            Range(range),
            InMount(path),
            Count(*pages, "page"),
            Known(self.resident_before),
            Known(self.resident_after),
        )?;
        if let (Some(before), Some(after)) = (self.mount_resident_before, self.mount_resident_after)
            && (before, after) != (0, 0)
        {
            write!(f, ", in the cache of the mount {before} before, {after} after")?;
        }
        write!(f, ", in {}", Elapsed(self.elapsed_us))?;
        if !self.effect.is_empty() {
            write!(f, ", effect: {}", self.effect)?;
        }
        if let Some(reason) = &self.effect_reason {
            write!(f, ": {}", Clean(reason))?;
        }
        if let Some(left) = &self.left {
            let (dirty, writeback) = (Known(left.dirty), Known(left.writeback));
            let in_use = left.in_use;
            write!(f, "; left: {dirty} dirty, {writeback} in writeback, {in_use} in use")?;
        }
        f.write_str("\n")
    }
}

impl Display for FlushReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let FlushReport { path, mode, range, .. } = self;
        writeln!(
            f,
            "flush {mode} {} of {}: dirty pages {} before, {} after, in {}",
            Range(range),
            InMount(path),
            Known(self.dirty_before),
            Known(self.dirty_after),
            Elapsed(self.elapsed_us)
        )
    }
}

impl Display for LockReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let done = if self.locked { "locked" } else { "unlocked" };
        let (range, path) = (Range(&self.range), InMount(&self.path));
        writeln!(f, "{done} {range} of {path} in {}", Elapsed(self.elapsed_us))
    }
}

impl Display for ReloadReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) if self.kept => writeln!(
                f,
                "{} kept as read at mount: {path} is a pipe or a descriptor, which is read once",
                Count(self.rules, "rule")
            ),
            Some(path) => writeln!(f, "{} from {path}", Count(self.rules, "rule")),
            None => writeln!(f, "no rules: the mount has no rules file"),
        }
    }
}

impl Display for VersionReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "mmapfs {}, FUSE protocol {}", self.version, self.protocol)
    }
}

impl Display for MapReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let place = format!(
            "{:x}-{:x} {} {:08x} {} {}",
            self.start, self.end, self.prot, self.offset, self.dev, self.ino
        );
        writeln!(
            f,
            "{place:<72} {} access={} flags={} advice={} resident={}",
            InMount(&self.path),
            self.access,
            self.flags,
            self.advice,
            Known(self.resident)
        )
    }
}

impl Display for StatusReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        row(f, "version", format_args!("{} (pid {})", self.version, self.pid))?;
        row(f, "source", &self.source)?;
        let how = if self.read_only { "read-only" } else { "writable" };
        let since = Uptime(self.uptime_s);
        row(f, "mount", format_args!("{} ({how}, for {since})", self.mountpoint))?;
        row(f, "view", View(&self.access, &self.flags, &self.prot, &self.advice))?;
        match self.no_passthrough.as_ref().filter(|_| self.plane == "passthrough") {
            Some(why) => {
                let why = Clean(why);
                row(f, "plane", format_args!("passthrough, which cannot be had: {why}"))?;
            }
            None => row(f, "plane", &self.plane)?,
        }
        match &self.rules {
            Some(rules) => row(f, "rules", rules)?,
            None => row(f, "rules", "none")?,
        }
        if let Some(log) = &self.log {
            row(f, "log", log)?;
        }
        let clone = if self.clone_fd { "a descriptor each" } else { "one descriptor" };
        let privileged = if self.privileged { "yes" } else { "no" };
        let threads = self.threads;
        row(f, "daemon", format_args!("privileged {privileged}, threads {threads}, {clone}"))?;
        let memory = &self.memory;
        let rss = human_size(memory.rss_bytes);
        let (open, limit) = (memory.descriptors, memory.descriptor_limit);
        row(f, "memory", format_args!("{rss} resident, descriptors {open} of {limit}"))?;
        if let Some(scratch) = &self.scratch {
            scratch.rows(f)?;
        }
        let time = &self.timeouts;
        let (entry, attr, negative) = (time.entry_s, time.attr_s, time.negative_s);
        row(f, "timeouts", format_args!("entry {entry} s, attr {attr} s, negative {negative} s"))?;
        let watch = &self.watch;
        let (events, sent, lost) = (watch.events, watch.invalidations, watch.overflows);
        let by = watch.by.as_deref().unwrap_or("off");
        let counts = format_args!("{events} changes, {sent} invalidations, {lost} overflows");
        row(f, "watch", format_args!("{by}: {counts}"))?;
        self.kernel_rows(f)?;
        self.count_rows(f)
    }
}

impl ScratchReport {
    fn rows(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ScratchReport { id, pages, partial_files, copied_files, whiteouts, .. } = self;
        let place = if self.in_memory { "in memory" } else { "on disk" };
        let end = if self.temporary { "gone with the mount" } else { "kept" };
        let begun = if self.adopted { ", adopted from overlayfs" } else { "" };
        row(f, "scratch", format_args!("{id}, {place}, {end}{begun}"))?;
        for (index, layer) in self.layers.iter().enumerate() {
            let name = if index == 0 { "layers" } else { "" };
            let what = if index + 1 == self.layers.len() { "base" } else { "written" };
            row(f, name, format_args!("{layer} ({what})"))?;
        }
        row(
            f,
            "written",
            format_args!(
                "{} of {} in part, {}, {}",
                Count(*pages, "page"),
                Count(*partial_files, "file"),
                Count(*copied_files, "copied file"),
                Count(*whiteouts, "whiteout"),
            ),
        )?;
        let directories = match self.new_directories {
            1 => String::from("1 new directory"),
            number => format!("{number} new directories"),
        };
        row(f, "made", format_args!("{}, {directories}", Count(self.new_files, "new file")))?;
        let (used, left) = (human_size(self.used_bytes), human_size(self.left_bytes));
        match self.limit_bytes {
            Some(limit) => {
                let limit = human_size(limit);
                row(f, "space", format_args!("{used} used, {left} left, at most {limit}"))?;
            }
            None => row(f, "space", format_args!("{used} used, {left} left"))?,
        }
        self.guard.rows(f)
    }
}

impl StatusReport {
    fn kernel_rows(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (protocol, max_write) = (&self.kernel.protocol, human_size(self.kernel.max_write));
        row(f, "kernel", format_args!("FUSE protocol {protocol}, requests up to {max_write}"))?;
        for feature in &self.kernel.features {
            let name = &feature.name;
            match (&feature.reason, feature.in_use) {
                (Some(how), true) => row(f, "", format_args!("{name}: in use: {}", Clean(how)))?,
                (None, true) => row(f, "", format_args!("{name}: in use"))?,
                (Some(reason), false) => {
                    row(f, "", format_args!("{name}: not in use: {}", Clean(reason)))?
                }
                (None, false) => row(f, "", format_args!("{name}: not in use"))?,
            }
        }
        Ok(())
    }

    fn count_rows(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (known, lookups) = (self.inodes.known, self.inodes.lookups);
        row(f, "inodes", format_args!("{known} known, {lookups} lookups"))?;
        let (files, directories) = (self.handles.files, self.handles.directories);
        row(f, "open", format_args!("files {files}, directories {directories}"))?;
        for open in self.open_files.iter().take(SHOWN_FILES) {
            let reason = open.plane_reason.as_deref().map(|reason| format!(": {}", Clean(reason)));
            let (reason, path, plane) =
                (reason.unwrap_or_default(), InMount(&open.path), &open.plane);
            row(f, "", format_args!("{path}: {} open, {plane}{reason}", open.handles))?;
        }
        if let Some(more @ 1..) = self.open_files.len().checked_sub(SHOWN_FILES) {
            row(f, "", format_args!("and {more} more, which --json lists"))?;
        }
        let maps = &self.mappings;
        let bytes = human_size(maps.bytes);
        let (count, limit, evicted) = (maps.count, maps.limit, maps.evicted);
        row(f, "mappings", format_args!("{count} of {limit}, {bytes}, {evicted} evicted"))?;
        let total: u64 = self.requests.values().fold(0, |sum, count| sum.saturating_add(*count));
        let (faults, failed) = (self.errors.faults, self.errors.failed_requests);
        row(f, "requests", format_args!("{total}, {failed} failed"))?;
        for (operation, count) in &self.requests {
            row(f, "", format_args!("{operation} {count}"))?;
        }
        row(f, "faults", faults)
    }
}

impl Display for FileReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        row(f, "path", InMount(&self.path))?;
        row(f, "kind", format_args!("{}, inode {}", self.kind, self.ino))?;
        row(f, "size", format_args!("{} ({} bytes)", human_size(self.size), self.size))?;
        row(f, "view", View(&self.access, &self.flags, &self.prot, &self.advice))?;
        for sticky in &self.sticky {
            row(f, "", format_args!("advice {} for {}", sticky.advice, Range(&sticky.range)))?;
        }
        match &self.plane_reason {
            Some(reason) => row(f, "plane", format_args!("{}: {}", self.plane, Clean(reason)))?,
            None => row(f, "plane", &self.plane)?,
        }
        row(f, "handles", self.handles)?;
        match self.mapped {
            true => {
                row(f, "mapped", format_args!("{} by the daemon", human_size(self.mapped_bytes)))?
            }
            false => row(f, "mapped", "not by the daemon")?,
        }
        row(f, "pages", self.pages)?;
        if self.scratch_pages.is_some() {
            row(f, "scratch", Share(self.scratch_pages, self.pages))?;
        }
        if let Some(fate) = &self.base {
            row(f, "base", Clean(fate))?;
        }
        row(f, "resident", Share(self.resident, self.pages))?;
        if self.mount_resident.is_some() {
            let share = Share(self.mount_resident, self.pages);
            row(f, "", format_args!("{share} in the cache of the mount"))?;
        }
        row(f, "dirty", Share(self.dirty, self.pages))?;
        row(f, "writeback", Share(self.writeback, self.pages))?;
        row(f, "locked", human_size(self.locked_bytes))?;
        row(f, "faults", self.faults)
    }
}

/// One line of a status report; a row without a name continues the row above.
pub(super) fn row(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{name:NAME_WIDTH$} {value}")
}

/// A number of things, in the singular or the plural.
struct Count(u64, &'static str);

impl Display for Count {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Count(number, thing) = self;
        let ending = if *number == 1 { "" } else { "s" };
        write!(f, "{number} {thing}{ending}")
    }
}

/// A number, or `unknown`.
struct Known(Option<u64>);

impl Display for Known {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "{number}"),
            None => f.write_str("unknown"),
        }
    }
}

/// A number of pages out of all pages: `64 (25%)`.
struct Share(Option<u64>, u64);

impl Display for Share {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Share(part, whole) = *self;
        let percent = part.and_then(|part| (u128::from(part) * 100).checked_div(whole.into()));
        match percent {
            Some(percent) => write!(f, "{} ({percent}%)", Known(part)),
            None => Known(part).fmt(f),
        }
    }
}

/// A half open range with its exact numbers.
struct Range<'a>(&'a [u64; 2]);

impl Display for Range<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [start, end] = *self.0;
        write!(f, "{}-{}", format_size(start), format_size(end))
    }
}

/// The four words of a view.
struct View<'a>(&'a str, &'a str, &'a str, &'a str);

impl Display for View<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let View(access, flags, prot, advice) = self;
        write!(f, "access={access} flags={flags} prot={prot} advice={advice}")
    }
}

/// A path within the mount, as every verb takes it.
pub(super) struct InMount<'a>(pub(super) &'a Name);

impl Display for InMount<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        PathWord(self.0.as_path()).fmt(f)
    }
}

/// A duration of microseconds in its fitting unit.
struct Elapsed(u64);

impl Display for Elapsed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let us = self.0;
        match us {
            0..1_000 => write!(f, "{us} us"),
            1_000..1_000_000 => write!(f, "{}.{} ms", us / 1_000, us / 100 % 10),
            _ => write!(f, "{}.{:02} s", us / 1_000_000, us / 10_000 % 100),
        }
    }
}

/// A long duration in seconds, in its two largest units.
struct Uptime(f64);

impl Display for Uptime {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // A cast from a float saturates, and takes NaN as zero.
        let seconds = self.0 as u64;
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
        match seconds {
            0..60 => write!(f, "{seconds} s"),
            60..3600 => write!(f, "{minutes} min {} s", seconds % 60),
            3600..86_400 => write!(f, "{hours} h {} min", minutes % 60),
            _ => write!(f, "{days} d {} h", hours % 24),
        }
    }
}
