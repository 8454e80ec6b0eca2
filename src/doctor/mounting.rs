//! Needs of a mount.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::{Check, Finding, Group, Probed, Topic};
use crate::config::may_mount;
use crate::fuse::probe::{Helper, helper};
use crate::shown::Show;

/// The device that a FUSE connection is.
const DEVICE: &str = "/dev/fuse";
/// The configuration of fusermount3(1).
const FUSE_CONF: &str = "/etc/fuse.conf";

const MOUNT: Topic = Topic("mount", "everything", "nothing is served");
const OPENED: Topic = Topic("dev_fuse", "the connection with the kernel", "nothing can be mounted");
const FUSERMOUNT: Topic = Topic(
    "fusermount3",
    "mounts of users without CAP_SYS_ADMIN, and auto_unmount",
    "only root mounts, and no mount goes with its daemon",
);
const ALLOW_OTHER: Topic = Topic(
    "user_allow_other",
    "allow_other and allow_root without CAP_SYS_ADMIN",
    "a user's mount is that user's alone",
);

pub(super) fn checks(probed: &Probed) -> Vec<Check> {
    let helper = helper();
    let found = [
        MOUNT.found(Group::Mount, mounted(probed)),
        OPENED.found(Group::Mount, device()),
        FUSERMOUNT.found(Group::Mount, fusermount(helper.as_ref())),
        ALLOW_OTHER.found(Group::Mount, allow_other()),
    ];
    found.into()
}

/// Advice for a mount without privilege, by what is missing; other failures say it themselves.
pub(super) fn advice() -> Option<&'static str> {
    if may_mount() {
        return None;
    }
    let opened = device_opens().map_err(|error| error.kind());
    match (opened, helper()) {
        (Err(ErrorKind::PermissionDenied), _) => {
            Some("run as root, or have root `chmod 0666 /dev/fuse`, which is its usual mode")
        }
        (Err(ErrorKind::NotFound), _) | (_, None) => None,
        (_, Some(helper)) if !helper.is_setuid_root => {
            Some("run as root, or have root `chmod u+s` fusermount3")
        }
        (_, Some(_)) if rustix::process::getuid().is_root() => Some("it needs CAP_SYS_ADMIN"),
        (_, Some(_)) => Some("run as root, or with CAP_SYS_ADMIN"),
    }
}

fn mounted(probed: &Probed) -> Finding {
    match probed {
        Ok(_) if may_mount() => Finding::yes("made by mount(2)").with("by", "mount"),
        Ok(_) => Finding::yes("made by fusermount3").with("by", "fusermount3"),
        Err(failure) => {
            let told = failure.to_string();
            Finding::no(told.strip_prefix("no mount can be made: ").unwrap_or(&told))
        }
    }
}

fn device_opens() -> std::io::Result<()> {
    fs::File::options().read(true).write(true).open(DEVICE).map(drop)
}

fn device() -> Finding {
    let opened = device_opens();
    let Ok(metadata) = fs::metadata(DEVICE) else {
        let reason = opened.err().map_or_else(|| "it is gone".into(), |error| error.to_string());
        return Finding::no(reason);
    };
    let mode = metadata.permissions().mode() & 0o7777;
    let shown = format!("{DEVICE}, mode {mode:04o}, user {}", metadata.uid());
    let finding = match opened {
        Ok(()) => Finding::yes(shown),
        Err(error) => Finding::no(format!("{error}: {shown}")),
    };
    finding.with("mode", format!("{mode:04o}")).with("uid", metadata.uid())
}

fn fusermount(helper: Option<&Helper>) -> Finding {
    let Some(helper) = helper else {
        return Finding::no("it is not there: install `fuse3`")
            .with("path", serde_json::Value::Null);
    };
    let path = helper.path.shown().to_string();
    let version = helper.version.as_deref().unwrap_or("of unknown version");
    let finding = if !helper.is_setuid_root {
        Finding::limited(format!("{path} {version}, not setuid root: of use to root only"))
    } else if gains_nothing() {
        Finding::limited(format!("{path} {version}, but no_new_privs keeps it from root's rights"))
    } else {
        Finding::yes(format!("{path} {version}, setuid root"))
    };
    finding
        .with("path", path)
        .with("version", helper.version.clone())
        .with("setuid_root", helper.is_setuid_root)
}

/// Whether setuid programs stay without the rights of their owner.
fn gains_nothing() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NoNewPrivs:"));
    line.is_some_and(|value| value.trim() == "1")
}

fn allow_other() -> Finding {
    let needed = !may_mount();
    let set = match fs::read_to_string(FUSE_CONF) {
        Ok(text) => text.lines().any(|line| line.trim() == "user_allow_other"),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Finding::unknown(format!("reading {FUSE_CONF}: {error}")),
    };
    let finding = match (set, needed) {
        (true, _) => Finding::yes(format!("set in {FUSE_CONF}")),
        (false, true) => Finding::no(format!("not set in {FUSE_CONF}")),
        (false, false) => {
            Finding::no(format!("not set in {FUSE_CONF}; this user does not need it"))
        }
    };
    finding.with("needed", needed)
}
