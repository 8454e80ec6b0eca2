//! fusermount3(1), which mounts and unmounts for users without CAP_SYS_ADMIN.
//!
//! It sends the `/dev/fuse` descriptor over a socket whose number is in `_FUSE_COMMFD`. The socket
//! is its standard input here, so that no descriptor needs to be passed by number. With
//! `auto_unmount` it stays, and unmounts when the other end of the socket is closed.

use std::ffi::OsString;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use super::{busy, flag_words, shared_words};
use crate::config::MountConfig;
use crate::config::options::escape;
use crate::error::Failure;
use crate::shown::Show;

/// Where the program may be. mount(8) can run with a short PATH.
pub(in crate::fuse) const PROGRAMS: [&str; 6] = [
    "fusermount3",
    "/usr/bin/fusermount3",
    "/bin/fusermount3",
    "fusermount",
    "/usr/bin/fusermount",
    "/bin/fusermount",
];

/// A fusermount3 that waits for the end of this process.
#[derive(Debug)]
pub(super) struct Keeper {
    socket: OwnedFd,
    child: Child,
}

impl Keeper {
    /// Lets it end. It unmounts what it finds mounted still.
    pub(super) fn release(mut self) {
        drop(self.socket);
        if let Err(error) = self.child.wait() {
            log::warn!("waiting for fusermount3: {error}");
        }
    }
}

/// Mounts, and gives the `/dev/fuse` descriptor; with `auto_unmount`, the waiting program too.
pub(super) fn mount(config: &MountConfig) -> Result<(OwnedFd, Option<Keeper>), Failure> {
    let failed = |reason: String| Failure::failed(config.mountpoint.shown(), reason);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| failed(format!("making a socket: {}", io::Error::from(errno))))?;
    let mut child = spawn(|command| {
        let stdin = theirs.try_clone()?;
        command.env("_FUSE_COMMFD", "0").stdin(stdin).arg("-o").arg(options(config)).arg("--");
        command.arg(&config.mountpoint);
        Ok(())
    })?;
    drop(theirs);
    match receive(&ours) {
        Ok(Some(device)) if config.kernel.auto_unmount => {
            Ok((device, Some(Keeper { socket: ours, child })))
        }
        Ok(Some(device)) => {
            let (_, said) = end(&mut child)?;
            if !said.is_empty() {
                log::warn!("{said}");
            }
            Ok((device, None))
        }
        Ok(None) => Err(failed(format!("mounting it: {}", refusal(end(&mut child)?)))),
        Err(errno) => {
            drop(ours);
            let (error, said) = (io::Error::from(errno), refusal(end(&mut child)?));
            Err(failed(format!("mounting it: no descriptor came: {error}; {said}")))
        }
    }
}

/// Unmounts.
pub(super) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    let mut child = spawn(|command| {
        command.stdin(Stdio::null()).arg("-u");
        if lazy {
            command.arg("-z");
        }
        command.arg("--").arg(mountpoint);
        Ok(())
    })?;
    let (status, said) = end(&mut child)?;
    if status.success() {
        return Ok(());
    }
    if said.contains("busy") {
        return Err(busy(mountpoint));
    }
    let reason = format!("unmounting it: {}", refusal((status, said)));
    Err(Failure::failed(mountpoint.shown(), reason))
}

/// Starts the first program that is there, with its errors in a pipe.
fn spawn(complete: impl Fn(&mut Command) -> io::Result<()>) -> Result<Child, Failure> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdout(Stdio::null()).stderr(Stdio::piped());
        match complete(&mut command).and_then(|()| command.spawn()) {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Failure::failed(program, format_args!("starting it: {error}")));
            }
        }
    }
    let reason = "it is not there, and without root nothing else can mount: install `fuse3`";
    Err(Failure::failed("fusermount3", reason))
}

/// Waits for its end. Gives how it ended, and everything that it wrote to its errors as one line.
fn end(child: &mut Child) -> Result<(ExitStatus, String), Failure> {
    let failed = |error: io::Error| {
        Failure::failed("fusermount3", format_args!("waiting for its end: {error}"))
    };
    let mut text = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_end(&mut text).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines.collect::<Vec<_>>().join("; ");
    Ok((status, said))
}

/// Why it did not do what it was told.
fn refusal((status, said): (ExitStatus, String)) -> String {
    if said.is_empty() { format!("fusermount3 ended with {status}") } else { said }
}

/// Waits for the descriptor. `None` when the other end was closed without one.
fn receive(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(received)
}

/// The argument of `-o`: commas and backslashes within a value are escaped.
pub(super) fn options(config: &MountConfig) -> OsString {
    let kernel = &config.kernel;
    let mut words: Vec<Vec<u8>> =
        flag_words(kernel).into_iter().map(|word| word.as_bytes().to_vec()).collect();
    words.extend(shared_words(kernel));
    words.push([b"fsname=".as_slice(), &escape(&kernel.fsname)].concat());
    words.push(format!("subtype={}", kernel.subtype).into_bytes());
    if kernel.auto_unmount {
        words.push(b"auto_unmount".to_vec());
    }
    OsString::from_vec(words.join(&b','))
}
