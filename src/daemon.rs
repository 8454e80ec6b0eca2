//! The program that does nothing but serve one mount: its signals, its log, its rights, its end.

use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{Daemons, MountConfig};
use crate::control::exec::{Executor, Log, LogPlace};
use crate::error::Failure;
use crate::fuse::mount::Mounted;
use crate::mount::serving::{self, Host, Serving};
use crate::sys;
use crate::watch::Changes;

mod sandbox;

use sandbox::Sandbox;

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
    let sandbox = Sandbox::enter(&config);
    sys::file::raise_descriptor_limit();
    // Signals are taken in before there is a mount to leave behind.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|err| Failure::failed("signals", format!("taking them in: {err}")))?;
    let mut noted = None;
    let on_mounted = |mounted: &Mounted| {
        noted = Daemons::of_process().note(mounted.device()).unwrap_or_else(|err| {
            log::info!(
                "run directory: noting this process: {err}: `mmapfs umount` will not wait for it"
            );
            None
        });
        sandbox.close(mounted)
    };
    let host = Host {
        log: Log { place: log, set_level: Some(log::set_max_level) },
        changes: Changes::OfTheMount,
        on_mounted: Box::new(on_mounted),
    };
    let Serving { mounted, executor, end, .. } = serving::start(config, host)?;
    watch_signals(signals, mounted, executor)?;
    ready();
    let ended = end.wait();
    drop(noted);
    ended
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
    thread::Builder::new()
        .name(String::from("signals"))
        .spawn(watch)
        .map(drop)
        .map_err(|err| Failure::failed("signals", format!("starting a thread: {err}")))
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
