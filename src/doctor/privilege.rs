//! The capabilities in effect.

use rustix::thread::CapabilitySet;

use super::{Check, Finding, Group, Topic};

const KNOWN: [(CapabilitySet, Topic); 8] = [
    (
        CapabilitySet::SYS_ADMIN,
        Topic(
            "cap_sys_admin",
            "mount(2), passthrough, fanotify",
            "fusermount3 mounts, mappings serve, directories are watched one by one",
        ),
    ),
    (
        CapabilitySet::DAC_READ_SEARCH,
        Topic("cap_dac_read_search", "opening files by their handles", "files are found by name"),
    ),
    (
        CapabilitySet::SETUID,
        Topic(
            "cap_setuid",
            "making files as the user who calls",
            "new files belong to the user of the daemon",
        ),
    ),
    (
        CapabilitySet::SETGID,
        Topic(
            "cap_setgid",
            "making files with the groups of the user who calls",
            "new files belong to the group of the daemon",
        ),
    ),
    (
        CapabilitySet::DAC_OVERRIDE,
        Topic(
            "cap_dac_override",
            "reaching files of other users for callers who may",
            "others get only what the user of the daemon may do",
        ),
    ),
    (
        CapabilitySet::CHOWN,
        Topic("cap_chown", "chown and chgrp for callers who may", "chown says EPERM"),
    ),
    (
        CapabilitySet::SYS_RESOURCE,
        Topic(
            "cap_sys_resource",
            "raising hard limits before the daemon starts",
            "the hard limits hold",
        ),
    ),
    (
        CapabilitySet::IPC_LOCK,
        Topic("cap_ipc_lock", "`lock` without a limit", "`lock` is bounded by RLIMIT_MEMLOCK"),
    ),
];

pub(super) fn checks() -> Vec<Check> {
    let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
    let found = |capability: CapabilitySet| match effective {
        Ok(effective) if effective.contains(capability) => Finding::yes("in effect"),
        Ok(_) => Finding::no("not in effect"),
        Err(errno) => Finding::unknown(format!("capget: {errno}")),
    };
    KNOWN.iter().map(|(bit, topic)| topic.found(Group::Privilege, found(*bit))).collect()
}
