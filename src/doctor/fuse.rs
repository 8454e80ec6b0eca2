//! Features that the kernel's FUSE client offers, from a mount that was made for it.

use rustix::io::Errno;
use serde_json::json;

use super::subject::Subject;
use super::{Check, Finding, Group, Probed, Topic};
use crate::config::may_mount;
use crate::fuse as features;

const PROTOCOL: Topic = Topic("fuse_protocol", "every request", "nothing is served");
const PASSTHROUGH: Topic = Topic(
    "passthrough",
    "the kernel reads, writes and maps the file itself",
    "files are served from their mappings, by the daemon",
);
const READ_AHEAD: Topic = Topic(
    "read_ahead",
    "readahead of 1 MiB for cold sequential reads",
    "the kernel reads 128 KiB ahead: about 0.6 times the speed",
);

const IDMAP: Topic = Topic(
    "idmapped_mounts",
    "bind mounts of a mount with other users (containers with user namespaces)",
    "mount_setattr(2) says EINVAL: map the source's mount and serve that",
);

/// The capabilities of the protocol that matter, by the names of `mmapfs status`.
pub(super) const CAPABILITIES: [Topic; 14] = [
    Topic("auto_inval_data", "fresh data after a change of the source", "data may be stale"),
    Topic("readdirplus", "listings with attributes", "listings look every name up"),
    Topic("readdirplus_auto", "plain listings where those are enough", "listings always look up"),
    Topic("parallel_dirops", "lookups side by side", "lookups in a directory queue"),
    Topic("async_dio", "direct I/O in parallel requests", "direct I/O is split and waits"),
    Topic("dont_mask", "default ACLs in place of the umask", "default ACLs meet a masked mode"),
    Topic("posix_acl", "access lists checked by the kernel", "access lists are not checked"),
    Topic("handle_killpriv_v2", "writes that clear setuid at once", "a query before every write"),
    Topic("cache_symlinks", "links kept by the kernel", "links are read every time"),
    Topic("ioctl_dir", "attribute flags of directories (chattr)", "ENOTTY for directories"),
    Topic("max_pages", "requests of 1 MiB", "requests of at most 128 KiB"),
    Topic("no_open_support", "opens without a message (open=none)", "a round trip for every open"),
    Topic("no_opendir_support", "opendir without a message", "a round trip for every opendir"),
    Topic(
        "expire_only",
        "names checked again when changes were lost",
        "mounts inside go with them",
    ),
];

pub(super) fn checks(probed: &Probed, subject: &Subject) -> Vec<Check> {
    let mut found = vec![
        PROTOCOL.found(Group::Fuse, protocol(probed)),
        PASSTHROUGH.found(Group::Fuse, passthrough(probed, subject)),
        READ_AHEAD.found(Group::Fuse, read_ahead(probed)),
    ];
    found.push(IDMAP.found(Group::Fuse, Finding::no(features::WITHOUT_IDMAP)));
    let offered = probed.as_ref().ok().map(|found| found.offer.names());
    found.extend(CAPABILITIES.iter().map(|topic| {
        let finding = match &offered {
            None => Finding::unknown("no mount could be made to ask"),
            Some(names) if names.iter().any(|name| name == topic.0) => Finding::yes("offered"),
            Some(_) => Finding::no("this kernel does not offer it"),
        };
        topic.found(Group::Fuse, finding)
    }));
    found
}

fn unasked() -> Finding {
    Finding::unknown("no mount could be made to ask")
}

fn protocol(probed: &Probed) -> Finding {
    let Ok(found) = probed else { return unasked() };
    let offer = &found.offer;
    let names = offer.names();
    let (major, minor) = (offer.major, offer.minor);
    Finding::yes(format!("{major}.{minor}, {} capabilities offered", names.len()))
        .with("major", major)
        .with("minor", minor)
        .with("max_readahead", offer.max_readahead)
        .with("offered", json!(names))
}

fn passthrough(probed: &Probed, subject: &Subject) -> Finding {
    let tried = probed.as_ref().ok().map(|found| {
        let offered = found.offer.names().iter().any(|name| name == "passthrough");
        (offered, found.passthrough)
    });
    let finding = match tried {
        None if may_mount() => unasked(),
        None => Finding::no("it needs CAP_SYS_ADMIN"),
        Some((false, _)) => Finding::no("this kernel does not offer it: Linux 6.9 does"),
        Some((true, None)) if !may_mount() => Finding::no("it needs CAP_SYS_ADMIN"),
        Some((true, None)) => Finding::unknown("there is no file in the directory to try it on"),
        Some((true, Some(Ok(1)))) => Finding::yes("stack depth 1"),
        Some((true, Some(Ok(depth)))) => {
            let fstype = subject.fstype.as_deref().unwrap_or("the filesystem");
            Finding::yes(format!("stack depth {depth} ({fstype} is stacked)"))
        }
        Some((true, Some(Err(Errno::PERM)))) if may_mount() => {
            Finding::no("it needs CAP_SYS_ADMIN outside of any container (EPERM)")
        }
        Some((true, Some(Err(Errno::PERM)))) => Finding::no("it needs CAP_SYS_ADMIN (EPERM)"),
        Some((true, Some(Err(Errno::LOOP)))) => {
            Finding::no("the directory's filesystem is stacked too deep (ELOOP)")
        }
        Some((true, Some(Err(errno)))) => Finding::no(std::io::Error::from(errno)),
    };
    let depth = tried.and_then(|(_, passthrough)| passthrough).and_then(Result::ok);
    finding.with("stack_depth", depth)
}

fn read_ahead(probed: &Probed) -> Finding {
    let Ok(found) = probed else { return unasked() };
    match &found.read_ahead {
        Ok(()) => Finding::yes("it can be set"),
        Err(error) => Finding::no(format!("setting the mount's read_ahead_kb: {error}")),
    }
}
