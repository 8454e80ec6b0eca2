//! Permanent restriction of rights: Landlock and a filter of system calls.
#![allow(unsafe_code)]

use std::ptr;

use rustix::io::Errno;

use super::last_errno;
use super::syscalls::ALLOWED;

#[cfg(test)]
mod tests;

/// LANDLOCK_CREATE_RULESET_VERSION of linux/landlock.h.
const RULESET_VERSION: u32 = 1;
/// LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP, since version 4.
const NET_TCP: u64 = 0b11;
/// The version of Landlock that can take the network.
pub const LANDLOCK_WITH_NETWORK: i64 = 4;
/// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, since version 6.
const SCOPE_ABSTRACT_SOCKETS: u64 = 0b01;
/// LANDLOCK_SCOPE_SIGNAL, since version 6.
const SCOPE_SIGNALS: u64 = 0b10;

/// struct landlock_ruleset_attr.
#[repr(C)]
struct Ruleset {
    fs: u64,
    net: u64,
    scoped: u64,
}

/// The version of Landlock in this kernel.
///
/// # Errors
/// ENOSYS if the kernel was built without Landlock, EOPNOTSUPP if it was booted without.
pub fn landlock_version() -> Result<i64, Errno> {
    let none = ptr::null::<Ruleset>();
    // SAFETY: with this flag the call reads nothing and only returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, RULESET_VERSION) };
    if version < 0 { Err(last_errno()) } else { Ok(version) }
}

/// Denies TCP to this thread and the threads that it starts; since version 6 of Landlock also
/// signals to other processes and, unless `abstract_sockets`, connections to their abstract
/// sockets. Needs no_new_privs or CAP_SYS_ADMIN.
///
/// # Errors
/// Errors of landlock_create_ruleset(2) and landlock_restrict_self(2).
pub fn take_network(version: i64, abstract_sockets: bool) -> Result<(), Errno> {
    let scoped = match (version, abstract_sockets) {
        (..6, _) => 0,
        (_, true) => SCOPE_SIGNALS,
        (_, false) => SCOPE_SIGNALS | SCOPE_ABSTRACT_SOCKETS,
    };
    let rules = Ruleset { fs: 0, net: NET_TCP, scoped };
    // Version 4 has the first two fields only, and refuses further ones that are not zero.
    let size = size_of::<Ruleset>();
    // SAFETY: the structure has the kernel's layout and outlives the call.
    let ruleset =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size, 0_u32) };
    if ruleset < 0 {
        return Err(last_errno());
    }
    // SAFETY: the call takes numbers.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0_u32) };
    let restricted = if result == 0 { Ok(()) } else { Err(last_errno()) };
    // SAFETY: the descriptor was made above, and nobody else has it.
    unsafe { libc::close(ruleset as libc::c_int) };
    restricted
}

/// One system call that stays allowed.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// Its name in the manual.
    pub name: &'static str,
    pub(super) number: u32,
    /// The only allowed first argument; `None` if all are allowed.
    pub(super) first: Option<u32>,
}

/// The system calls that stay allowed under [`filter_system_calls`], none where this architecture
/// has no filter here.
pub fn allowed_system_calls() -> &'static [Allowed] {
    ALLOWED
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in struct seccomp_data; the lower half of the first argument, on machines that begin
/// with it.
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_FIRST: u32 = 16;

/// Checks that the kernel can filter system calls.
///
/// # Errors
/// ENOSYS or EINVAL if it cannot.
pub fn filters_are_there() -> Result<(), Errno> {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the call reads the number, which outlives it.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0_u32, &raw const action)
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Makes every system call but the [`Allowed`] fail with EPERM, on all threads, permanently. The
/// kernel writes failed ones to its audit log. Needs no_new_privs or CAP_SYS_ADMIN.
///
/// # Errors
/// Errors of seccomp(2); ENOSYS on architectures without a list.
pub fn filter_system_calls() -> Result<(), Errno> {
    if ALLOWED.is_empty() {
        return Err(Errno::NOSYS);
    }
    let mut program = program(ALLOWED);
    let len = u16::try_from(program.len()).map_err(|_| Errno::TOOBIG)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG;
    // SAFETY: the kernel copies as many instructions as it is told, and they outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    match result {
        0 => Ok(()),
        // A positive result is the id of a thread that cannot take the filter.
        1.. => Err(Errno::BUSY),
        _ => Err(last_errno()),
    }
}

fn program(allowed: &[Allowed]) -> Vec<libc::sock_filter> {
    let load = |at| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let skip_unless =
        |value, jump| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, jump);
    let answer = |action| instruction(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    let allow = answer(libc::SECCOMP_RET_ALLOW);
    let refuse = answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let mut program = vec![
        load(AT_ARCHITECTURE),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, ARCHITECTURE, 1, 0),
        refuse,
        load(AT_NUMBER),
    ];
    for call in allowed {
        match call.first {
            None => program.extend([skip_unless(call.number, 1), allow]),
            Some(first) => program.extend([
                skip_unless(call.number, 4),
                load(AT_FIRST),
                skip_unless(first, 1),
                allow,
                refuse,
            ]),
        }
    }
    program.push(refuse);
    program
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}
