"""The rows of data, of names and of programs over a real tree.

cold: nothing is cached anywhere. fresh: the mount is new, and the filesystem beneath has everything in its cache.
warm: the same step was made a moment before through the same mount. The probe checks every page that it reads, other
results are compared with those of the bare directory, and written files are checked there.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Callable

from .data import GIT, NEEDLE
from .filesystems import CONTENT, READS
from .results import Row
from .turn import Turn, Workload

VARIANTS = {"fresh": "fresh mount", "second": "second time", "warm": "warm", "warm4": "warm, 4 clients", "cold": "cold"}
THREE = "fresh warm warm4"


def variants(group: str, title: str, names: str, unit: str = "s") -> tuple[Row, ...]:
    return tuple(Row(f"{group}.{name}", f"{title}, {VARIANTS[name]}", unit) for name in names.split())


def reading(group: str, title: str, names: str, data: str, step: Callable[[Turn, str], object], needs: str = READS,
            cold: bool = False, memory: bool = False) -> list[Workload]:
    """A workload of passes of a step through one mount, and another one of the cold pass if there is one. A pass on the
    bare directory comes first, whose result is the expected one."""
    def passes(turn: Turn, names: str, uncached: bool) -> None:
        if memory:
            turn.warm_memory(turn.sizes.big // 2)
        expected = step(turn, f"{group}.bare")
        with turn.mounted(uncached):
            for name in names.split():
                turn.expect(group, step(turn, f"{group}.{name}"), expected)

    unit = "MB/s" if needs == CONTENT else "s"
    warm_rows, cold_rows = variants(group, title, names, unit), variants(group, title, "cold", unit)
    found = [Workload(group, warm_rows, lambda turn: passes(turn, names, False), needs, data)]
    if cold:
        found.append(Workload(f"{group}-cold", cold_rows, lambda turn: passes(turn, "cold", True), READS, data))
    return found


def writing(name: str, jobs: dict[str, tuple[str, str]], size: str, divisor: int = 1, count: str = "",
            files: int = 1, prepared: bool = True, memory: float = 0, cold: bool = False, sync: int = 0,
            unit: str = "MB/s") -> Workload:
    """Jobs of the probe that write a file one after the other, by row, with the row's title; a job without one is not
    measured. Prepared: the file exists, and is on the disk. `memory`: the share of its size to warm memory for."""
    def run(turn: Turn) -> None:
        keys = {"size": getattr(turn.sizes, size) // divisor}
        if count:
            keys.update(count=getattr(turn.sizes, count), seed=7)
        with turn.cleared() as bare:
            if prepared:
                turn.probe("write", bare / "file", size=keys["size"], sync=1, clients=files)
            if memory:
                turn.warm_memory(memory * keys["size"])
            with turn.mounted(cold):
                for generation, (row, (job, _)) in enumerate(jobs.items(), 1):
                    turn.time_probe(row, job, "scratch/file", generation=generation, sync=sync, **keys)
            with turn.written() as written:
                turn.probe("verify", written / "file", generation=len(jobs), clients=files, **keys)

    return Workload(name, tuple(Row(row, title, unit) for row, (_, title) in jobs.items() if title), run)


def mapped_writing(name: str, names: str, **others) -> Workload:
    rows = variants("mmapwrite", "application mmap write", names)
    return writing(name, {row.id: ("mmapwrite", row.title) for row in rows}, "big", **others)


def read_at_random(turn: Turn, row: str) -> None:
    if row in ("randread.bare", "randread.warm"):
        turn.probe("read", "big")
    # After a new mount as few as when cold: pages that are read at random there are seldom read twice.
    few = row in ("randread.fresh", "randread.cold")
    turn.time_probe(row, "randread", "big", count=turn.sizes.random_cold if few else turn.sizes.random,
                    seed=("bare", "fresh", "warm", "warm4", "cold").index(row.partition(".")[2]))


def create_and_remove(turn: Turn, variant: str, clients: int) -> None:
    with turn.cleared() as bare:
        (bare / "names").mkdir()
        with turn.mounted():
            keys = {"cwd": turn.scratch / "names", "count": turn.sizes.names, "clients": clients}
            turn.time_probe(f"create.{variant}", "create", ".", **keys)
            turn.expect("files there", len(os.listdir(turn.stored / "names")), turn.sizes.names)
            turn.time_probe(f"unlink.{variant}", "unlink", ".", **keys)
        with turn.written() as written:
            turn.expect("files left", os.listdir(written / "names"), [])


def start(turn: Turn) -> None:
    for _ in range(3 if turn.candidate.program and not turn.candidate.preloads else 0):
        turn.record("start.mount", turn.mounts.time_to_answer(turn.candidate) * 1000)
        turn.mounts.unmount()


def walk(turn: Turn) -> None:
    """A walk over many files: the time, and the memory and descriptors that the daemon is left with."""
    files = turn.probe("walk", turn.bare / "walk")[1]
    with turn.mounted() as root:
        (root / "walk").stat()
        before = turn.mounts.memory()
        turn.expect("names", turn.time_probe("walk.fresh", "walk", "walk"), files)
        if before is not None and not turn.candidate.preloads:
            turn.record("walk.memory", ((turn.mounts.memory() or 0) - before) / files)
            turn.record("walk.descriptors", idle_descriptors(turn))


def idle_descriptors(turn: Turn) -> int:
    """The number of the daemon's descriptors once it has been the same for a second."""
    numbers = [-1]
    while len(numbers) < 30 and numbers[-5:].count(numbers[-1]) < 5:
        time.sleep(0.3)
        numbers.append(turn.mounts.descriptors())
    return numbers[-1]


