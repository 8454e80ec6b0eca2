//! Copies to and from mapped memory that survive faults.
//!
//! A file that is truncated, a hole that finds no room on a full disk, a bad block: the load or
//! store that meets it raises SIGBUS. The copy ends in one instruction, `rep movsb`, which keeps
//! its progress in registers, exact to the byte when it faults. The handler looks whether the
//! fault came from that very instruction and, if so, lets execution go on behind it: the count
//! register then says how many bytes were left. Long copies begin with a loop over blocks, twice
//! as fast where source and destination are not aligned to each other, as in every write request;
//! from a fault in it execution goes on at `rep movsb`, which does the block again and finds the
//! byte. On these paths the handler calls nothing, writes no memory but the saved instruction
//! pointer and maps nothing.
//!
//! Any other SIGBUS gets what it would get if there were no handler here:
//!
//! | SIGBUS                                    | with a handler before | without                    |
//! |-------------------------------------------|-----------------------|----------------------------|
//! | a fault of the copy                       | the copy ends early   | the copy ends early        |
//! | a fault of other code                     | it is called          | the process dies of it     |
//! | sent by kill(2) and the like              | it is called          | dies, unless it is ignored |
//! | bad memory, not accessed (MCEERR_AO)      | it is called          | nothing                    |
//!
//! A handler that gives up sets the default action and returns, as that of Rust's standard library
//! does: then the process dies, or, of bad memory that was not accessed, this handler is set again.
//!
//! A process has one action for SIGBUS, so this is the one process-wide setting that a mount makes,
//! once. A handler that is installed afterwards has to call this one, which sigaction(2) gives it.
//!
//! No thread that copies may block SIGBUS: a fault while it is blocked kills the process.
//!
//! On other architectures nothing is copied and callers use pread(2) and pwrite(2).
#![allow(unsafe_code)]

use rustix::io::Errno;

use super::region::Region;

#[cfg(test)]
mod tests;

/// Whether there is a guarded copy on this architecture.
pub const GUARDED: bool = cfg!(target_arch = "x86_64");

/// Copies `data` into a region at `offset`. Returns how many bytes arrived: all of them, fewer
/// when a page is not to be had, none when the range is outside the region, the region may not be
/// written, or [`install`] was not called.
pub fn copy_in(region: &Region, offset: usize, data: &[u8]) -> usize {
    let Some(end) = offset.checked_add(data.len()) else { return 0 };
    if !region.is_writable() {
        return 0;
    }
    match region.span(&(offset..end)) {
        Ok((address, len)) => copy::guarded(address, data.as_ptr(), len),
        Err(_) => 0,
    }
}

/// Copies from a region at `offset` into `buffer`. Returns how many bytes arrived, as
/// [`copy_in`]; none when the region may not be read.
pub fn copy_out(region: &Region, offset: usize, buffer: &mut [u8]) -> usize {
    let Some(end) = offset.checked_add(buffer.len()) else { return 0 };
    if !region.is_readable() {
        return 0; // A load from it raises SIGSEGV, which nothing catches.
    }
    match region.span(&(offset..end)) {
        Ok((address, len)) => copy::guarded(buffer.as_mut_ptr(), address, len),
        Err(_) => 0,
    }
}

/// Installs the SIGBUS handler. Without it nothing is copied. Calling it again does nothing.
///
/// # Errors
/// Errors of sigaction(2).
pub fn install() -> Result<(), Errno> {
    copy::install()
}

#[cfg(target_arch = "x86_64")]
mod copy {
    use std::arch::global_asm;
    use std::sync::OnceLock;

    use rustix::io::Errno;

    use crate::sys::check;

