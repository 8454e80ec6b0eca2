//! What is asked of the kernel at the start of a session, and what it grants.

use fuser::{InitFlags, KernelConfig};

use crate::control::report::Feature;

/// A capability: how `status` calls it, and what is lost without it.
struct Wanted(InitFlags, &'static str, &'static str);

const WANTED: &[Wanted] = &[
    Wanted(InitFlags::FUSE_AUTO_INVAL_DATA, "auto_inval_data", "cached data may be stale"),
    Wanted(InitFlags::FUSE_DO_READDIRPLUS, "readdirplus", "listings look every name up"),
    Wanted(InitFlags::FUSE_READDIRPLUS_AUTO, "readdirplus_auto", "listings always look up"),
    Wanted(InitFlags::FUSE_PARALLEL_DIROPS, "parallel_dirops", "lookups in a directory queue"),
    Wanted(InitFlags::FUSE_ASYNC_DIO, "async_dio", "direct I/O is split and waits"),
    Wanted(InitFlags::FUSE_DONT_MASK, "dont_mask", "default ACLs meet a masked mode"),
    Wanted(InitFlags::FUSE_POSIX_ACL, "posix_acl", "access lists are not checked"),
    Wanted(InitFlags::FUSE_HANDLE_KILLPRIV_V2, "handle_killpriv_v2", "a query before every write"),
    Wanted(InitFlags::FUSE_CACHE_SYMLINKS, "cache_symlinks", "links are read every time"),
    Wanted(InitFlags::FUSE_HAS_IOCTL_DIR, "ioctl_dir", "no attribute flags of directories"),
    Wanted(InitFlags::FUSE_MAX_PAGES, "max_pages", "requests of at most 128 KiB"),
];

/// The largest read or write in one request, in bytes.
pub(super) const MAX_REQUEST: u32 = 1 << 20;

/// Asks for everything that is of use and says what became of it.
pub(super) fn negotiate(config: &mut KernelConfig) -> Vec<Feature> {
    if let Err(nearest) = config.set_max_write(MAX_REQUEST) {
        log::debug!("the largest request is {nearest} bytes");
    }
    if config.set_max_background(64).is_err() {
        log::debug!("the number of background requests stays as it is");
    }
    let mut features: Vec<_> = WANTED
        .iter()
        .map(|Wanted(flag, name, loss)| {
            let in_use = config.add_capabilities(*flag).is_ok();
            let reason = (!in_use).then(|| format!("this kernel does not offer it: {loss}"));
            Feature { name: (*name).to_owned(), in_use, reason }
        })
        .collect();
    features.push(Feature {
        name: String::from("passthrough"),
        in_use: false,
        reason: Some(String::from("not built yet: every file is served from its mapping")),
    });
    features
}
