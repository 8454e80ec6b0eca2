"""One candidate's turn at one workload: it is mounted for this turn alone."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

from .data import Data
from .disk import Disk, drop_caches
from .filesystems import Candidate, Mounts
from .rows import BANDWIDTH, Row, Sample
from .shell import Failed, Probe, run


@dataclass(frozen=True)
class Workload:
    """Rows that are measured in one turn. A function with a mount of its own each time it asks for one."""

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Turn], None]
    read_only: bool = False  # it only reads: candidates that only read take part
    of_content: bool = False  # it reads one big file: a candidate that is only for that takes part
    cheap: bool = True  # False: one or two rounds are enough
    copying: bool = False  # only for candidates that copy, beside the bare directory


@dataclass(frozen=True)
class Place:
    """What a turn works with; the same for all of them."""

    data: Data
    disk: Disk
    mounts: Mounts
    probe: Probe
    timeout: float  # seconds that one step may take


class Turn:
    def __init__(self, place: Place, workload: Workload, candidate: Candidate, number: int, wanted: set[str]) -> None:
        self.data = place.data
        self.sizes = place.data.sizes
        self.disk = place.disk
        self.mounts = place.mounts
        self.timeout = place.timeout
        self._probe = place.probe
        self.candidate = candidate
        self.number = number
        self.wanted = wanted
        self.samples: list[Sample] = []
        self.root = self.data.root
        self._rows = {row.id: row for row in workload.rows}
        self._cpu: float | None = None

    @property
    def bare(self) -> Path:
        """The directory itself, for making ready and for checking."""
        return self.data.root

    @property
    def scratch(self) -> Path:
        """The scratch directory as the candidate shows it."""
        return self.root / "scratch"

    def wants(self, *rows: str) -> bool:
        return any(row in self.wanted for row in rows)

    @property
    def stored(self) -> Path:
        """The scratch directory as it lies on the disk, with what was made in it whole."""
        return self.mounts.scratch / "upper" / "scratch" if self.candidate.copies else self.data.scratch

    # -- mounting

    @contextmanager
    def mounted(self, cold: bool = False) -> Iterator[Path]:
        """Mounts the candidate. Cold: nothing is in the kernel's caches but what the mount itself needed."""
        if cold:
            drop_caches()
        self.root = self.mounts.mount(self.candidate)
        try:
            yield self.root
        finally:
            self.root = self.data.root
            self.mounts.unmount()

    @contextmanager
    def written(self) -> Iterator[Path]:
        """The scratch directory with what was written, to be checked when the mount is gone: that of a copy is mounted
        again."""
        if not self.candidate.copies:
            yield self.data.scratch
            return
        self.root = self.mounts.mount(self.candidate, again=True)
        try:
            yield self.scratch
        finally:
            self.root = self.data.root
            self.mounts.unmount()

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
        for path in list(self.data.scratch.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        self.disk.sync()

    def warm_memory(self, size: int) -> None:
        """Has the kernel take pages for twice `size` bytes of files, and give them back.

        A virtual machine that gives memory back to its host after a moment waits for it page by page when it is used
        again, several times as long as the write itself takes: whoever comes after a pause would pay for it.
        """
        self.probe("write", self.data.scratch / "memory", size=2 * size, clients=2)
        for path in self.data.scratch.glob("memory.*"):
            path.unlink()

    # -- measuring

    def probe(self, job: str, path: str | Path, cwd: Path | None = None, **keys: int) -> tuple[float, int]:
        """A job of the probe that is not a measurement, in the candidate's root unless told otherwise."""
        return self._probe(job, path, cwd=cwd or self.root, timeout=self.timeout, **keys)

    def time_probe(self, row: str, job: str, path: str | Path, cwd: Path | None = None, **keys: int) -> int:
        """Measures a job of the probe and returns its result."""
        self.mark()
        seconds, result = self.probe(job, path, cwd, **keys)
        kind = self._rows[row].kind
        self.record(row, result / seconds / 1e6 if kind == BANDWIDTH else seconds)
        return result

    def time_command(self, row: str, command: list[str], cwd: Path | None = None, output: bool = True) -> str:
        """Measures a program from its start to its end and returns what it printed."""
        self.mark()
        begun = time.perf_counter()
        printed = run(command, cwd=cwd or self.root, timeout=self.timeout, output=output)
        self.record(row, time.perf_counter() - begun)
        return printed

    def command(self, command: list[str], cwd: Path | None = None) -> str:
        """A program that is not measured."""
        return run(command, cwd=cwd or self.root, timeout=self.timeout)

    def mark(self) -> None:
        """What the daemon uses from here on is the next record's."""
        self._cpu = self.mounts.cpu()

    def record(self, row: str, value: float) -> None:
        """Keeps a measurement if its row is wanted."""
        if row not in self.wanted:
            return
        cpu = self.mounts.cpu()
        used = cpu - self._cpu if cpu is not None and self._cpu is not None else None
        self.samples.append(Sample(row, self.candidate.name, self.number, value, used, self.mounts.memory("VmHWM"),
                                   self.mounts.descriptors()))

    @staticmethod
    def expect(what: str, got: object, expected: object) -> None:
        """Fails the row where the candidate showed something else than what is there."""
        if got != expected:
            raise Failed(f"wrong result: {what}: {got}, not {expected}")
