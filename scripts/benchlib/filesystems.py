"""The candidates: how each is mounted over the same directory, watched, and unmounted.

Daemons run in the foreground as children of the bench, so that each is known by its pid from the start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from .shell import Failed, end_group, first_line, quietly, run, wait_until
from .stats import BARE

MMAPFS = "mmapfs"
FLOOR, FLOOR_CACHED = "floor", "floor-cached"
SCRATCH = "mmapfs-scratch"
MOUNT_SECONDS = 5


@dataclass(frozen=True)
class Candidate:
    """Something that shows a directory. In `options`, {source}, {empty}, {upper} and {scratch} stand for
    directories."""

    name: str
    label: str
    colour: str
    program: str = ""  # the daemon; without one it is the kernel, or the bare directory
    package: str = ""
    options: tuple[str, ...] = ()
    foreground: tuple[str, ...] = ("-f",)
    source: str = "{source}"  # "" where the options name it
    read_only: bool = False
    peer: bool = False  # a FUSE peer, to be compared with
    preloads: bool = False  # it reads every name at its start, and stays in the foreground: no rows of cold or start
    verb: tuple[str, ...] = field(default=())
    copies: bool = False  # what is changed is kept beside the directory, which stays as it is
    forgets: bool = False  # and is gone when it is unmounted
    only_copying: bool = False  # no rows but those of copies
    only_reading: bool = False  # no rows but those of reading files

    @property
    def has_daemon(self) -> bool:
        return bool(self.program)


OVER = "lowerdir={source},upperdir={upper},workdir={scratch}"
UPPER = "lowerdir={empty},upperdir={source},workdir={scratch}"

CANDIDATES = (
    Candidate(BARE, "bare directory", "#666666"),
    Candidate(MMAPFS, "mmapfs", "#d62728", MMAPFS, options=("-o", "access=write"), verb=("mount",)),
    Candidate("mmapfs-mapped", "mmapfs, mapped plane", "#ff9896", MMAPFS,
              options=("-o", "access=write,plane=mapped"), verb=("mount",)),
    Candidate("mmapfs-noopen", "mmapfs, read-only, open=none", "#8c1a1b", MMAPFS,
              options=("-o", "access=read,open=none"), verb=("mount",), read_only=True),
    Candidate(FLOOR, "minimal daemon", "#17becf", FLOOR, foreground=(), preloads=True),
    Candidate(FLOOR_CACHED, "minimal daemon, read by requests", "#9edae5", FLOOR, options=("--cached",), foreground=(),
              read_only=True, preloads=True, only_reading=True),
    Candidate("overlayfs", "kernel overlayfs", "#999933", options=("-o", UPPER)),
    Candidate("fuse-overlayfs", "fuse-overlayfs", "#1f77b4", "fuse-overlayfs", "fuse-overlayfs",
              ("-o", UPPER), source="", peer=True),
    Candidate(SCRATCH, "mmapfs, scratch on disk", "#ff7f0e", MMAPFS, options=("-o", "access=copy,scratch={scratch}"),
              verb=("mount",), copies=True),
    Candidate("mmapfs-scratch-ram", "mmapfs, scratch in memory", "#ffbb78", MMAPFS, options=("-o", "access=copy"),
              verb=("mount",), copies=True, forgets=True, only_copying=True),
    # Without them it copies all of a file for its mode, and cannot rename directories.
    Candidate("overlayfs-copy", "kernel overlayfs, as a copy", "#cccc66",
              options=("-o", OVER + ",redirect_dir=on,metacopy=on"), copies=True, only_copying=True),
    Candidate("fuse-overlayfs-copy", "fuse-overlayfs, as a copy", "#aec7e8", "fuse-overlayfs", "fuse-overlayfs",
              ("-o", OVER), source="", copies=True, only_copying=True),
    # libfuse 2 writes pages one by one unless told otherwise.
    Candidate("bindfs", "bindfs", "#2ca02c", "bindfs", "bindfs", ("-o", "big_writes"), peer=True),
    # Without a page cache there is no mmap; readdir is not cached by default; less than 4 GiB free would be full.
    Candidate("mergerfs", "mergerfs", "#9467bd", "mergerfs", "mergerfs",
              ("-o", "cache.files=partial,dropcacheonclose=false,cache.readdir=true,category.create=ff,minfreespace=0"),
              peer=True),
    Candidate("unionfs-fuse", "unionfs-fuse", "#e377c2", "unionfs", "unionfs-fuse", ("-o", "big_writes"),
              source="{source}=RW", peer=True),
)


def blocks_below(directory: Path) -> int:
    """Bytes that a tree takes on the disk."""
    return sum(os.lstat(os.path.join(above, name)).st_blocks * 512
               for above, directories, names in os.walk(directory) for name in (*directories, *names))


class Mounts:
    """Mounts candidates over one directory, and knows all of its own mounts and daemons."""

    def __init__(self, work: Path, source: Path, beside: Path, built: dict[str, Path]) -> None:
        self.point = work / "view"
        self.point.mkdir()
        self.log = work / "daemon.log"
        self.source = source
        self.beside = beside  # a directory on the source's filesystem
        self.built = built  # programs of ours
        self.daemon: subprocess.Popen | None = None
        self.scratch = beside / "overlay-work"
        self.upper = beside / "overlay-upper"
        self.empty = beside / "empty"
        self.empty.mkdir()

    # -- commands

    def program(self, candidate: Candidate) -> str:
        return str(self.built.get(candidate.program, candidate.program))

    def command(self, candidate: Candidate, foreground: bool = True) -> list[str]:
        """What mounts the candidate at `point`."""
        places = {"source": self.source, "empty": self.empty, "scratch": self.scratch, "upper": self.upper}
        options = [option.format(**places) for option in candidate.options]
        if not candidate.has_daemon:
            return ["mount", "-t", "overlay", "overlay", *options, str(self.point)]
        source = [candidate.source.format(**places)] if candidate.source else []
        return [self.program(candidate), *candidate.verb, *(candidate.foreground if foreground else ()), *options,
                *source, str(self.point)]

    def why_not(self, candidate: Candidate) -> str:
        """Why a candidate cannot take part; "" if it can. It is mounted for a moment to find out."""
        if candidate.has_daemon and not shutil.which(self.program(candidate)):
            package = f" (Debian package {candidate.package})" if candidate.package else ""
            return f"{candidate.program} is not there{package}"
        try:
            root = self.mount(candidate)
            os.listdir(root)
        except (Failed, OSError) as error:
            return str(error)
        finally:
            self.unmount()
        return ""

    # -- mounting

    def clear(self) -> None:
        """Takes away what copies have kept."""
        for directory in (self.scratch, self.upper):
            shutil.rmtree(directory, ignore_errors=True)

    def _clear(self) -> None:
        self.clear()
        self.scratch.mkdir()
        self.upper.mkdir()

    def mount(self, candidate: Candidate, again: bool = False) -> Path:
        """Mounts it and returns where it answers. Again: with what a copy has kept. Raises Failed."""
        if candidate.name == BARE:
            return self.source
        if not again:
            self._clear()
        if not candidate.has_daemon:
            run(self.command(candidate))
            return self.point
        before = os.stat(self.point).st_dev
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen(self.command(candidate), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                           start_new_session=True)
        daemon = self.daemon
        if not wait_until(lambda: daemon.poll() is not None or self._answers(before), MOUNT_SECONDS):
            raise Failed(f"the mount does not answer in {MOUNT_SECONDS} s")
        if daemon.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise Failed(lines[-1] if lines else f"the daemon ended with {daemon.returncode}")
        return self.point

    def _answers(self, before: int) -> bool:
        try:
            return os.stat(self.point).st_dev != before
        except OSError:
            return False

    def time_to_answer(self, candidate: Candidate) -> float:
        """Seconds from starting the command, which puts a daemon into the background, to an answer of its mount."""
        if candidate.name == BARE:
            raise Failed("nothing to start")
        self._clear()
        before = os.stat(self.point).st_dev
        begun = time.perf_counter()
        run(self.command(candidate, foreground=False), timeout=20, output=False)
        if not wait_until(lambda: self._answers(before), MOUNT_SECONDS, nap=0.0002):
            raise Failed(f"the mount does not answer in {MOUNT_SECONDS} s")
        return time.perf_counter() - begun

    def unmount(self) -> None:
        """Takes away whatever is mounted at the point, and ends its daemon. It may be called at any time."""
        for attempt in range(40):
            if not self.is_mounted() or quietly(["umount", str(self.point)], timeout=10):
                break
            if attempt == 20:
                self.abort()
            time.sleep(0.05)
        while self.is_mounted() and quietly(["umount", "-l", str(self.point)]):
            pass
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            end_group(daemon)

    def is_mounted(self) -> bool:
        return any(line.split()[4] == str(self.point) for line in Path("/proc/self/mountinfo").read_text().splitlines())

    def abort(self) -> None:
        """Ends the connection of a FUSE mount: who waits for its daemon gets an error."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[4] == str(self.point) and " - fuse" in line:
                minor = fields[2].split(":")[1]
                try:
                    Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
                except OSError:
                    quietly(["umount", "-f", str(self.point)], timeout=5)

    # -- the daemon

    def stored(self, candidate: Candidate) -> int:
        """Bytes that a mounted copy has kept so far."""
        if candidate.forgets:
            about = os.statvfs(self.point)
            return (about.f_blocks - about.f_bfree) * about.f_frsize
        return sum(blocks_below(directory) for directory in (self.scratch, self.upper))

    def read_bytes(self) -> int | None:
        """Bytes that the daemon has read by system calls, its requests included."""
        if not self.daemon:
            return None
        fields = Path(f"/proc/{self.daemon.pid}/io").read_text().split()
        return int(fields[fields.index("rchar:") + 1])

    def cpu(self) -> float | None:
        """Seconds of CPU that the daemon has used."""
        fields = self._stat()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None

    def _stat(self) -> list[str]:
        if not self.daemon:
            return []
        try:
            return Path(f"/proc/{self.daemon.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return []

    def memory(self, name: str = "VmRSS") -> int | None:
        """Bytes of a field of the daemon's status."""
        if self.daemon:
            for line in Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines():
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
        return None

    def descriptors(self) -> int | None:
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd")) if self.daemon else None

    def version(self, candidate: Candidate) -> str:
        if candidate.name == BARE:
            return ""
        if candidate.program == FLOOR:
            return "examples/floor"
        if not candidate.has_daemon:
            return f"Linux {os.uname().release}"
        return first_line([self.program(candidate), "--version"], candidate.program)
