"""The machine: programs with a time limit, the probe, the filesystem that the data lies on."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from pathlib import Path


class Failed(Exception):
    """A step did not work; the message goes into the report."""


def end_group(process: subprocess.Popen) -> None:
    """Kills a process and those that it started. One that waits for a hung daemon stays until the mount goes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def run(command: list[str], cwd: Path | None = None, timeout: float = 300, output: bool = True) -> str:
    """Runs a command in a process group of its own and returns its output. Raises Failed."""
    name = os.path.basename(command[0])
    started = subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, text=True, errors="replace",
        stdout=subprocess.PIPE if output else subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        out, error = started.communicate(timeout=timeout)
    except BaseException as problem:
        end_group(started)
        if isinstance(problem, subprocess.TimeoutExpired):
            raise Failed(f"{name}: no end in {timeout:.0f} s") from None
        raise
    if started.returncode:
        raise Failed(f"{name} ended with {started.returncode}: {(error.strip() or 'no message').splitlines()[-1]}")
    return out or ""


def works(command: list[str], timeout: float = 30) -> bool:
    """Whether a command worked that may fail."""
    try:
        run(command, timeout=timeout)
    except (Failed, OSError):
        return False
    return True


def wait_until(condition, seconds: float, nap: float = 0.001) -> bool:
    """Waits for a condition; whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(nap)
    return True


class Probe:
    """The compiled probe.c, which runs the tight loops."""

    def __init__(self, directory: Path) -> None:
        self.program = str(directory / "probe")
        run(["gcc", "-O2", "-Wall", "-o", self.program, str(Path(__file__).with_name("probe.c"))])

    def __call__(self, job: str, path: Path | str, cwd: Path | None = None, timeout: float = 300, size: int = 0,
                 count: int = 0, clients: int = 1, seed: int = 0, generation: int = 0,
                 sync: int = 0) -> tuple[float, int]:
        """Runs a job; seconds, and its result (bytes or a count)."""
        numbers = map(str, (size, count, clients, seed, generation, sync))
        nanoseconds, result = run([self.program, job, str(path), *numbers], cwd, timeout).split()
        return int(nanoseconds) / 1e9, int(result)


class Disk:
    """The place of the data: an ext4 of its own at `root`, which `close` removes.

    It is mounted without discard, with which the creation of files after many removals waits for the disk, by a factor
    of 20 and at any time. All of it is initialised at once, not in the background while something is measured.
    """

    def __init__(self, work: Path, megabytes: int) -> None:
        self.root, self.device = work / "disk", ""
        self.root.mkdir()
        if megabytes == 0:  # The directory itself.
            return
        image, inodes = str(work / "disk.img"), "500000"  # for the tree of the walk, with room for everything else
        run(["truncate", "-s", f"{megabytes}M", image])
        run(["mkfs.ext4", "-q", "-F", "-N", inodes, "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", image])
        # With direct I/O the pages of the filesystem are not cached once more beneath it.
        self.device = run(["losetup", "--find", "--show", "--direct-io=on", image]).strip()
        try:
            run(["mount", "-o", "nodiscard", self.device, str(self.root)])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.device:
            works(["umount", str(self.root)]) or works(["umount", "-l", str(self.root)])
            works(["losetup", "--detach", self.device])

    def sync(self) -> None:
        """Waits for the device, so that the writing of dirty pages does not fall into the next turn."""
        run(["sync", "--file-system", str(self.root)])


def drop_caches() -> None:
    """Empties the kernel's caches of pages, names and inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def field(path: str, name: str) -> str:
    """A field of a file of lines `NAME: VALUE`; "" if it has none."""
    pairs = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def bytes_of(path: str, name: str) -> int:
    """The same, of a field in kB; 0 if it has none."""
    return int((field(path, name) or "0").split()[0]) * 1024


def load() -> str:
    return " ".join(f"{n:.2f}" for n in os.getloadavg())


def describe(data: Path) -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "kernel": platform.release(),
        "processor": f"{field('/proc/cpuinfo', 'model name') or platform.machine()}, {os.cpu_count()} CPUs",
        "memory": f"{bytes_of('/proc/meminfo', 'MemTotal') / 2**30:.1f} GiB",
        "data on": run(["findmnt", "-n", "-o", "FSTYPE,OPTIONS", "--target", str(data)]).strip(),
        "load before": load(),
    }
