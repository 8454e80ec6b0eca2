"""Work in a copy of a directory that is to stay as it is: in scratches and overlays of it, each newly mounted, and in
a plain copy, which is the bare directory's turn.

All are over the same base: a big file, two directories of many files, and a repository. That the base is as it was is
checked after each turn, and the big file page by page in the first round.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from .data import GIT
from .rows import ABSOLUTE, TIME, Row
from .stats import BARE
from .turn import Turn, Workload

KIB, MIB = 1 << 10, 1 << 20
MOUNTS, LONG = 5, 0.1  # seconds


def _row(row: str, title: str) -> Row:
    return Row(row, title, TIME, "s")


@contextmanager
def _copy(turn: Turn, name: str, row: str = "") -> Iterator[Path]:
    """A directory with a copy of something of the base: a mount, or the scratch directory with a plain copy."""
    if turn.candidate.name == BARE:
        with turn.cleared() as bare:
            copying = ["cp", "-a", "--reflink=never", str(turn.bare / name), str(bare / name)]
            turn.time_command(row, copying) if row else turn.command(copying)
            yield bare
        return
    before = _state(turn.bare / name)
    with turn.mounted() as root:
        yield root
    turn.mounts.clear()
    turn.disk.sync()
    turn.expect("the base", _state(turn.bare / name), before)


def _state(path: Path) -> tuple[int, ...]:
    found = os.lstat(path)
    return (found.st_ino, found.st_mode, found.st_size, found.st_blocks, found.st_mtime_ns, found.st_ctime_ns)


def _mounts(turn: Turn, row: str) -> Iterator[int]:
    """Several new mounts for what is one short event in each; one where it is long."""
    for number in range(MOUNTS):
        yield number
        if any(sample.row == row and sample.value > LONG for sample in turn.samples):
            return


def _stored(turn: Turn, root: Path) -> int:
    return turn.mounts.stored(turn.candidate) if turn.candidate.name != BARE else _state(root / "large")[3] * 512


def _byte(path: Path, offset: int) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), 1, offset)


def big(turn: Turn) -> None:
    middle = turn.sizes.large // 2 // 4096 * 4096
    with _copy(turn, "large", "scratch.copy") as root:
        stored, begun = _stored(turn, root), turn.mounts.read_bytes()
        turn.time_probe("scratch.first", "poke", "large", cwd=root, size=middle)
        turn.expect("the byte written", _byte(root / "large", middle + 24), b"x")
        now = _stored(turn, root)
        turn.record("scratch.firststored", (now - stored) / KIB)
        if begun is not None:
            turn.record("scratch.firstread", ((turn.mounts.read_bytes() or 0) - begun) / KIB)
        turn.time_probe("scratch.overwrites", "randwrite", "large", cwd=root, count=turn.sizes.pokes, seed=5,
                        generation=1)
        turn.record("scratch.stored", (_stored(turn, root) - now) / MIB)
        if turn.number == 1:
            turn.probe("verify", "large", cwd=root, size=turn.sizes.large, count=turn.sizes.pokes, seed=5, generation=1)
    for number in _mounts(turn, "scratch.first") if turn.candidate.copies else ():
        if number > 0:  # The first is above.
            with _copy(turn, "large") as root:
                turn.time_probe("scratch.first", "poke", "large", cwd=root, size=middle)
    if turn.number == 1:
        turn.probe("verify", turn.bare / "large", size=turn.sizes.large)


def big_names(turn: Turn) -> None:
    """Each over a new mount; the plain copy is the same one."""
    steps = (("scratch.chmod", "chmod", "large"), ("scratch.mv", "move", "large"), ("scratch.rm", "remove", "large"))
    if turn.candidate.name == BARE:
        with _copy(turn, "large") as root:
            for row, job, name in steps:
                there = root / (name if row != "scratch.rm" else name + ".moved")
                turn.time_probe(row, job, there)
        return
    for row, job, name in steps:
        for _ in _mounts(turn, row):
            with _copy(turn, name) as root:
                turn.time_probe(row, job, name, cwd=root)
                there = [entry for entry in os.listdir(root) if entry.startswith(name)]
                turn.expect("names", there, {"chmod": [name], "move": [name + ".moved"], "remove": []}[job])
                if job == "chmod":
                    turn.expect("mode", os.lstat(root / name).st_mode & 0o777, 0o600)


def many(turn: Turn) -> None:
    for row, name, count in (("scratch.mvdir", "many", turn.sizes.many),
                             ("scratch.mvdir2", "many-twice", 2 * turn.sizes.many)):
        for _ in _mounts(turn, row):
            with _copy(turn, name) as root:
                turn.time_probe(row, "move", name, cwd=root)
                turn.expect("files", len(os.listdir(root / (name + ".moved"))), count)
                turn.expect("the old name", os.path.lexists(root / name), False)


def project(turn: Turn) -> None:
    """Another branch, a build and the status of it. The index knows the copy before."""
    with _copy(turn, "project") as root:
        there = root / "project"
        turn.expect("changes", turn.command([*GIT, "status", "--porcelain"], cwd=there), "")
        turn.time_command("scratch.checkout", [*GIT, "checkout", "-q", "other"], cwd=there)
        turn.time_command("scratch.build", ["make", "-s", "-j2"], cwd=there / "sources")
        status = turn.time_command("scratch.gitstatus", [*GIT, "status", "--porcelain"], cwd=there)
        turn.expect("changes", status, "")
        turn.expect("output of the program", turn.command([str(there / "sources" / "program")]).count("\n"), 1)
    if turn.number == 1:
        turn.expect("changes of the base", turn.command([*GIT, "status", "--porcelain"], cwd=turn.bare / "project"), "")


WORKLOADS = (
    Workload("scratch-big", (
        _row("scratch.copy", "plain copy of the big file"),
        _row("scratch.first", "first byte written into a base file of {large} bytes"),
        Row("scratch.firststored", "what it stores", ABSOLUTE, "KiB"),
        Row("scratch.firstread", "what the daemon reads for it", ABSOLUTE, "KiB"),
        _row("scratch.overwrites", "{pokes} random 4 KiB overwrites of it"),
        Row("scratch.stored", "what they store", ABSOLUTE, "MiB")), big, cheap=False, copying=True),
    Workload("scratch-names", (
        _row("scratch.chmod", "chmod of a base file of {large} bytes"),
        _row("scratch.mv", "mv of it"),
        _row("scratch.rm", "rm of it")), big_names, cheap=False, copying=True),
    Workload("scratch-many", (
        _row("scratch.mvdir", "mv of a base directory of {many} files"),
        _row("scratch.mvdir2", "mv of one of twice as many")), many, copying=True),
    Workload("scratch-git", (
        _row("scratch.checkout", "git checkout of another branch, {small} files in the base"),
        _row("scratch.build", "make -j2 of {sources} C files of the base"),
        _row("scratch.gitstatus", "git status after it")), project, copying=True),
)
