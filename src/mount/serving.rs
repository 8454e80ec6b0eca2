//! Serving a mount in threads of this process: open the source, mount, answer, until it is
//! unmounted.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::source;
use crate::config::rules::RuleSet;
use crate::config::{MountConfig, MountTable, OpenRequests};
use crate::control::control_tree::ControlTree;
use crate::control::counters::Counters;
use crate::control::exec::{Context, Executor, Log, Reload};
use crate::control::report::{Feature, ReloadReport};
use crate::control::router::Router;
use crate::error::Failure;
use crate::flags::PlaneChoice;
use crate::fuse::mount::{Mounted, mount};
use crate::fuse::{
    Adapter, AdapterOptions, BusyPoll, Connection, Handlers, KernelCaches, Session, Timeouts,
};
use crate::shown::{Name, Show};
use crate::sys;
use crate::tree::{Managed, Validity};
use crate::watch::{Changes, Watching};

/// Readahead of the kernel for a sequential reader, in KiB: one request of the largest size.
const READAHEAD_KIB: u32 = 1024;

/// The capability to mount, CAP_SYS_ADMIN.
const CAP_SYS_ADMIN: u32 = 21;

/// Called when the mount is made and no request is answered yet; gives features to report.
pub(crate) type OnMounted<'a> = Box<dyn FnOnce(&Mounted) -> Vec<Feature> + 'a>;

/// The process that serves a mount, as far as serving depends on it.
pub(crate) struct Host<'a> {
    /// The log of the process.
    pub(crate) log: Log,
    /// The changes of the source that the process makes.
    pub(crate) changes: Changes,
    /// See [`OnMounted`].
    pub(crate) on_mounted: OnMounted<'a>,
}

impl Host<'_> {
    /// A program that has other things to do: it keeps its log, its rights and its signals.
    pub(crate) fn other_program() -> Host<'static> {
        Host {
            log: Log {
                place: Box::new(|| String::from("the log of the program that serves the mount")),
                set_level: None,
            },
            changes: Changes::OfOthersToo,
            on_mounted: Box::new(|_| Vec::new()),
        }
    }
}

/// A mount that is being served.
pub(crate) struct Serving {
    /// The mount itself.
    pub(crate) mounted: Arc<Mutex<Mounted>>,
    /// The control verbs of the mount.
    pub(crate) executor: Arc<Executor>,
    /// The connection to the kernel.
    pub(crate) connection: Connection,
    /// The end of the serving.
    pub(crate) end: Arc<End>,
}

/// The end of a mount, for those who wait for it.
#[derive(Default)]
pub(crate) struct End {
    outcome: Mutex<Option<Result<(), Failure>>>,
    reached: Condvar,
}

impl End {
    fn reach(&self, outcome: Result<(), Failure>) {
        *self.outcome.lock() = Some(outcome);
        self.reached.notify_all();
    }

    /// Waits until nothing is served any more and everything is closed.
    pub(crate) fn wait(&self) -> Result<(), Failure> {
        let mut outcome = self.outcome.lock();
        loop {
            match &*outcome {
                Some(ended) => return ended.clone(),
                None => self.reached.wait(&mut outcome),
            }
        }
    }

    /// As [`End::wait`], for at most `time`; `None` where it has not come.
    pub(crate) fn wait_for(&self, time: Duration) -> Option<Result<(), Failure>> {
        let mut outcome = self.outcome.lock();
        if outcome.is_none() {
            self.reached.wait_for(&mut outcome, time);
        }
        outcome.clone()
    }
}

/// Mounts, and serves the mount in threads of this process.
///
/// # Errors
/// Why it cannot be mounted or served; nothing is left mounted then.
pub(crate) fn start(config: MountConfig, host: Host<'_>) -> Result<Serving, Failure> {
    sys::guard::install()
        .map_err(|err| Failure::failed("SIGBUS", format!("installing a handler: {err}")))?;
    let (tree, watched) = source::open(&config, host.changes)?;
    let started = begin(&config, host, &tree, watched);
    if started.is_err() {
        tree.end();
    }
    started
}

