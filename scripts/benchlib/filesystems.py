"""The candidates: how each is mounted over the same directory, watched, and unmounted.

Daemons run in the foreground as children of the bench, so that each is known by its pid from the start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

from . import machine
from .machine import Failed, end_group, run, wait_until, works
from .results import BARE

MMAPFS, FLOOR = "mmapfs", "floor"
MOUNT_SECONDS = 5

# The needs of a workload, of which a candidate meets some.
WRITES = "writes"
READS = "reads"  # no writing
CONTENT = "content"  # the reading of one big file
COPIES = "copies"  # changes beside a directory that stays as it is
ALL = (WRITES, READS, CONTENT)


@dataclass(frozen=True)
class Candidate:
    """A way to show a directory. {source}, {empty}, {upper} and {scratch} in `options` stand for directories."""

    name: str
    what: str
    program: str = ""  # the daemon; without one it is the kernel, or the bare directory
    options: tuple[str, ...] = ()
    source: str = "{source}"  # "" where the options name it
    meets: tuple[str, ...] = ALL
    peer: bool = False  # a FUSE filesystem to be compared with
    preloads: bool = False  # reads every name at its start and stays in the foreground: no rows of cold or start
    in_memory: bool = False  # a copy that is gone when it is unmounted
    verb: tuple[str, ...] = ()
    build_of: str = ""  # for another build of a candidate: the name of that candidate

    @property
    def kind(self) -> str:
        return self.build_of or self.name

    @property
    def copies(self) -> bool:
        """Whether it keeps changes beside the directory."""
        return COPIES in self.meets and self.name != BARE

    def built_by(self, program: str) -> Candidate:
        """The same candidate with another program."""
        return replace(self, name=f"{self.name}={program}", program=str(Path(program).resolve()), build_of=self.name)


def _mmapfs(name: str, what: str, options: str, **others) -> Candidate:
    return Candidate(name, what, MMAPFS, ("-o", options), verb=("mount",), **others)


OVER = "lowerdir={source},upperdir={upper},workdir={scratch}"
UPPER = "lowerdir={empty},upperdir={source},workdir={scratch}"

CANDIDATES = (
    Candidate(BARE, "the directory itself; in rows of copies a plain copy of it", meets=(*ALL, COPIES)),
    _mmapfs(MMAPFS, "passthrough where the kernel allows it", "access=write"),
    _mmapfs("mmapfs-mapped", "the daemon answers from its mapping", "access=write,plane=mapped"),
    _mmapfs("mmapfs-noopen", "read-only, no requests to open", "access=read,open=none", meets=(READS, CONTENT)),
    Candidate(FLOOR, "examples/floor, the least of a daemon", FLOOR, preloads=True),
    Candidate("floor-cached", "the same, the kernel reads by requests", FLOOR, ("--cached",), meets=(CONTENT,),
              preloads=True),
    Candidate("overlayfs", "the kernel's, over an empty directory", options=("-o", UPPER)),
    Candidate("fuse-overlayfs", "the same in FUSE", "fuse-overlayfs", ("-o", UPPER), source="", peer=True),
    _mmapfs("mmapfs-scratch", "the scratch on the same disk", "access=copy,scratch={scratch}", meets=(*ALL, COPIES)),
    _mmapfs("mmapfs-scratch-ram", "the scratch in memory", "access=copy", meets=(COPIES,), in_memory=True),
    # Without these options it copies all of a file for its mode, and cannot rename directories.
    Candidate("overlayfs-copy", "the kernel's, the directory below",
              options=("-o", OVER + ",redirect_dir=on,metacopy=on"), meets=(COPIES,)),
    Candidate("fuse-overlayfs-copy", "the same in FUSE", "fuse-overlayfs", ("-o", OVER), source="", meets=(COPIES,)),
    # libfuse 2 writes single pages by default.
    Candidate("bindfs", "a peer", "bindfs", ("-o", "big_writes"), peer=True),
    # Without a page cache there is no mmap; readdir is not cached by default; less than 4 GiB free counts as full.
    Candidate("mergerfs", "a peer", "mergerfs", (
        "-o", "cache.files=partial,dropcacheonclose=false,cache.readdir=true,category.create=ff,minfreespace=0"),
        peer=True),
    Candidate("unionfs-fuse", "a peer", "unionfs", ("-o", "big_writes"), source="{source}=RW", peer=True),
)


class Mounts:
    """Mounts candidates over one directory, one at a time, and knows their daemon."""

    def __init__(self, work: Path, source: Path, beside: Path, built: dict[str, Path]) -> None:
        self.point = work / "view"
        self.log = work / "daemon.log"
        self.source = source
        self.built = built  # the programs of this project
        self.daemon: subprocess.Popen | None = None
        # On the source's filesystem:
        self.scratch, self.upper, self.empty = (beside / name for name in ("scratch", "upper", "empty"))
        for directory in (self.point, self.empty):
            directory.mkdir()
        self.unmounted = os.stat(self.point).st_dev

    def program(self, candidate: Candidate) -> str:
        return str(self.built.get(candidate.program, candidate.program))

    def command(self, candidate: Candidate, foreground: bool = True) -> list[str]:
        """The command that mounts the candidate at `point`."""
        directories = {"source": self.source, "empty": self.empty, "scratch": self.scratch, "upper": self.upper}
        options = [option.format(**directories) for option in candidate.options]
        if not candidate.program:
            return ["mount", "-t", "overlay", "overlay", *options, str(self.point)]
        stay = ["-f"] if foreground and not candidate.preloads else []
        source = [candidate.source.format(**directories)] if candidate.source else []
        return [self.program(candidate), *candidate.verb, *stay, *options, *source, str(self.point)]

    def version(self, candidate: Candidate) -> str:
        """The first line of its program's answer. Raises Failed or OSError if the candidate cannot be mounted."""
        try:
            os.listdir(self.mount(candidate))
        finally:
            self.unmount()
        asking = [self.program(candidate), "--version"]
        lines = run(asking).splitlines() if candidate.program and works(asking) else []
        return next((line for line in lines if candidate.program in line), candidate.program)

    def clear(self) -> None:
        """Removes the changes that copies have kept."""
        for directory in (self.scratch, self.upper):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()

    def mount(self, candidate: Candidate, again: bool = False) -> Path:
        """Mounts it and returns the directory where it answers. Again: with the changes that a copy has kept."""
        if candidate.name == BARE:
            return self.source
        if not again:
            self.clear()
        if not candidate.program:
            run(self.command(candidate))
            return self.point
        with open(self.log, "wb") as log:
            self.daemon = daemon = subprocess.Popen(self.command(candidate), stdin=subprocess.DEVNULL, stdout=log,
                                                    stderr=log, start_new_session=True)
        self._wait(lambda: daemon.poll() is not None or self._answers())
        if daemon.poll() is not None:
            raise Failed((self.log.read_text(errors="replace").strip() or "the daemon ended").splitlines()[-1])
        return self.point

    def time_to_answer(self, candidate: Candidate) -> float:
        """Seconds from the start of the command, which puts a daemon into the background, to its mount's answer."""
        self.clear()
        begun = time.perf_counter()
        run(self.command(candidate, foreground=False), timeout=20, output=False)
        self._wait(self._answers, nap=0.0002)
        return time.perf_counter() - begun

    def _answers(self) -> bool:
        try:
            return os.stat(self.point).st_dev != self.unmounted
        except OSError:
            return False

    @staticmethod
    def _wait(condition, nap: float = 0.001) -> None:
        if not wait_until(condition, MOUNT_SECONDS, nap):
            raise Failed(f"the mount does not answer in {MOUNT_SECONDS} s")

    def unmount(self) -> None:
        """Removes every mount at the point and ends its daemon. It may be called at any time."""
        for attempt in range(40):
            if not self._mounted() or works(["umount", str(self.point)], timeout=10):
                break
            if attempt == 20:
                # Ends the connection of a FUSE mount: callers that wait for its daemon get an error.
                works(["umount", "-f", "-c", str(self.point)], timeout=5)
            time.sleep(0.05)
        while self._mounted() and works(["umount", "-l", str(self.point)]):
            pass
        daemon, self.daemon = self.daemon, None
        try:
            if daemon:
                daemon.wait(10)
        except subprocess.TimeoutExpired:
            end_group(daemon)

    def _mounted(self) -> bool:
        return any(line.split()[4] == str(self.point) for line in Path("/proc/self/mountinfo").read_text().splitlines())

    def stored(self, candidate: Candidate) -> int:
        """Bytes that a mounted copy has kept so far."""
        if candidate.in_memory:
            about = os.statvfs(self.point)
            return (about.f_blocks - about.f_bfree) * about.f_frsize
        return sum(os.lstat(os.path.join(above, name)).st_blocks * 512 for kept in (self.scratch, self.upper)
                   for above, directories, names in os.walk(kept) for name in (*directories, *names))

    # -- the daemon: None without one

    def memory(self) -> int | None:
        return machine.bytes_of(f"/proc/{self.daemon.pid}/status", "VmRSS") if self.daemon else None

    def read_bytes(self) -> int | None:
        """Bytes that it has read by system calls, its requests included."""
        return int(machine.field(f"/proc/{self.daemon.pid}/io", "rchar")) if self.daemon else None

    def descriptors(self) -> int | None:
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd")) if self.daemon else None
