//! Carries commands out on a tree.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::command::{Command, CommandError, ErrorKind, FlushMode, Line, help};
use super::counters::Counters;
use super::reach;
use super::report::{
    AdviseReport, ChangeReport, DiffReport, Feature, FlushReport, Kernel, LeftReport, LockReport,
    ReloadReport, Report, VersionReport,
};
use crate::advice::{Advice, Effect};
use crate::error::Failure;
use crate::flags::{MapMode, ViewOptions};
use crate::range::{ByteRange, RangeSpec};
use crate::shown::Name;
use crate::sys;
use crate::sys::advise::SyncMode;
use crate::tree::{ChangeQuery, Found, Managed, NotAdvised, Validity};

/// Tells where the log of the daemon goes, which may change.
pub type LogPlace = Box<dyn Fn() -> String + Send + Sync>;

/// The log of the process that serves a mount.
pub struct Log {
    /// See [`LogPlace`].
    pub place: LogPlace,
    /// Sets its level; `None` where that is no matter of the mount.
    pub set_level: Option<fn(log::LevelFilter)>,
}

/// Reads the rules file again and puts it in force.
pub type Reload = Box<dyn Fn() -> Result<ReloadReport, Failure> + Send + Sync>;

/// The timeouts for names, attributes and missing names, by what is trusted, and whether the kernel
/// can drop every name.
pub type TimeoutsOf = Box<dyn Fn(Validity, bool) -> [Duration; 3] + Send + Sync>;

/// The facts that do not change while a mount lives, for reports.
pub struct Context {
    /// The directory or file that is served.
    pub source: Name,
    /// Where it is served.
    pub mountpoint: Name,
    /// The view options that were asked for.
    pub view: ViewOptions,
    /// The mode that `view` resolves to.
    pub mode: MapMode,
    /// The rules file.
    pub rules: Option<Name>,
    /// No file can be written.
    pub read_only: bool,
    /// The daemon may mount by itself (CAP_SYS_ADMIN).
    pub privileged: bool,
    /// Threads that answer requests.
    pub threads: u64,
    /// Each has its own descriptor of /dev/fuse.
    pub clone_fd: bool,
    /// See [`TimeoutsOf`].
    pub timeouts: TimeoutsOf,
    /// When the mount was made.
    pub started: Instant,
    /// The parameters agreed on with the kernel, once they are.
    pub kernel: OnceLock<Kernel>,
    /// Requests so far.
    pub counters: Arc<Counters>,
    /// See [`Log`].
    pub log: Log,
    /// See [`Reload`].
    pub reload: Reload,
}

/// The commands of one mount.
pub struct Executor {
    pub(super) tree: Arc<dyn Managed>,
    pub(super) context: Context,
    /// Features that became known after the session had begun.
    pub(super) features: Mutex<Vec<Feature>>,
}

impl Executor {
    /// Commands on `tree`.
    pub fn new(tree: Arc<dyn Managed>, context: Context) -> Executor {
        Executor { tree, context, features: Mutex::default() }
    }

    /// Notes something of the mount that is in use, or not.
    pub fn add_feature(&self, feature: Feature) {
        self.features.lock().push(feature);
    }

    /// Notes what was agreed on with the kernel.
    pub fn session_started(&self, kernel: Kernel) {
        if self.context.kernel.set(kernel).is_err() {
            log::error!("a second kernel session was started on one mount");
        }
    }

    /// Parses a line, carries it out and gives the answer, with its errno if it failed.
    pub fn answer(&self, line: &[u8]) -> (String, Result<(), Errno>) {
        let json = Line::wants_json(line);
        let result = Line::parse(line).and_then(|line| self.run(&line.command));
        let outcome = match &result {
            Ok(_) => Ok(()),
            Err(error) => Err(Errno::from_raw_os_error(error.errno())),
        };
        let report = result.unwrap_or_else(|error| Report::from(&error));
        log::debug!("control {} -> {outcome:?}", String::from_utf8_lossy(line));
        let text = if json {
            report.to_json().unwrap_or_else(|err| format!("{{\"error\": \"{err}\"}}"))
        } else {
            report.to_string()
        };
        (text, outcome)
    }

