//! The life of a mount: build the volume, mount it, serve it, unmount it.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use fuser::{BackgroundSession, Session, SessionACL};
use parking_lot::Mutex;
use rustix::mount::MountFlags;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::rules::RuleSet;
use crate::config::{Daemons, MountConfig, MountTable, OpenRequests, SourceKind};
use crate::control::counters::Counters;
use crate::control::directory::ControlDir;
use crate::control::exec::{Context, Executor, LogPlace, Reload};
use crate::control::report::{Feature, ReloadReport};
use crate::error::Failure;
use crate::flags::PlaneChoice;
use crate::fuse::mount::{Mounted, mount};
use crate::fuse::{Adapter, AdapterOptions, BusyPoll, Handlers, KernelCaches, Timeouts};
use crate::layers::scratch::{Places, Scratch};
use crate::shown::{Name, Show};
use crate::volume::{Policy, Told, Volume, VolumeOptions};
use crate::watch::Watch;
use crate::{layers, sys};

mod sandbox;

use crate::tree::{Managed, Validity};
use sandbox::Sandbox;

/// Readahead of the kernel for a sequential reader, in KiB: one request of the largest size.
const READAHEAD_KIB: u32 = 1024;

/// The capability to mount, CAP_SYS_ADMIN.
const CAP_SYS_ADMIN: u32 = 21;

/// Serves a mount until it is unmounted. `log` tells where its log goes. `ready` is called once the
/// mount answers.
///
/// SIGINT and SIGTERM unmount; where files are in use the mount point is freed at once and the
/// daemon serves what is open until it is closed, or until a second signal. SIGHUP reads the
/// rules again.
///
/// # Errors
/// Why it could not be mounted or served; nothing is left mounted then.
pub fn serve(
    config: MountConfig,
    log: LogPlace,
    ready: Box<dyn FnOnce() + Send>,
) -> Result<(), Failure> {
    let source = config.source.shown().to_string();
    let sandbox = Sandbox::enter(&config);
    sys::file::raise_descriptor_limit();
    sys::guard::install()
        .map_err(|err| Failure::failed("SIGBUS", format!("installing a handler: {err}")))?;
    let (tree, watch) = open_tree(&config)?;
    let counters = Arc::new(Counters::default());
    let reload = reload(&config, Arc::clone(&tree));
    let context = context(&config, log, Arc::clone(&counters), reload);
    let executor = Arc::new(Executor::new(Arc::clone(&tree), context));
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let control = Arc::new(ControlDir::new(
        config.control_name.clone(),
        config.control,
        owner,
        config.open == OpenRequests::None,
        Arc::clone(&executor),
    ));
    // Signals are taken in before there is a mount to leave behind.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|err| Failure::failed("signals", format!("taking them in: {err}")))?;

    let options = AdapterOptions {
        timeouts: timeouts(&config),
        silent_files: config.open == OpenRequests::None,
        // Rules that are read again may have parts of a scratch's base changed directly.
        silent_directories: tree.directories_open_silently()
            && (config.scratch.is_none() || config.rules_file.is_none())
            && MountTable::read().is_ok_and(|table| !table.has_below(&config.source)),
    };
    let adapter = Adapter::new(tree.clone(), control, counters, options);
    let (fuse, mounted) = mount(&config)?;
    let noted = Daemons::of_process().note(mounted.device()).unwrap_or_else(|err| {
        log::info!(
            "run directory: noting this process: {err}: `mmapfs umount` will not wait for it"
        );
        None
    });
    sandbox.close(&mounted).into_iter().for_each(|feature| executor.add_feature(feature));
    let mounted = Arc::new(Mutex::new(mounted));
    let another = || {
        rustix::io::fcntl_dupfd_cloexec(&fuse, 0)
            .map_err(|err| Failure::failed("/dev/fuse", format!("a second descriptor: {err}")))
    };
    let (device, polling) = (another()?, BusyPoll::new(another()?, config.busy_poll));
    executor.add_feature(busy_poll(&config, &polling));
    // Before the first request, whose answer may have to be taken back.
    tree.connect(Box::new(KernelCaches::start(device)?));
    let session = start(&config, Handlers::new(adapter, config.threads, polling), fuse)?;
    if let Some(why) = tree.passthrough_closed().filter(|_| wants_passthrough(&config)) {
        let mountpoint = config.mountpoint.shown();
        log::warn!(
            "{mountpoint}: plane=passthrough cannot be had: {why}: the daemon moves the bytes"
        );
    }
    executor.add_feature(readahead(&mounted.lock()));
    let watching = match watch {
        Some(of) => {
            let Watched { watch, volume, told } = of;
            Some(watch.start(volume, told, &config.source, &config.mountpoint)?)
        }
        None => None,
    };
    watch_signals(signals, Arc::clone(&mounted), executor)?;
    let expiring = Arc::clone(&tree);
    spawn("expire", move || expiring.expire())?;
    log::info!("{source} is served on {}", config.mountpoint.shown());
    ready();

    let ended = session.join();
    tree.end();
    drop(watching);
    drop(noted);
    log::info!("{} is unmounted", config.mountpoint.shown());
    match ended {
        Ok(()) => Ok(()),
        // Requests that were on their way when the mount went.
        Err(err) if err.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        Err(err) => {
            if let Err(err) = mounted.lock().unmount(true) {
                log::error!("{err}");
            }
            Err(Failure::failed(config.mountpoint.shown(), format!("serving it: {err}")))
        }
    }
}