fn begin(
    config: &MountConfig,
    host: Host<'_>,
    tree: &Arc<dyn Managed>,
    watched: Option<source::Watched>,
) -> Result<Serving, Failure> {
    let counters = Arc::new(Counters::default());
    let reload = reload(config, Arc::clone(tree));
    let context = context(config, host.log, Arc::clone(&counters), reload);
    let executor = Arc::new(Executor::new(Arc::clone(tree), context));
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let silent_files = config.settings.open == OpenRequests::None;
    let control = ControlTree::new(owner, silent_files, Arc::clone(&executor));
    let name = config.settings.control_name.clone();
    let router = Router::new(tree.clone(), control, name, config.control);
    let options = AdapterOptions {
        timeouts: timeouts(config),
        silent_files,
        // Rules that are read again may have parts of a scratch's base changed directly.
        silent_directories: tree.directories_open_silently()
            && (config.scratch.is_none() || config.rules_file.is_none())
            && MountTable::read().is_ok_and(|table| !table.has_below(&config.source)),
    };
    let adapter = Adapter::new(Arc::new(router), counters, options);
    let (device, mounted) = mount(config)?;
    (host.on_mounted)(&mounted).into_iter().for_each(|feature| executor.add_feature(feature));
    let mounted = Arc::new(Mutex::new(mounted));
    let another = || {
        rustix::io::fcntl_dupfd_cloexec(&device, 0)
            .map_err(|err| Failure::failed("/dev/fuse", format!("a second descriptor: {err}")))
    };
    let (notified, polling) = (another()?, BusyPoll::new(another()?, config.settings.busy_poll));
    let connection = Connection::new(another()?);
    executor.add_feature(busy_poll(config, &polling));
    // Before the first request, whose answer may have to be taken back.
    tree.connect(Box::new(KernelCaches::start(notified)?));
    let noting = Arc::clone(&executor);
    let on_session = Box::new(move |kernel| noting.session_started(kernel));
    let handlers = Handlers::new(adapter, config.settings.threads, polling, on_session);
    let session = Session::start(config, handlers, device)?;
    if let Some(why) = tree.passthrough_closed().filter(|_| wants_passthrough(config)) {
        let mountpoint = config.mountpoint.shown();
        log::warn!(
            "{mountpoint}: plane=passthrough cannot be had: {why}: the daemon moves the bytes"
        );
    }
    executor.add_feature(readahead(&mounted.lock()));
    let watching = watched.map(|watched| watched.start(config)).transpose()?;
    let expiring = Arc::clone(tree);
    spawn("expire", move || expiring.expire())?;
    let serving = Serving { mounted, executor, connection, end: Arc::default() };
    let served = Served { session, tree: Arc::clone(tree), watching };
    let (mounted, end) = (Arc::clone(&serving.mounted), Arc::clone(&serving.end));
    let mountpoint = config.mountpoint.clone();
    log::info!("{} is served on {}", config.source.shown(), mountpoint.shown());
    spawn("serve", move || {
        let ended = served.join();
        log::info!("{} is unmounted", mountpoint.shown());
        end.reach(ended.map_err(|err| {
            if let Err(err) = mounted.lock().unmount(true) {
                log::error!("{err}");
            }
            Failure::failed(mountpoint.shown(), format!("serving it: {err}"))
        }));
    })?;
    Ok(serving)
}

/// The parts of a mount that go when the kernel has ended its session.
struct Served {
    session: Session,
    tree: Arc<dyn Managed>,
    watching: Option<Watching>,
}

impl Served {
    /// Waits until the kernel has ended the session, and closes everything.
    fn join(self) -> std::io::Result<()> {
        let ended = self.session.join();
        self.tree.end();
        drop(self.watching);
        ended
    }
}

/// Lets the kernel read ahead as much as one request carries; fuser asks for an eighth of it.
fn readahead(mounted: &Mounted) -> Feature {
    let raised = mounted.raise_readahead(READAHEAD_KIB);
    if let Err(err) = &raised {
        log::debug!("readahead: {err}");
    }
    let reason = raised.as_ref().err().map(|err| {
        format!("{err}: cold files on the mapped plane are read in requests of 128 KiB")
    });
    Feature { name: String::from("readahead_1m"), in_use: raised.is_ok(), reason }
}

fn busy_poll(config: &MountConfig, polling: &BusyPoll) -> Feature {
    let reason = match (polling.is_on(), config.settings.busy_poll.is_zero()) {
        (true, _) => None,
        (false, true) => Some("busy_poll=0: a thread is woken for every request"),
        (false, false) => Some("there is one CPU only: a thread is woken for every request"),
    };
    let name = String::from("busy_poll");
    Feature { name, in_use: polling.is_on(), reason: reason.map(String::from) }
}

/// Whether files are to be handed to the kernel by what was said, not only where that can be.
fn wants_passthrough(config: &MountConfig) -> bool {
    let mut modes = config.rules.rules().iter().map(|rule| &rule.mode).chain([&config.mode]);
    modes.any(|mode| mode.plane == PlaneChoice::Passthrough)
}

fn timeouts(config: &MountConfig) -> Timeouts {
    Timeouts {
        entry: config.settings.entry_timeout,
        attr: config.settings.attr_timeout,
        negative: config.settings.negative_timeout,
    }
}

fn context(config: &MountConfig, log: Log, counters: Arc<Counters>, reload: Reload) -> Context {
    let times = timeouts(config);
    Context {
        source: Name::from(&config.source),
        mountpoint: Name::from(&config.mountpoint),
        view: config.view,
        mode: config.mode,
        rules: config.rules_file.as_ref().map(Name::from),
        read_only: config.kernel.read_only,
        privileged: sys::cred::has_capability(CAP_SYS_ADMIN),
        threads: config.settings.threads as u64,
        clone_fd: config.settings.clone_fd,
        timeouts: Box::new(move |validity: Validity, all_names| {
            [times.entry(validity), times.attr(validity), times.negative(validity, all_names)]
        }),
        started: Instant::now(),
        kernel: std::sync::OnceLock::new(),
        counters,
        log,
        reload,
    }
}

/// The rules file is read again from where it was; a file with an error leaves the rules as they
/// are, and so does what cannot be read again.
fn reload(config: &MountConfig, tree: Arc<dyn Managed>) -> Reload {
    let (path, view, kept) = (config.rules_file.clone(), config.view, config.rules_stay);
    let has_scratch = config.scratch.is_some();
    let silent = config.settings.open == OpenRequests::None;
    Box::new(move || {
        if let Some(path) = path.as_ref().filter(|_| !kept) {
            let rules = RuleSet::load(path, &view)?;
            if rules.any_copies() && !has_scratch {
                let reason = "access=copy needs a scratch, which the mount was made without";
                return Err(Failure::usage(path.shown(), reason));
            }
            tree.set_rules(rules);
            if silent {
                tree.drop_unreadable();
            }
        }
        let path = path.as_ref().map(Name::from);
        Ok(ReloadReport { rules: tree.rule_count() as u64, path, kept })
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|err| Failure::failed(name, format!("starting a thread: {err}")))
}
