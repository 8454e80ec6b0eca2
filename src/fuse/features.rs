//! The features that are asked of the kernel at the start of a session, and those that it grants.

use fuser::{InitFlags, KernelConfig};

use crate::control::report::Feature;
use crate::sys::cred::has_capability;
use crate::tree::Tree;

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

/// Why FUSE_ALLOW_IDMAP (Linux 6.12) is not asked for.
pub const WITHOUT_IDMAP: &str = "not asked for: with it the kernel names who asks only where \
                                 something is made, and writing needs to know it (setuid bits, \
                                 reserved blocks, who may enter)";

/// The number of the capability that lending a file to the kernel needs.
const CAP_SYS_ADMIN: u32 = 21;

/// The capabilities that are asked for, by name.
pub fn wanted() -> impl Iterator<Item = &'static str> {
    WANTED.iter().map(|Wanted(_, name, _)| *name)
}

/// The largest read or write in one request, in bytes.
pub(super) const MAX_REQUEST: u32 = 1 << 20;

/// Asks for everything that is of use and says what became of it.
pub(super) fn negotiate(config: &mut KernelConfig, tree: &dyn Tree) -> Vec<Feature> {
    if let Err(nearest) = config.set_max_write(MAX_REQUEST) {
        log::debug!("the largest request is {nearest} bytes");
    }
    if config.set_max_background(64).is_err() {
        log::debug!("the number of background requests stays as it is");
    }
    let mut features: Vec<Feature> = WANTED
        .iter()
        .map(|Wanted(flag, name, loss)| {
            let in_use = config.add_capabilities(*flag).is_ok();
            let reason = (!in_use).then(|| format!("this kernel does not offer it: {loss}"));
            Feature { name: (*name).to_owned(), in_use, reason }
        })
        .collect();
    let idmapped = String::from("idmapped_mounts");
    features.push(Feature { name: idmapped, in_use: false, reason: Some(WITHOUT_IDMAP.into()) });
    tree.close_passthrough(ask_for_passthrough(config, tree));
    features
}

/// Asks that files be handed to the kernel; the reason why they are not, if so.
fn ask_for_passthrough(config: &mut KernelConfig, tree: &dyn Tree) -> Option<String> {
    if !has_capability(CAP_SYS_ADMIN) {
        return Some(String::from("it needs CAP_SYS_ADMIN"));
    }
    if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err() {
        return Some(String::from("this kernel does not offer it: Linux 6.9 does"));
    }
    // One more than the source's own filesystem is stacked. No deeper than needed, so that
    // overlayfs can still be put on top of this mount.
    let depth = if tree.source_is_stacked() { 2 } else { 1 };
    match config.set_max_stack_depth(depth) {
        Ok(_) => None,
        Err(_) => Some(String::from("the source is stacked too deep")),
    }
}