    /// Carries a command out.
    ///
    /// # Errors
    /// With the errno that write(2) on the control file fails with.
    pub fn run(&self, command: &Command) -> Result<Report, CommandError> {
        match command {
            Command::Advise { advice, destroy, range, path } => {
                self.advise(*advice, *destroy, range, path)
            }
            Command::Flush { mode, range, path } => self.flush(*mode, range, path),
            Command::Lock { range, path } => self.lock(range, path, true),
            Command::Unlock { range, path } => self.lock(range, path, false),
            Command::Status { path: Some(path) } => {
                Ok(Report::File(Box::new(self.file_report(&self.find(path)?)?)))
            }
            Command::Status { path: None } => Ok(Report::Status(Box::new(self.status()))),
            Command::Diff { ranges, expand, path } => {
                self.diff(*ranges, *expand, path.as_deref()).map(Report::Diff)
            }
            Command::Maps => Ok(Report::Maps(self.maps())),
            Command::Reload => (self.context.reload)()
                .map(Report::Reload)
                .map_err(|failure| CommandError::new(ErrorKind::Argument, failure)),
            Command::Help { verb } => Ok(Report::Help(help::text(*verb))),
            Command::Version => Ok(Report::Version(VersionReport {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                protocol: self.protocol(),
            })),
            Command::Log { level } => {
                let set = self.context.log.set_level.ok_or_else(|| {
                    let why = "the program that serves the mount sets the level of its own log";
                    CommandError::new(ErrorKind::NotSupported, why)
                })?;
                set(*level);
                Ok(Report::Log { level: level.as_str().to_ascii_lowercase() })
            }
        }
    }

    pub(super) fn protocol(&self) -> String {
        self.context.kernel.get().map_or_else(|| String::from("unknown"), |k| k.protocol.clone())
    }

    fn find(&self, path: &Path) -> Result<Found, CommandError> {
        self.tree.find(path).map_err(|err| failed(path, "finding it", err))
    }

    /// Advice that stays and locks keep a file open. They may take a quarter of the descriptors:
    /// the rest is for what callers open.
    fn check_room(&self, path: &Path) -> Result<(), CommandError> {
        let limit = sys::file::descriptor_limit().0 / 4;
        if self.tree.held_files() < limit {
            return Ok(());
        }
        let why = format!(
            "{limit} files are held open by advice or locks already: say `advise normal` or \
             `unlock` for some of them"
        );
        Err(CommandError::new(ErrorKind::Io(Errno::MFILE.raw_os_error()), why).about(path))
    }

    fn advise(
        &self,
        advice: Advice,
        destroy: bool,
        range: &RangeSpec,
        path: &Path,
    ) -> Result<Report, CommandError> {
        if advice.effect() == Effect::Forbidden {
            let why = format!("{advice}: refused always: it breaks the daemon's own memory");
            return Err(CommandError::new(ErrorKind::NotAllowed, why));
        }
        let found = self.find(path)?;
        if advice.is_persistent() {
            self.check_room(path)?;
        }
        let range = resolve(&found, range, path)?;
        let reverts = destroy && self.tree.mode_at(&found).copies();
        let (reach, why) = reach::of(advice, self.tree.why_mapped(&found), reverts);
        let effect = self.tree.advise(&found, range, advice, destroy).map_err(|why| {
            match (&why, self.tree.fate_of_base(&found)) {
                (NotAdvised::Failed(Errno::IO), Some(fate)) => {
                    let kind = ErrorKind::Io(Errno::IO.raw_os_error());
                    CommandError::new(kind, format!("{advice}: {fate}")).about(path)
                }
                _ => not_advised(path, advice, why),
            }
        })?;
        let left = match effect.resident_after {
            Some(pages @ 1..) if advice == Advice::PageOut => {
                let state = self.tree.page_state(&found, effect.range);
                let state = state.map_err(|err| failed(path, "counting its pages", err))?;
                let told = state.dirty.unwrap_or(0) + state.writeback.unwrap_or(0);
                let in_use = pages.saturating_sub(told);
                Some(LeftReport { dirty: state.dirty, writeback: state.writeback, in_use })
            }
            _ => None,
        };
        let page = sys::page_size() as u64;
        Ok(Report::Advise(AdviseReport {
            path: Name::from(&found.path),
            advice: advice.name().to_owned(),
            range: [effect.range.start, effect.range.end],
            pages: effect.range.len().div_ceil(page),
            resident_before: effect.resident_before,
            resident_after: effect.resident_after,
            mount_resident_before: None,
            mount_resident_after: None,
            effect: reach.word().to_owned(),
            effect_reason: why,
            left,
            elapsed_us: microseconds(effect.elapsed),
        }))
    }