/// The volume that is watched from the start, since it can change by itself, and who is told.
struct Watched {
    watch: Watch,
    volume: Arc<Volume>,
    told: Arc<dyn Told>,
}

/// The tree that is served, with its watch.
type Opened = (Arc<dyn Managed>, Option<Watched>);

fn open_tree(config: &MountConfig) -> Result<Opened, Failure> {
    let options = volume_options(config);
    let Some(scratch) = &config.scratch else {
        let volume = Volume::open_source(options)
            .map_err(|err| Failure::failed(config.source.shown(), format!("opening it: {err}")))?;
        let volume = Arc::new(volume);
        // Watched before the kernel is told anything.
        let watch = Watch::of(&volume, config.watch)?;
        let tree = Arc::clone(&volume);
        let watched =
            watch.map(|watch| Watched { watch, volume: Arc::clone(&volume), told: volume });
        return Ok((tree, watched));
    };
    let places = Places::of_process();
    let (share, base_changed) = (scratch.share, scratch.base_changed.unwrap_or_default());
    let scratch = Scratch::open(scratch, &options.source, &config.mountpoint, &places)?;
    let overlay = Arc::new(layers::assemble(options, scratch, share, base_changed)?);
    let base = overlay.base();
    let watch = Watch::of(&base, config.watch)?;
    if let Err(err) = overlay.start_guard() {
        log::warn!("guarding the base: {err}: changes of it are refused when they are seen");
    }
    overlay.guard_kept();
    if let Err(err) = overlay.start_comparing() {
        log::warn!("comparing the base with what it was: {err}");
    }
    let told = Arc::clone(&overlay);
    Ok((overlay, watch.map(|watch| Watched { watch, volume: base, told })))
}

fn volume_options(config: &MountConfig) -> VolumeOptions {
    let file = config.source_kind == SourceKind::File;
    let directory = if file { config.source.parent() } else { None };
    let options = VolumeOptions {
        source: directory.unwrap_or(&config.source).to_owned(),
        only: config.source.file_name().filter(|_| file).map(Into::into),
        root_is_file: file && config.mountpoint_kind == SourceKind::File,
        reserved: has_control(config).then(|| config.control_name.clone()),
        policy: Policy { mode: config.mode, rules: config.rules.clone() },
        // Half of what the kernel allows: advice on a part of a mapping splits it.
        max_mappings: config.max_mappings.unwrap_or_else(|| sys::file::max_map_count() / 2),
        keeps_atime: !config.kernel.flags.contains(MountFlags::NOATIME),
        keeps_attributes: config.attr_timeout.is_none_or(|timeout| !timeout.is_zero()),
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
    let reason = match (polling.is_on(), config.busy_poll.is_zero()) {
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

fn has_control(config: &MountConfig) -> bool {
    config.control != crate::config::ControlVisibility::Off
}

fn timeouts(config: &MountConfig) -> Timeouts {
    Timeouts {
        entry: config.entry_timeout,
        attr: config.attr_timeout,
        negative: config.negative_timeout,
    }
}

fn context(
    config: &MountConfig,
    log: LogPlace,
    counters: Arc<Counters>,
    reload: Reload,
) -> Context {
    let times = timeouts(config);
    Context {
        source: Name::from(&config.source),
        mountpoint: Name::from(&config.mountpoint),
        view: config.view,
        mode: config.mode,
        rules: config.rules_file.as_ref().map(Name::from),
        read_only: config.kernel.read_only,
        privileged: sys::cred::has_capability(CAP_SYS_ADMIN),
        threads: config.threads as u64,
        clone_fd: config.clone_fd,
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
    let silent = config.open == OpenRequests::None;
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

fn start(
    config: &MountConfig,
    handlers: Handlers,
    fuse: std::os::fd::OwnedFd,
) -> Result<BackgroundSession, Failure> {
    let acl = if config.kernel.allow_other {
        SessionACL::All
    } else if config.kernel.allow_root {
        SessionACL::RootAndOwner
    } else {
        SessionACL::Owner
    };
    let mut options = fuser::Config::default();
    options.n_threads = Some(config.threads);
    options.clone_fd = config.clone_fd;
    Session::from_fd(handlers, fuse, acl, options).and_then(Session::spawn).map_err(|err| {
        Failure::failed(config.mountpoint.shown(), format!("starting a session: {err}"))
    })
}

fn watch_signals(
    mut signals: Signals,
    mounted: Arc<Mutex<Mounted>>,
    executor: Arc<Executor>,
) -> Result<(), Failure> {
    let watch = move || {
        let mut asked = false;
        for signal in signals.forever() {
            match signal {
                SIGHUP => reload_rules(&executor),
                // A second one: do not wait for what is still open.
                _ if asked => std::process::exit(1),
                _ => {
                    asked = true;
                    unmount(&mounted);
                }
            }
        }
    };
    spawn("signals", watch)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|err| Failure::failed(name, format!("starting a thread: {err}")))
}

fn reload_rules(executor: &Executor) {
    match executor.run(&crate::control::command::Command::Reload) {
        Ok(report) => log::info!("{}", report.to_string().trim_end()),
        Err(err) => log::error!("the rules stay as they are: {err}"),
    }
}

fn unmount(mounted: &Mutex<Mounted>) {
    let mut mounted = mounted.lock();
    let Err(busy) = mounted.unmount(false) else { return };
    log::warn!("{busy}; the mount point is freed now, open files are served until they are closed");
    if let Err(err) = mounted.unmount(true) {
        log::error!("{err}");
    }
}
