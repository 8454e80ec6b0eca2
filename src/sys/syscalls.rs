//! System calls that a serving daemon makes, including those of its libraries.
//!
//! Left out on purpose: to run a program, to mount, to trace, to load code or keys into the
//! kernel, to listen, io_uring, new namespaces, and to change the clock, the user or the root
//! directory. Some are younger than their names in the libc crate: those have their number, which
//! is the same on all architectures since 424.

use super::confine::Allowed;

/// Every system call of the list, by its name in the libc crate.
macro_rules! calls {
    ($($name:ident)*) => {
        &[$(Allowed {
            name: stringify_name(stringify!($name)),
            number: libc::$name as u32,
            first: None,
        }),*]
    };
}

/// The name without `SYS_`.
const fn stringify_name(name: &'static str) -> &'static str {
    let (_, name) = name.split_at(4);
    name
}

/// Number of a call that the libc crate has no name for on every architecture.
const fn young(name: &'static str, number: u32) -> Allowed {
    Allowed { name, number, first: None }
}

/// A call that is allowed with one first argument alone.
const fn only(name: &'static str, number: libc::c_long, first: libc::c_int) -> Allowed {
    Allowed { name, number: number as u32, first: Some(first as u32) }
}

/// On all architectures.
const COMMON: &[Allowed] = calls! {
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev
    SYS_preadv2 SYS_pwritev2 SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_dup SYS_dup3
    SYS_fcntl SYS_flock SYS_ioctl SYS_lseek SYS_fstat SYS_newfstatat SYS_statx SYS_faccessat
    SYS_readlinkat SYS_getdents64 SYS_truncate SYS_ftruncate SYS_fallocate SYS_fadvise64
    SYS_readahead SYS_sync_file_range SYS_fsync SYS_fdatasync SYS_syncfs SYS_copy_file_range
    SYS_sendfile SYS_splice SYS_mkdirat SYS_unlinkat SYS_renameat SYS_renameat2 SYS_linkat
    SYS_symlinkat SYS_mknodat SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat
    SYS_umask SYS_chdir SYS_fchdir SYS_getcwd SYS_getxattr SYS_lgetxattr SYS_fgetxattr
    SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr
    SYS_removexattr SYS_lremovexattr SYS_fremovexattr SYS_statfs SYS_fstatfs SYS_mount_setattr
    SYS_open_tree SYS_umount2 SYS_name_to_handle_at SYS_open_by_handle_at SYS_fanotify_mark
    SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_mlock SYS_mlock2 SYS_munlock
    SYS_msync SYS_mincore SYS_brk SYS_membarrier SYS_memfd_create SYS_clone SYS_clone3 SYS_futex
    SYS_set_robust_list SYS_rseq SYS_set_tid_address SYS_exit SYS_exit_group SYS_gettid
    SYS_getpid SYS_getppid SYS_tgkill SYS_sched_yield SYS_sched_getaffinity SYS_getcpu SYS_prctl
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigtimedwait SYS_rt_sigpending
    SYS_rt_sigsuspend SYS_sigaltstack SYS_restart_syscall SYS_wait4 SYS_waitid SYS_pidfd_open
    SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday
    SYS_timerfd_create SYS_timerfd_settime SYS_ppoll SYS_pselect6 SYS_epoll_create1
    SYS_epoll_ctl SYS_epoll_pwait SYS_eventfd2 SYS_signalfd4 SYS_pipe2 SYS_getuid SYS_geteuid
    SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_setfsuid SYS_setfsgid SYS_getgroups
    SYS_setgroups SYS_capget SYS_capset SYS_getrlimit SYS_prlimit64 SYS_getrusage SYS_sysinfo
    SYS_uname SYS_getrandom SYS_connect SYS_sendto SYS_sendmsg SYS_recvfrom SYS_recvmsg
    SYS_getsockopt SYS_setsockopt SYS_getsockname SYS_shutdown
};

/// Calls that newer architectures have only in a newer form.
#[cfg(target_arch = "x86_64")]
const OLD: &[Allowed] = calls! {
    SYS_open SYS_stat SYS_lstat SYS_access SYS_readlink SYS_mkdir SYS_rmdir SYS_unlink
    SYS_rename SYS_link SYS_symlink SYS_mknod SYS_chmod SYS_chown SYS_lchown SYS_utime
    SYS_utimes SYS_getdents SYS_dup2 SYS_pipe SYS_poll SYS_select SYS_epoll_create
    SYS_epoll_wait SYS_eventfd SYS_time SYS_arch_prctl SYS_getpgrp
};
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[Allowed] = &[];

const YOUNG: &[Allowed] = &[
    young("faccessat2", 439),
    young("process_madvise", 440),
    young("epoll_pwait2", 441),
    young("futex_waitv", 449),
    young("cachestat", 451),
    young("fchmodat2", 452),
    young("map_shadow_stack", 453),
    young("futex_wake", 454),
    young("futex_wait", 455),
    young("futex_requeue", 456),
    young("statmount", 457),
    young("listmount", 458),
    young("mseal", 462),
    young("setxattrat", 463),
    young("getxattrat", 464),
    young("listxattrat", 465),
    young("removexattrat", 466),
    young("open_tree_attr", 467),
    young("file_getattr", 468),
    young("file_setattr", 469),
];

/// Sockets are for the system log and systemd; of the state that threads share only the umask is
/// made a thread's own.
const ONLY: &[Allowed] = &[
    only("socket", libc::SYS_socket, libc::AF_UNIX),
    only("socketpair", libc::SYS_socketpair, libc::AF_UNIX),
    only("unshare", libc::SYS_unshare, libc::CLONE_FS),
];

/// All allowed system calls; empty on an architecture that was not tested.
pub(super) static ALLOWED: &[Allowed] =
    if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) { &ALL } else { &[] };

const LEN: usize = COMMON.len() + OLD.len() + YOUNG.len() + ONLY.len();

static ALL: [Allowed; LEN] = joined();

const fn joined() -> [Allowed; LEN] {
    let mut all = [young("", 0); LEN];
    let parts = [COMMON, OLD, YOUNG, ONLY];
    let (mut part, mut to) = (0, 0);
    while part < parts.len() {
        let mut from = 0;
        while from < parts[part].len() {
            all[to] = parts[part][from];
            (from, to) = (from + 1, to + 1);
        }
        part += 1;
    }
    all
}