    fn flush(
        &self,
        mode: FlushMode,
        range: &RangeSpec,
        path: &Path,
    ) -> Result<Report, CommandError> {
        let found = self.find(path)?;
        let range = resolve(&found, range, path)?;
        let how = match mode {
            FlushMode::Sync => SyncMode::Sync,
            FlushMode::Async => SyncMode::Async,
            FlushMode::Invalidate => SyncMode::Invalidate,
        };
        let effect =
            self.tree.flush(&found, range, how).map_err(|err| failed(path, "flush", err))?;
        Ok(Report::Flush(FlushReport {
            path: Name::from(&found.path),
            mode: mode.name().to_owned(),
            range: [effect.range.start, effect.range.end],
            dirty_before: effect.dirty_before,
            dirty_after: effect.dirty_after,
            elapsed_us: microseconds(effect.elapsed),
        }))
    }

    fn diff(
        &self,
        ranges: bool,
        expand: bool,
        path: Option<&Path>,
    ) -> Result<DiffReport, CommandError> {
        // The root is the whole tree.
        let asked = path.filter(|path| !path.as_os_str().is_empty());
        let paths = asked.map(Path::to_owned).into_iter().collect();
        let query = ChangeQuery { paths, ranges, expand };
        let about = asked.unwrap_or(Path::new(""));
        let changes = self.tree.changes(&query).map_err(|err| match err {
            Errno::OPNOTSUPP => {
                let why = "diff: the mount is no scratch (access=copy) and has no changes";
                CommandError::new(ErrorKind::NotSupported, why)
            }
            err => failed(about, "diff", err),
        })?;
        let changes = changes.iter().map(|change| ChangeReport::of(change, ranges)).collect();
        Ok(DiffReport { path: Name::from(about), changes })
    }

    fn lock(&self, range: &RangeSpec, path: &Path, lock: bool) -> Result<Report, CommandError> {
        let found = self.find(path)?;
        if lock {
            self.check_room(path)?;
        }
        let range = resolve(&found, range, path)?;
        let started = Instant::now();
        let verb = if lock { "lock" } else { "unlock" };
        let range =
            self.tree.set_locked(&found, range, lock).map_err(|err| failed(path, verb, err))?;
        Ok(Report::Lock(LockReport {
            path: Name::from(&found.path),
            locked: lock,
            range: [range.start, range.end],
            elapsed_us: microseconds(started.elapsed()),
        }))
    }
}

fn resolve(found: &Found, range: &RangeSpec, path: &Path) -> Result<ByteRange, CommandError> {
    match found.stat.kind() {
        libc::S_IFREG => {}
        libc::S_IFDIR => return Err(failed(path, "opening it", Errno::ISDIR)),
        _ => return Err(failed(path, "opening it", Errno::INVAL)),
    }
    range
        .resolve(found.stat.size)
        .map_err(|err| CommandError::new(ErrorKind::OutOfRange, err).about(path))
}

fn not_advised(path: &Path, advice: Advice, why: NotAdvised) -> CommandError {
    match why {
        NotAdvised::Destroys => CommandError::new(
            ErrorKind::NotAllowed,
            format!("{advice} destroys the bytes of the backing file"),
        )
        .about(path)
        .needing_destroy(advice),
        NotAdvised::AtStake(pages) => {
            let those = if pages == 1 { "page that was" } else { "pages that were" };
            let what = format!("{advice} throws away {pages} {those} written in the scratch");
            CommandError::new(ErrorKind::NotAllowed, what).about(path).needing_destroy(advice)
        }
        NotAdvised::Failed(Errno::OPNOTSUPP) => CommandError::new(
            ErrorKind::NotSupported,
            format!("{advice}: this kernel does not take it for a shared mapping of a file"),
        )
        .about(path),
        NotAdvised::Failed(err) => failed(path, advice.name(), err),
    }
}

/// A system call that failed on a path.
pub(super) fn failed(path: &Path, what: &str, err: Errno) -> CommandError {
    let kind = match err {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::PERM => ErrorKind::NotAllowed,
        Errno::OPNOTSUPP => ErrorKind::NotSupported,
        err => ErrorKind::Io(err.raw_os_error()),
    };
    CommandError::new(kind, format!("{what}: {err}")).about(path)
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
