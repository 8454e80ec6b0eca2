//! Every `MAP_*` of Linux, and what becomes of it.

use super::Sharing;

/// A flag of mmap(2).
pub(super) struct Known {
    /// Lower case, without `MAP_`.
    pub name: &'static str,
    /// The treatment of the flag.
    pub rule: Rule,
}

/// The treatment of a flag.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// It is the type of the mapping.
    Share(Sharing),
    /// It is passed to mmap(2).
    Pass(i32),
    /// It is refused, for this reason.
    Refuse(&'static str),
}

/// The bits that hold log2 of the huge page size (linux/mman.h, `MAP_HUGE_SHIFT`).
pub(super) const HUGE_MASK: i32 = 0x3f << HUGE_SHIFT;
const HUGE_SHIFT: i32 = 26;

const ADDRESS: &str = "the daemon leaves the address of a mapping to the kernel";
const NO_FILE: &str = "a view is a mapping of a file";
const STACK: &str = "only anonymous memory can grow by itself";
const ELSEWHERE: &str = "Linux does not have it on this architecture";

const fn share(name: &'static str, sharing: Sharing) -> Known {
    Known { name, rule: Rule::Share(sharing) }
}

const fn pass(name: &'static str, bits: i32) -> Known {
    Known { name, rule: Rule::Pass(bits) }
}

const fn huge(name: &'static str, log2: i32) -> Known {
    Known { name, rule: Rule::Pass(log2 << HUGE_SHIFT) }
}

const fn refuse(name: &'static str, reason: &'static str) -> Known {
    Known { name, rule: Rule::Refuse(reason) }
}

#[cfg(target_arch = "x86_64")]
const BITS_32: Known = pass("32bit", libc::MAP_32BIT);
#[cfg(not(target_arch = "x86_64"))]
const BITS_32: Known = refuse("32bit", ELSEWHERE);
/// `MAP_ABOVE4G` (asm/mman.h of x86), which the libc crate lacks.
#[cfg(target_arch = "x86_64")]
const ABOVE_4G: Known = pass("above4g", 0x80);
#[cfg(not(target_arch = "x86_64"))]
const ABOVE_4G: Known = refuse("above4g", ELSEWHERE);

/// Every flag, in the order in which they are printed. Sources: mmap(2), asm-generic/mman.h,
/// asm-generic/mman-common.h, linux/mman.h and the mman.h of other architectures.
pub(super) static KNOWN: &[Known] = &[
    share("shared", Sharing::Shared),
    share("private", Sharing::Private),
    share("shared_validate", Sharing::SharedValidate),
    pass("populate", libc::MAP_POPULATE),
    pass("noreserve", libc::MAP_NORESERVE),
    pass("locked", libc::MAP_LOCKED),
    pass("nonblock", libc::MAP_NONBLOCK),
    pass("stack", libc::MAP_STACK),
    pass("sync", libc::MAP_SYNC),
    BITS_32,
    ABOVE_4G,
    pass("denywrite", libc::MAP_DENYWRITE),
    pass("executable", libc::MAP_EXECUTABLE),
    pass("hugetlb", libc::MAP_HUGETLB),
    huge("huge_16kb", 14),
    huge("huge_64kb", 16),
    huge("huge_512kb", 19),
    huge("huge_1mb", 20),
    huge("huge_2mb", 21),
    huge("huge_8mb", 23),
    huge("huge_16mb", 24),
    huge("huge_32mb", 25),
    huge("huge_256mb", 28),
    huge("huge_512mb", 29),
    huge("huge_1gb", 30),
    huge("huge_2gb", 31),
    huge("huge_16gb", 34),
    refuse("fixed", ADDRESS),
    refuse("fixed_noreplace", ADDRESS),
    refuse("anonymous", NO_FILE),
    refuse("anon", NO_FILE),
    refuse("uninitialized", "it is for anonymous memory of kernels without an MMU"),
    refuse("droppable", "it is for anonymous memory: the kernel may drop its pages unwritten"),
    refuse("growsdown", STACK),
    refuse("growsup", STACK),
    refuse("file", "it is 0 and says nothing: every view is a mapping of a file"),
    refuse("type", "it is the mask of the types: shared, private, shared_validate"),
    refuse("huge_mask", "it is the mask of the huge page sizes, such as huge_2mb"),
    refuse("huge_shift", "it is the place of the huge page sizes, such as huge_2mb"),
    refuse("failed", "it is a result of mmap(2)"),
    refuse("autogrow", ELSEWHERE),
    refuse("autorsrv", ELSEWHERE),
    refuse("local", ELSEWHERE),
    refuse("logged", ELSEWHERE),
    refuse("rename", ELSEWHERE),
    refuse("inherit", ELSEWHERE),
    refuse("hassemaphore", ELSEWHERE),
];
