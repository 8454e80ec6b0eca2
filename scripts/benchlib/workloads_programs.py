"""Programs over a real tree: tar, rm, find, grep, git, make, SQLite."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from .data import GIT, NEEDLE
from .rows import TIME, Row
from .turn import Turn, Workload

CLIENT = Path(__file__).with_name("sqlite_client.py")


def _row(row: str, title: str) -> Row:
    return Row(row, title, TIME, "s")


def _tree(tree: Path) -> tuple[int, int]:
    """Names and bytes of a tree, without the marks that fuse-overlayfs leaves in the directories that it makes."""
    names = size = 0
    for directory, _, found in os.walk(tree):
        files = [name for name in found if not name.startswith(".wh.")]
        names += 1 + len(files)
        size += sum(os.stat(os.path.join(directory, name)).st_size for name in files)
    return names, size


def untar(turn: Turn) -> None:
    with turn.cleared():
        with turn.mounted():
            turn.time_command("untar.new", ["tar", "-xf", str(turn.data.archive)], cwd=turn.scratch)
            expected = (turn.data.expected["tree names"], turn.data.expected["tree bytes"])
            turn.expect("names and bytes unpacked", _tree(turn.stored / "tree"), expected)
            if turn.number == 1:
                turn.command(["diff", "-r", "-q", "--exclude=.wh.*", str(turn.stored / "tree"), str(turn.bare / "tree")])
            turn.time_command("rmrf.all", ["rm", "-rf", "tree"], cwd=turn.scratch)
            turn.expect("names left", len(list(turn.scratch.iterdir())), 0)


FIND = ["find", "tree", "-ls"]


def _find(turn: Turn, row: str) -> None:
    printed = turn.time_command(row, FIND)
    turn.expect("names found", printed.count("\n"), turn.data.expected["tree names"])


def find(turn: Turn) -> None:
    turn.command(FIND, cwd=turn.bare)
    with turn.mounted():
        for row in ("find.fresh", "find.second", "find.warm"):
            _find(turn, row)


def find_cold(turn: Turn) -> None:
    with turn.mounted(cold=True):
        turn.command(["find", str(turn.mounts.empty), "-ls"])  # The program itself is not to be cold.
        _find(turn, "find.cold")


GREP = ["grep", "-r", "-c", NEEDLE, "tree"]


def _grep(turn: Turn, row: str) -> None:
    printed = turn.time_command(row, GREP)
    found = sum(int(line.rpartition(":")[2]) for line in printed.splitlines())
    turn.expect("lines found", found, turn.data.expected["needles"])


def grep(turn: Turn) -> None:
    turn.command(GREP, cwd=turn.bare)
    with turn.mounted():
        _grep(turn, "grep.fresh")
        _grep(turn, "grep.warm")


def grep_cold(turn: Turn) -> None:
    with turn.mounted(cold=True):
        turn.command(["grep", "-c", "root", "/etc/passwd"])
        _grep(turn, "grep.cold")


def git_clone(turn: Turn) -> None:
    """The clone reads and writes through the candidate, and the status goes by attributes alone: files as new as the
    index would be read once more, depending on when a second ended, so that the index is dated later."""
    with turn.cleared():
        turn.command([*GIT, "status"], cwd=turn.bare / "repository")
        with turn.mounted() as root:
            clone = [*GIT, "clone", "-q", "--no-hardlinks", str(root / "repository"), "clone"]
            turn.time_command("gitclone.all", clone, cwd=turn.scratch)
            there = turn.scratch / "clone"
            later = time.time() + 2
            os.utime(there / ".git" / "index", (later, later))
            turn.expect("changes", turn.command([*GIT, "status", "--porcelain"], cwd=there), "")
            turn.time_command("gitstatus.warm", [*GIT, "status", "--porcelain"], cwd=there)
        if turn.number == 1:
            with turn.written() as written:
                turn.command([*GIT, "fsck", "--no-progress"], cwd=written / "clone")


def c_build(turn: Turn) -> None:
    with turn.cleared() as bare:
        shutil.copytree(turn.bare / "sources", bare / "build")
        with turn.mounted():
            turn.time_command("cbuild.make", ["make", "-s", "-j2"], cwd=turn.scratch / "build")
            turn.expect("output of the program", turn.command([str(turn.scratch / "build" / "program")]).count("\n"), 1)


def _sqlite(turn: Turn, row: str, job: str, path: Path, number: int) -> int:
    """The client times itself: a start of Python is not in it."""
    turn.mark()
    seconds, result = turn.command([sys.executable, str(CLIENT), job, str(path), str(number)]).split()
    turn.record(row, float(seconds))
    return int(result)


def sqlite_transactions(turn: Turn) -> None:
    number = turn.sizes.transactions
    with turn.cleared():
        with turn.mounted():
            rows = _sqlite(turn, "sqlite.transactions", "transactions", turn.scratch / "small.db", number)
            turn.expect("rows", rows, number)
        with turn.written() as written:
            turn.expect("rows on the disk", turn.command(["sqlite3", str(written / "small.db"),
                                                          "SELECT count(*) FROM rows"]).strip(), str(number))


def sqlite_scan(turn: Turn) -> None:
    path = Path("database") / "scan.db"
    turn.command(["cksum", str(turn.bare / path)])
    with turn.mounted() as root:
        for row in ("scan.fresh", "scan.warm"):
            turn.expect("sum", _sqlite(turn, row, "scan", root / path, 0), turn.data.expected["scan"])


WORKLOADS = (
    Workload("find", (_row("find.fresh", "find -ls of {small} files, fresh mount"),
                      _row("find.second", "find -ls of {small} files, second time"),
                      _row("find.warm", "find -ls of {small} files, warm")), find, read_only=True),
    Workload("find-cold", (_row("find.cold", "find -ls of {small} files, cold"),), find_cold, read_only=True),
    Workload("grep", (_row("grep.fresh", "grep -r of {small} files, fresh mount"),
                      _row("grep.warm", "grep -r of {small} files, warm")), grep, read_only=True),
    Workload("grep-cold", (_row("grep.cold", "grep -r of {small} files, cold"),), grep_cold, read_only=True),
    Workload("untar", (_row("untar.new", "untar of {small} files"), _row("rmrf.all", "rm -rf of {small} files")),
             untar),
    Workload("git", (_row("gitclone.all", "git clone of {small} files"), _row("gitstatus.warm", "git status, warm")),
             git_clone),
    Workload("cbuild", (_row("cbuild.make", "make -j2 of {sources} C files"),), c_build),
    Workload("sqlite", (_row("sqlite.transactions", "{transactions} SQLite transactions, WAL"),),
             sqlite_transactions),
    Workload("scan", (_row("scan.fresh", "SQLite scan of a table, fresh mount"),
                      _row("scan.warm", "SQLite scan of a table, warm")), sqlite_scan, read_only=True),
)