    // The System V calling convention: destination, source and count come in rdi, rsi and rdx,
    // and the bytes that were left go back in rax. All registers used may be changed by a call,
    // the direction flag is clear at every call, and the compiler takes every byte of memory as
    // read and written, since it does not see into the routine.
    //
    // In the loop rcx is 64 less than the bytes that are left. Nothing but its loads and stores
    // can fault, and the three registers step only behind them.
    global_asm!(
        ".pushsection .text.mmapfs_guarded_copy,\"ax\",@progbits",
        ".p2align 4",
        ".globl mmapfs_guarded_copy, mmapfs_guarded_copy_blocks, mmapfs_guarded_copy_rest",
        ".globl mmapfs_guarded_copy_move, mmapfs_guarded_copy_end",
        ".hidden mmapfs_guarded_copy, mmapfs_guarded_copy_blocks, mmapfs_guarded_copy_rest",
        ".hidden mmapfs_guarded_copy_move, mmapfs_guarded_copy_end",
        ".type mmapfs_guarded_copy,@function",
        "mmapfs_guarded_copy:",
        ".cfi_startproc",
        "mov rcx, rdx",
        "cmp rcx, {long}",
        "jb mmapfs_guarded_copy_move",
        "sub rcx, 64",
        ".p2align 4",
        "mmapfs_guarded_copy_blocks:",
        "movups xmm0, [rsi]",
        "movups xmm1, [rsi + 16]",
        "movups xmm2, [rsi + 32]",
        "movups xmm3, [rsi + 48]",
        "movups [rdi], xmm0",
        "movups [rdi + 16], xmm1",
        "movups [rdi + 32], xmm2",
        "movups [rdi + 48], xmm3",
        "add rsi, 64",
        "add rdi, 64",
        "sub rcx, 64",
        "jae mmapfs_guarded_copy_blocks",
        "mmapfs_guarded_copy_rest:",
        "add rcx, 64",
        "mmapfs_guarded_copy_move:",
        "rep movsb",
        "mmapfs_guarded_copy_end:",
        "mov rax, rcx",
        "ret",
        ".cfi_endproc",
        ".size mmapfs_guarded_copy, . - mmapfs_guarded_copy",
        ".popsection",
        long = const LONG,
    );

    unsafe extern "C" {
        fn mmapfs_guarded_copy(to: *mut u8, from: *const u8, len: usize) -> usize;
        static mmapfs_guarded_copy_blocks: u8;
        static mmapfs_guarded_copy_rest: u8;
        static mmapfs_guarded_copy_move: u8;
        static mmapfs_guarded_copy_end: u8;
    }

    /// From here on the loop over blocks is faster than `rep movsb`, in bytes.
    pub(super) const LONG: usize = 64 << 10;

    /// si_code of bad memory found while nobody touched it (asm-generic/siginfo.h).
    const BUS_MCEERR_AO: i32 = 5;

    /// The previous action of SIGBUS.
    static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

    /// The result of [`install`]. Copies are made only once it says that the handler is in place.
    static INSTALLED: OnceLock<Result<(), Errno>> = OnceLock::new();

    pub(super) fn guarded(to: *mut u8, from: *const u8, len: usize) -> usize {
        if INSTALLED.get() != Some(&Ok(())) {
            return 0;
        }
        // SAFETY: one side is a live buffer of `len` bytes and the other a range of a live
        // mapping that allows the access; they cannot overlap, since no buffer of ours lies in a
        // mapping. A page of the mapping that is gone ends the copy early by the handler.
        let left = unsafe { mmapfs_guarded_copy(to, from, len) };
        len.saturating_sub(left)
    }

    pub(super) fn install() -> Result<(), Errno> {
        *INSTALLED.get_or_init(set_handler)
    }