def run_program(turn: Turn, row: str, command: list[str]) -> list[str]:
    if row.endswith(".cold"):
        turn.command([command[0], "--version"])  # The program itself must not be cold.
    return sorted(turn.time_command(row, command).splitlines())


def names_and_bytes(tree: Path) -> tuple[int, int]:
    """Of a tree, without the marks that fuse-overlayfs leaves in the directories that it makes."""
    files = [os.path.join(above, name) for above, _, names in os.walk(tree) for name in names
             if not name.startswith(".wh.")]
    return len(files), sum(map(os.path.getsize, files))


def untar(turn: Turn) -> None:
    with turn.cleared(), turn.mounted():
        turn.time_command("untar.new", ["tar", "-xf", str(turn.data.archive)], cwd=turn.scratch)
        turn.expect("names and bytes", names_and_bytes(turn.stored / "tree"), names_and_bytes(turn.bare / "tree"))
        if turn.number == 1:
            turn.command(["diff", "-r", "-q", "--exclude=.wh.*", str(turn.stored / "tree"), str(turn.bare / "tree")])
        turn.time_command("rmrf.all", ["rm", "-rf", "tree"], cwd=turn.scratch)
        turn.expect("names left", os.listdir(turn.scratch), [])


STATUS = [*GIT, "status", "--porcelain"]


def git(turn: Turn) -> None:
    """The clone reads and writes through the candidate, and the status needs attributes alone: it would read files as
    new as the index again, depending on the moment at which a second ended, so that the index is dated later."""
    with turn.cleared():
        turn.command(STATUS, cwd=turn.bare / "repository")
        with turn.mounted() as root:
            clone = [*GIT, "clone", "-q", "--no-hardlinks", str(root / "repository"), "clone"]
            turn.time_command("gitclone.all", clone, cwd=turn.scratch)
            there, later = turn.scratch / "clone", time.time() + 2
            os.utime(there / ".git" / "index", (later, later))
            turn.expect("changes", turn.command(STATUS, cwd=there), "")
            turn.time_command("gitstatus.warm", STATUS, cwd=there)
        if turn.number == 1:
            with turn.written() as written:
                turn.command([*GIT, "fsck", "--no-progress"], cwd=written / "clone")


def build(turn: Turn, row: str, sources: Path) -> None:
    turn.time_command(row, ["make", "-s", "-j2"], cwd=sources)
    turn.expect("lines of the program", turn.command([str(sources / "program")]).count("\n"), 1)


def build_new(turn: Turn) -> None:
    with turn.cleared() as bare:
        shutil.copytree(turn.bare / "sources", bare / "build")
        with turn.mounted():
            build(turn, "cbuild.make", turn.scratch / "build")


def sqlite(turn: Turn, row: str, path: Path, transactions: int = 0) -> str:
    """The client times itself, so that the start of Python is not in it. Returns its result."""
    client = str(Path(__file__).with_name("sqlite_client.py"))
    return turn.time_command(row, [sys.executable, client, str(path), str(transactions)], times_itself=True).split()[1]


def transactions(turn: Turn) -> None:
    number = turn.sizes.transactions
    with turn.cleared():
        with turn.mounted():
            turn.expect("rows", sqlite(turn, "sqlite.transactions", turn.scratch / "small.db", number), str(number))
        with turn.written() as written:
            count = ["sqlite3", str(written / "small.db"), "SELECT count(*) FROM rows"]
            turn.expect("rows on the disk", turn.command(count).strip(), str(number))


