"""Work in a copy of a directory that must stay as it is: in scratches and overlays of it, each newly mounted, and in a
plain copy, which is the bare directory's turn.

The attributes of the base are checked after each turn, and the big file page by page in the first round.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

from .filesystems import COPIES
from .results import BARE, Row
from .turn import Turn, Workload
from .workloads import GIT, STATUS, build

KIB, MIB = 1 << 10, 1 << 20
MOUNTS, LONG = 5, 0.1  # seconds


def _state(path: Path) -> tuple[int, ...]:
    found = os.lstat(path)
    return (found.st_ino, found.st_mode, found.st_size, found.st_blocks, found.st_mtime_ns, found.st_ctime_ns)


@contextmanager
def _copy(turn: Turn, name: str, row: str = "") -> Iterator[Path]:
    """A directory with a copy of an entry of the base: a mount, or the scratch directory with a plain copy."""
    if turn.candidate.name == BARE:
        with turn.cleared() as bare:
            turn.time_command(row, ["cp", "-a", "--reflink=never", str(turn.bare / name), str(bare / name)])
            yield bare
        return
    before = _state(turn.bare / name)
    with turn.mounted() as root:
        yield root
    turn.mounts.clear()
    turn.disk.sync()
    turn.expect("the base", _state(turn.bare / name), before)


def _in_copies(turn: Turn, name: str, row: str, step: Callable[[Path], None], mounts: int = MOUNTS) -> None:
    """A step in several new mounts each, until its row has shown that it takes long."""
    for _ in range(mounts):
        if any(sample.row == row and sample.value > LONG for sample in turn.samples):
            return
        with _copy(turn, name) as root:
            step(root)


def _big(turn: Turn) -> None:
    middle = turn.sizes.large // 2 // 4096 * 4096
    random = {"count": turn.sizes.pokes, "seed": 5, "generation": 1}

    def stored(root: Path) -> int:
        return turn.mounts.stored(turn.candidate) if turn.candidate.copies else _state(root / "large")[3] * 512

    def first(root: Path) -> None:
        turn.time_probe("scratch.first", "poke", root / "large", size=middle)

    with _copy(turn, "large", "scratch.copy") as root:
        before, begun = stored(root), turn.mounts.read_bytes()
        first(root)
        with open(root / "large", "rb") as file:
            turn.expect("the byte written", os.pread(file.fileno(), 1, middle + 24), b"x")
        now = stored(root)
        turn.record("scratch.firststored", (now - before) / KIB)
        if begun is not None:
            turn.record("scratch.firstread", ((turn.mounts.read_bytes() or 0) - begun) / KIB)
        turn.time_probe("scratch.overwrites", "randwrite", root / "large", **random)
        turn.record("scratch.stored", (stored(root) - now) / MIB)
        if turn.number == 1:
            turn.probe("verify", root / "large", size=turn.sizes.large, **random)
    if turn.candidate.copies:
        _in_copies(turn, "large", "scratch.first", first, MOUNTS - 1)
    if turn.number == 1:
        turn.probe("verify", turn.bare / "large", size=turn.sizes.large)


# Row: the job of the probe, and the names of the file after it.
STEPS = {"scratch.chmod": ("chmod", ["large"]), "scratch.mv": ("move", ["large.moved"]), "scratch.rm": ("remove", [])}


def _big_names(turn: Turn) -> None:
    """Each step over a new mount; the plain copy is the same one, and is removed under its new name."""
    if turn.candidate.name == BARE:
        with _copy(turn, "large") as root:
            for row, (job, _) in STEPS.items():
                turn.time_probe(row, job, root / ("large.moved" if job == "remove" else "large"))
        return
    for row, (job, after) in STEPS.items():
        def step(root: Path) -> None:
            turn.time_probe(row, job, root / "large")
            turn.expect("names", [name for name in os.listdir(root) if name.startswith("large")], after)
            if job == "chmod":
                turn.expect("mode", os.lstat(root / "large").st_mode & 0o777, 0o600)

        _in_copies(turn, "large", row, step)


def _many(turn: Turn) -> None:
    for row, name, count in (("scratch.mvdir", "many", turn.sizes.many),
                             ("scratch.mvdir2", "many-twice", 2 * turn.sizes.many)):
        def step(root: Path) -> None:
            turn.time_probe(row, "move", root / name)
            turn.expect("files", len(os.listdir(root / (name + ".moved"))), count)
            turn.expect("the old name", os.path.lexists(root / name), False)

        _in_copies(turn, name, row, step)


def _project(turn: Turn) -> None:
    """Another branch, a build and the status of it. The index knows the copy before."""
    with _copy(turn, "project") as root:
        there = root / "project"
        turn.expect("changes", turn.command(STATUS, cwd=there), "")
        turn.time_command("scratch.checkout", [*GIT, "checkout", "-q", "other"], cwd=there)
        build(turn, "scratch.build", there / "sources")
        turn.expect("changes", turn.time_command("scratch.gitstatus", STATUS, cwd=there), "")
    if turn.number == 1:
        turn.expect("changes of the base", turn.command(STATUS, cwd=turn.bare / "project"), "")


WORKLOADS = (
    Workload("scratch-big", (
        Row("scratch.copy", "plain copy of the big file"),
        Row("scratch.first", "first byte written into a base file of {large} bytes"),
        Row("scratch.firststored", "what it stores", "KiB"),
        Row("scratch.firstread", "what the daemon reads for it", "KiB"),
        Row("scratch.overwrites", "{pokes} random 4 KiB overwrites of it"),
        Row("scratch.stored", "what they store", "MiB")), _big, COPIES, "large", cheap=False),
    Workload("scratch-names", (
        Row("scratch.chmod", "chmod of a base file of {large} bytes"),
        Row("scratch.mv", "mv of it"),
        Row("scratch.rm", "rm of it")), _big_names, COPIES, "large", cheap=False),
    Workload("scratch-many", (
        Row("scratch.mvdir", "mv of a base directory of {many} files"),
        Row("scratch.mvdir2", "mv of one of twice as many")), _many, COPIES, "many"),
    Workload("scratch-git", (
        Row("scratch.checkout", "git checkout of another branch, {small} files in the base"),
        Row("scratch.build", "make -j2 of {sources} C files of the base"),
        Row("scratch.gitstatus", "git status after it")), _project, COPIES, "project"),
)
