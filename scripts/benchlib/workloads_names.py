"""Names and attributes: open, stat, create, unlink, readdir, and what an inode costs the daemon."""

from __future__ import annotations


from .rows import ABSOLUTE, TIME, Row
from .shell import wait_until
from .turn import Turn, Workload

CLIENTS = 4
FRESH, WARM, COLD, FOUR = "fresh mount", "warm", "cold", f"warm, {CLIENTS} clients"


def _row(row: str, title: str) -> Row:
    return Row(row, title, TIME, "s")


def openclose(turn: Turn) -> None:
    names = turn.data.tree_list
    turn.probe("open", names, cwd=turn.bare)
    with turn.mounted():
        turn.time_probe("openclose.fresh", "open", names)
        turn.time_probe("openclose.warm", "open", names)
        turn.time_probe("openclose.warm4", "open", names, clients=CLIENTS)


def stat(turn: Turn) -> None:
    names = turn.data.stat_list
    turn.probe("stat", names, cwd=turn.bare)
    with turn.mounted():
        turn.time_probe("stat.fresh", "stat", names)
        turn.time_probe("stat.warm", "stat", names)
        turn.time_probe("stat.warm4", "stat", names, clients=CLIENTS)


def stat_cold(turn: Turn) -> None:
    with turn.mounted(cold=True):
        turn.time_probe("stat.cold", "stat", turn.data.stat_list)


def _create_and_remove(turn: Turn, create: str, unlink: str, clients: int) -> None:
    with turn.cleared() as bare:
        (bare / "names").mkdir()
        with turn.mounted():
            names = turn.scratch / "names"
            turn.time_probe(create, "create", ".", cwd=names, count=turn.sizes.names, clients=clients)
            turn.expect("files there", sum(1 for _ in (turn.stored / "names").iterdir()), turn.sizes.names)
            turn.time_probe(unlink, "unlink", ".", cwd=names, count=turn.sizes.names, clients=clients)
        with turn.written() as written:
            turn.expect("files left", sum(1 for _ in (written / "names").iterdir()), 0)


def create_unlink(turn: Turn) -> None:
    _create_and_remove(turn, "create.one", "unlink.one", 1)


def create_unlink_clients(turn: Turn) -> None:
    _create_and_remove(turn, "create.four", "unlink.four", CLIENTS)


def readdir(turn: Turn) -> None:
    turn.probe("readdir", turn.bare / "flat")
    with turn.mounted():
        for row in ("readdir.fresh", "readdir.warm"):
            turn.expect("entries", turn.time_probe(row, "readdir", "flat"), turn.sizes.flat)


def readdir_cold(turn: Turn) -> None:
    with turn.mounted(cold=True):
        turn.expect("entries", turn.time_probe("readdir.cold", "readdir", "flat"), turn.sizes.flat)


def start(turn: Turn) -> None:
    if not turn.candidate.has_daemon or turn.candidate.preloads:
        return
    for _ in range(3):
        try:
            turn.record("start.mount", turn.mounts.time_to_answer(turn.candidate) * 1000)
        finally:
            turn.mounts.unmount()


def walk(turn: Turn) -> None:
    """A walk over many files: the time, and the memory and descriptors that the daemon is left with."""
    turn.probe("walk", turn.bare / "walk")
    with turn.mounted() as root:
        (root / "walk").stat()
        before = turn.mounts.memory()
        turn.expect("names", turn.time_probe("walk.fresh", "walk", "walk"), turn.data.expected["walk"])
        if before is None or turn.candidate.preloads:
            return
        turn.mark()
        turn.record("walk.memory", ((turn.mounts.memory() or 0) - before) / turn.data.expected["walk"])
        turn.record("walk.descriptors", _when_idle(turn))


def _when_idle(turn: Turn) -> int:
    """The descriptors of the daemon once it opens and closes none any more."""
    seen: list[int] = []

    def settled() -> bool:
        seen.append(turn.mounts.descriptors() or 0)
        return len(seen) > 5 and len(set(seen[-5:])) == 1

    wait_until(settled, 10, nap=0.3)
    return seen[-1]


WORKLOADS = (
    Workload("openclose", (_row("openclose.fresh", f"open and close of {{small}} files, {FRESH}"),
                           _row("openclose.warm", f"open and close of {{small}} files, {WARM}"),
                           _row("openclose.warm4", f"open and close of {{small}} files, {FOUR}")),
             openclose, read_only=True),
    Workload("stat", (_row("stat.fresh", f"stat of {{stats}} paths, {FRESH}"),
                      _row("stat.warm", f"stat of {{stats}} paths, {WARM}"),
                      _row("stat.warm4", f"stat of {{stats}} paths, {FOUR}")), stat, read_only=True),
    Workload("stat-cold", (_row("stat.cold", f"stat of {{stats}} paths, {COLD}"),), stat_cold, read_only=True),
    Workload("create", (_row("create.one", "create {names} files"), _row("unlink.one", "unlink {names} files")),
             create_unlink),
    Workload("create-4", (_row("create.four", f"create {{names}} files, {CLIENTS} clients"),
                          _row("unlink.four", f"unlink {{names}} files, {CLIENTS} clients")), create_unlink_clients),
    Workload("readdir", (_row("readdir.fresh", f"readdir of {{flat}} entries, {FRESH}"),
                         _row("readdir.warm", f"readdir of {{flat}} entries, {WARM}")), readdir, read_only=True),
    Workload("readdir-cold", (_row("readdir.cold", f"readdir of {{flat}} entries, {COLD}"),), readdir_cold,
             read_only=True),
    Workload("start", (Row("start.mount", "start to a mount that answers", ABSOLUTE, "ms"),), start, read_only=True),
    Workload("walk", (_row("walk.fresh", f"walk and stat of {{walk}} files, {FRESH}"),
                      Row("walk.memory", "daemon's memory a known inode, after it", ABSOLUTE, "bytes"),
                      Row("walk.descriptors", "daemon's descriptors after it, idle", ABSOLUTE)),
             walk, read_only=True, cheap=False),
)
