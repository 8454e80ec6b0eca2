"""One candidate's turn at one workload: it is mounted for this turn alone."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

from .data import Data
from .filesystems import WRITES, Candidate, Mounts
from .machine import Disk, Failed, Probe, drop_caches, run
from .results import BANDWIDTH, Row, Sample


@dataclass(frozen=True)
class Workload:
    """Rows that are measured in one turn, by a function that has the candidate mounted each time it needs it."""

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Turn], None]
    needs: str = WRITES  # candidates that do not meet it take no part
    data: str = ""  # the part of the data that it needs
    cheap: bool = True  # False: one or two rounds are enough


@dataclass(frozen=True)
class Bench:
    """The things that all turns work with."""

    data: Data
    disk: Disk
    mounts: Mounts
    probe: Probe
    timeout: float  # seconds that one step may take


class Turn:
    def __init__(self, bench: Bench, rows: list[Row], candidate: Candidate, number: int) -> None:
        self.data, self.disk, self.mounts = bench.data, bench.disk, bench.mounts
        self._probe, self.timeout = bench.probe, bench.timeout
        self.sizes = bench.data.sizes
        self.candidate = candidate
        self.number = number  # of the round
        self.samples: list[Sample] = []
        self.bare = self.root = self.data.root  # the directory itself, and as the candidate shows it while mounted
        self._wanted = {row.id: row for row in rows}

    @property
    def scratch(self) -> Path:
        """The scratch directory as the candidate shows it."""
        return self.root / "scratch"

    @property
    def stored(self) -> Path:
        """The scratch directory on the disk, with new files complete."""
        return self.mounts.scratch / "upper" / "scratch" if self.candidate.copies else self.data.scratch

    # -- mounting

    @contextmanager
    def mounted(self, cold: bool = False, again: bool = False) -> Iterator[Path]:
        """Mounts the candidate. Cold: the kernel's caches hold only the pages that the mount itself needed."""
        if cold:
            drop_caches()
        self.root = self.mounts.mount(self.candidate, again)
        try:
            yield self.root
        finally:
            self.root = self.bare
            self.mounts.unmount()

    @contextmanager
    def written(self) -> Iterator[Path]:
        """The scratch directory after the mount is gone, for checks. A copy is mounted again."""
        if not self.candidate.copies:
            yield self.data.scratch
            return
        with self.mounted(again=True):
            yield self.scratch

    @contextmanager
    def cleared(self) -> Iterator[Path]:
        """The scratch directory, empty on the disk before and after."""
        self._clear()
        try:
            yield self.data.scratch
        finally:
            self._clear()

    def _clear(self) -> None:
        self.mounts.clear()
        shutil.rmtree(self.data.scratch)
        self.data.scratch.mkdir()
        self.disk.sync()

    def warm_memory(self, size: float) -> None:
        """Has the kernel take pages for twice `size` bytes of files, and give them back.

        A virtual machine that has returned idle memory to its host waits for it page by page on the next use, several
        times as long as the write itself takes. The first candidate after a pause would pay for it.
        """
        self.probe("write", self.data.scratch / "memory", size=int(2 * size))
        (self.data.scratch / "memory").unlink()

    # -- measuring

    def probe(self, job: str, path: str | Path, cwd: Path | None = None, **keys: int) -> tuple[float, int]:
        """A job of the probe that is not measured, in the candidate's root by default."""
        return self._probe(job, path, cwd or self.root, self.timeout, **keys)

    def time_probe(self, row: str, job: str, path: str | Path, cwd: Path | None = None, **keys: int) -> int:
        """Measures a job of the probe and returns its result. Rows that end in 4 have as many clients."""
        seconds, result = self.probe(job, path, cwd, **{"clients": 4 if row.endswith("4") else 1, **keys})
        bandwidth = row in self._wanted and self._wanted[row].kind == BANDWIDTH
        self.record(row, result / seconds / 1e6 if bandwidth else seconds)
        return result

    def time_command(self, row: str, command: list[str], cwd: Path | None = None, times_itself: bool = False) -> str:
        """Measures a program and returns its output. One that times itself prints the seconds first."""
        begun = time.perf_counter()
        printed = self.command(command, cwd)
        self.record(row, float(printed.split()[0]) if times_itself else time.perf_counter() - begun)
        return printed

    def command(self, command: list[str], cwd: Path | None = None) -> str:
        """A program that is not measured."""
        return run(command, cwd or self.root, self.timeout)

    def record(self, row: str, value: float) -> None:
        """Keeps a measurement if its row is wanted."""
        if row in self._wanted:
            self.samples.append(Sample(row, self.candidate.name, self.number, value))

    @staticmethod
    def expect(what: str, got: object, expected: object) -> None:
        """Fails the row if the candidate showed something wrong."""
        if got != expected:
            raise Failed(f"wrong result: {what}: {got!s:.60}, not {expected!s:.60}")