SEQUENTIAL, RANDOM = "sequential write, 1 MiB, ", "random 4 KiB write, "

WORKLOADS = (
    *reading("seqread", "sequential read, 1 MiB", THREE, "big",
             lambda turn, row: turn.time_probe(row, "read", "big"), CONTENT, cold=True, memory=True),
    *reading("randread", "random 4 KiB read", THREE, "big", read_at_random, CONTENT, cold=True),
    *reading("mmapread", "application mmap read", THREE, "big",
             lambda turn, row: turn.time_probe(row, "mmapread", "big"), CONTENT, cold=True, memory=True),
    writing("seqwrite", {"seqwrite.new": ("write", SEQUENTIAL + "new file"),
                         "seqwrite.warm": ("overwrite", SEQUENTIAL + "over it, warm")}, "written",
            prepared=False, memory=1),
    writing("seqwrite-4", {"seqwrite.new4": ("write", SEQUENTIAL + "4 clients, new files")}, "written", files=4,
            prepared=False, memory=1),
    writing("seqwrite-cold", {"seqwrite.cold": ("overwrite", SEQUENTIAL + "over a file, cold")}, "written", cold=True),
    writing("seqwrite-sync", {"seqwrite.sync": ("write", SEQUENTIAL + "new file, with fsync")}, "written", 4,
            prepared=False, memory=1, sync=1),
    writing("randwrite", {"first": ("randwrite", ""), "randwrite.warm": ("randwrite", RANDOM + "warm")}, "written", 2,
            "random"),
    writing("randwrite-4", {"first4": ("randwrite", ""), "randwrite.warm4": ("randwrite", RANDOM + "warm, 4 clients")},
            "written", 2, "random", files=4),
    writing("randwrite-cold", {"randwrite.cold": ("randwrite", RANDOM + "cold")}, "written", 2, "random_cold",
            cold=True),
    mapped_writing("mmapwrite", THREE, memory=0.5),
    mapped_writing("mmapwrite-cold", "cold", cold=True),
    writing("overwrite", {"overwrite.fresh": ("randwrite", "{overwrites} random 4 KiB overwrites of a file")},
            "written", 2, "overwrites", unit="s"),
    *reading("openclose", "open and close of {small} files", THREE, "tree",
             lambda turn, row: turn.time_probe(row, "open", turn.data.tree_list)),
    *reading("stat", "stat of {stats} paths", THREE, "flat",
             lambda turn, row: turn.time_probe(row, "stat", turn.data.stat_list), cold=True),
    Workload("create", (Row("create.one", "create {names} files"), Row("unlink.one", "unlink {names} files")),
             lambda turn: create_and_remove(turn, "one", 1)),
    Workload("create-4", (Row("create.four", "create {names} files, 4 clients"),
                          Row("unlink.four", "unlink {names} files, 4 clients")),
             lambda turn: create_and_remove(turn, "four", 4)),
    *reading("readdir", "readdir of {flat} entries", "fresh warm", "flat",
             lambda turn, row: turn.time_probe(row, "readdir", "flat"), cold=True),
    Workload("start", (Row("start.mount", "start to a mount that answers", "ms"),), start, READS),
    Workload("walk", (Row("walk.fresh", "walk and stat of {walk} files, fresh mount"),
                      Row("walk.memory", "daemon's memory a known inode, after it", "bytes"),
                      Row("walk.descriptors", "daemon's descriptors after it, idle", "")),
             walk, READS, "walk", cheap=False),
    *reading("find", "find -ls of {small} files", "fresh second warm", "tree",
             lambda turn, row: len(run_program(turn, row, ["find", "tree", "-ls"])), cold=True),
    *reading("grep", "grep -r of {small} files", "fresh warm", "tree",
             lambda turn, row: run_program(turn, row, ["grep", "-r", "-c", NEEDLE, "tree"]), cold=True),
    Workload("untar", (Row("untar.new", "untar of {small} files"), Row("rmrf.all", "rm -rf of {small} files")), untar,
             data="tree"),
    Workload("git", (Row("gitclone.all", "git clone of {small} files"), Row("gitstatus.warm", "git status, warm")), git,
             data="repository"),
    Workload("cbuild", (Row("cbuild.make", "make -j2 of {sources} C files"),), build_new, data="sources"),
    Workload("sqlite", (Row("sqlite.transactions", "{transactions} SQLite transactions, WAL"),), transactions),
    *reading("scan", "SQLite scan of a table", "fresh warm", "database",
             lambda turn, row: sqlite(turn, row, turn.root / "database" / "scan.db")),
)