    fn set_handler() -> Result<(), Errno> {
        let mut previous = plain_action();
        // SAFETY: a null action only reads the present one into `previous`, which is alive.
        check(unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) })?;
        PREVIOUS.get_or_init(|| previous);
        put_in_place()
    }

    /// Makes this handler the action of SIGBUS.
    fn put_in_place() -> Result<(), Errno> {
        let mut action = plain_action();
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and is async-signal-safe:
        // it compares addresses and sets a register, or calls sigaction(2), raise(3) and the
        // handler that was there before.
        check(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) })
    }

    /// The default action, with no flags and no signals blocked.
    fn plain_action() -> libc::sigaction {
        // SAFETY: a sigaction of zero bytes is SIG_DFL, no flags and an empty set.
        unsafe { std::mem::zeroed() }
    }

    extern "C" fn on_bus_error(
        signal: i32,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: with SA_SIGINFO the kernel passes what it knows of the signal.
        let code = unsafe { (*info).si_code };
        let is_fault = code > 0 && code != BUS_MCEERR_AO;
        if is_fault && ends_copy(context) {
            return;
        }
        let previous = PREVIOUS.get().copied().unwrap_or_else(plain_action);
        if ![libc::SIG_DFL, libc::SIG_IGN].contains(&previous.sa_sigaction) {
            call(&previous, signal, info, context);
            return if_given_up(code);
        }
        if is_fault {
            act(&previous); // The instruction is tried again and faults again.
        } else if code != BUS_MCEERR_AO && previous.sa_sigaction != libc::SIG_IGN {
            act(&plain_action());
            die();
        }
    }

    /// Follows an earlier handler that has given a signal up by the default action, as that of the
    /// standard library of Rust does with all but an overflow of the stack. Of a fault the process
    /// dies by its retry.
    fn if_given_up(code: i32) {
        let mut present = plain_action();
        // SAFETY: a null action only reads the present one into `present`, which is alive.
        unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut present) };
        if present.sa_sigaction != libc::SIG_DFL {
            return;
        }
        if code == BUS_MCEERR_AO {
            // The arguments are those that were good before.
            let _ = put_in_place();
        } else if code <= 0 {
            die();
        }
    }

    fn die() {
        // SAFETY: takes a number; SIGBUS is not blocked here (SA_NODEFER) and kills at once.
        unsafe { libc::raise(libc::SIGBUS) };
    }

    /// Ends the copy that was interrupted in this context; false where that was other code.
    fn ends_copy(context: *mut libc::c_void) -> bool {
        let context = context.cast::<libc::ucontext_t>();
        // SAFETY: with SA_SIGINFO the kernel passes the context of the interrupted thread, which
        // is alive and ours to change until the handler returns.
        let registers = unsafe { &mut (*context).uc_mcontext.gregs };
        let at = &mut registers[libc::REG_RIP as usize];
        let next = behind(*at);
        if let Some(next) = next {
            *at = next;
        }
        next.is_some()
    }

    /// Calls an earlier handler as the kernel would: with the signals blocked that it asked for.
    fn call(
        previous: &libc::sigaction,
        signal: i32,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        let mut blocked = previous.sa_mask;
        if previous.sa_flags & libc::SA_NODEFER == 0 {
            // SAFETY: the set is alive.
            unsafe { libc::sigaddset(&raw mut blocked, libc::SIGBUS) };
        }
        let mut before = plain_action().sa_mask;
        // SAFETY: both sets outlive the call.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut before) };
        let address = previous.sa_sigaction;
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: the address was installed as a handler that takes these three arguments.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(address) };
            handler(signal, info, context);
        } else {
            // SAFETY: the address was installed as a handler that takes the number of the signal.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(i32)>(address) };
            handler(signal);
        }
        // SAFETY: the set outlives the call; the present one is not asked for.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut())
        };
    }

    /// Where a copy that faulted at an address goes on; `None` when no copy is there.
    fn behind(at: i64) -> Option<i64> {
        let blocks = &raw const mmapfs_guarded_copy_blocks as i64;
        let rest = &raw const mmapfs_guarded_copy_rest as i64;
        if (blocks..rest).contains(&at) {
            return Some(rest);
        }
        let end = &raw const mmapfs_guarded_copy_end as i64;
        (at == &raw const mmapfs_guarded_copy_move as i64).then_some(end)
    }

    fn act(action: &libc::sigaction) {
        // SAFETY: `action` is one that the kernel gave or the default; the call is
        // async-signal-safe. It fails for bad arguments only, and these are good.
        unsafe { libc::sigaction(libc::SIGBUS, action, std::ptr::null_mut()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod copy {
    use rustix::io::Errno;

    pub(super) fn guarded(_to: *mut u8, _from: *const u8, _len: usize) -> usize {
        0
    }

    pub(super) fn install() -> Result<(), Errno> {
        Ok(())
    }
}
