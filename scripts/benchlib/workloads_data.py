"""Reading and writing data: sequentially, at random, through mappings.

cold: nothing is cached anywhere. fresh: the mount is new, and the files are in the kernel's cache of the filesystem
beneath. warm: the same was done a moment before through the same mount. The probe checks every page that it reads;
what was written is checked on the bare filesystem.
"""

from __future__ import annotations

from .rows import BANDWIDTH, TIME, Row
from .turn import Turn, Workload

BLOCK = 1 << 20
CLIENTS = 4


def _rows(group: str, title: str, **variants: str) -> tuple[Row, ...]:
    return tuple(Row(f"{group}.{name}", f"{title}, {text}", BANDWIDTH, "MB/s") for name, text in variants.items())


FOUR = f"warm, {CLIENTS} clients"

# -- reading


def seqread(turn: Turn) -> None:
    turn.warm_memory(turn.sizes.big // 2)
    turn.probe("read", turn.bare / "big", size=BLOCK)
    with turn.mounted():
        turn.time_probe("seqread.fresh", "read", "big", size=BLOCK)
        turn.time_probe("seqread.warm", "read", "big", size=BLOCK)
        turn.time_probe("seqread.warm4", "read", "big", size=BLOCK, clients=CLIENTS)


def seqread_cold(turn: Turn) -> None:
    with turn.mounted(cold=True):
        turn.time_probe("seqread.cold", "read", "big", size=BLOCK)


def randread(turn: Turn) -> None:
    turn.probe("read", turn.bare / "big", size=BLOCK)
    with turn.mounted():
        # As many as when cold: what is read at random from a new mount is seldom read twice.
        turn.time_probe("randread.fresh", "randread", "big", count=turn.sizes.random_cold, seed=1)
        turn.probe("read", "big", size=BLOCK)
        turn.time_probe("randread.warm", "randread", "big", count=turn.sizes.random, seed=2)
        turn.time_probe("randread.warm4", "randread", "big", count=turn.sizes.random, seed=3, clients=CLIENTS)


def randread_cold(turn: Turn) -> None:
    with turn.mounted(cold=True):
        turn.time_probe("randread.cold", "randread", "big", count=turn.sizes.random_cold, seed=4)


def _sum_mapping(turn: Turn, row: str, clients: int = 1) -> None:
    # The probe answers with a sum, not with bytes: the bandwidth is of the file.
    turn.mark()
    seconds, result = turn.probe("mmapread", "big", clients=clients)
    turn.expect("sum of the mapped file", result, turn.data.expected["sum"])
    turn.record(row, turn.sizes.big / seconds / 1e6)


def mmapread(turn: Turn) -> None:
    turn.warm_memory(turn.sizes.big // 2)
    turn.probe("read", turn.bare / "big", size=BLOCK)
    with turn.mounted():
        _sum_mapping(turn, "mmapread.fresh")
        _sum_mapping(turn, "mmapread.warm")
        if turn.wants("mmapread.warm4"):
            _sum_mapping(turn, "mmapread.warm4", CLIENTS)


def mmapread_cold(turn: Turn) -> None:
    with turn.mounted(cold=True):
        _sum_mapping(turn, "mmapread.cold")


# -- writing


def seqwrite(turn: Turn) -> None:
    size = turn.sizes.written
    with turn.cleared():
        turn.warm_memory(size)
        with turn.mounted():
            turn.time_probe("seqwrite.new", "write", "scratch/file", size=size, generation=1)
            turn.time_probe("seqwrite.warm", "overwrite", "scratch/file", size=size, generation=2)
        with turn.written() as written:
            turn.probe("verify", written / "file", size=size, generation=2)


def seqwrite_clients(turn: Turn) -> None:
    size = turn.sizes.written
    with turn.cleared():
        turn.warm_memory(size)
        with turn.mounted():
            turn.time_probe("seqwrite.new4", "write", "scratch/file", size=size, generation=1, clients=CLIENTS)
        with turn.written() as written:
            turn.probe("verify", written / "file", size=size, generation=1, clients=CLIENTS)


def seqwrite_cold(turn: Turn) -> None:
    size = turn.sizes.written
    with turn.cleared() as bare:
        turn.probe("write", bare / "file", size=size, sync=1)
        with turn.mounted(cold=True):
            turn.time_probe("seqwrite.cold", "overwrite", "scratch/file", size=size, generation=1)
        with turn.written() as written:
            turn.probe("verify", written / "file", size=size, generation=1)


def seqwrite_sync(turn: Turn) -> None:
    size = turn.sizes.written // 4
    with turn.cleared():
        turn.warm_memory(size)
        with turn.mounted():
            turn.time_probe("seqwrite.sync", "write", "scratch/file", size=size, generation=1, sync=1)
        with turn.written() as written:
            turn.probe("verify", written / "file", size=size, generation=1)


def _random_write(turn: Turn, row: str, count: int, cold: bool = False, clients: int = 1) -> None:
    """Random pages of a file that was just written, and is on the disk: `warm` after as many others."""
    size, warm = turn.sizes.written // 2, row.partition(".")[2].startswith("warm")
    with turn.cleared() as bare:
        turn.probe("write", bare / "file", size=size, sync=1, clients=clients)
        with turn.mounted(cold):
            if warm:
                turn.probe("randwrite", "scratch/file", count=count, seed=7, clients=clients)
            turn.time_probe(row, "randwrite", "scratch/file", count=count, seed=7, generation=1, clients=clients)
        with turn.written() as written:
            turn.probe("verify", written / "file", size=size, count=count, seed=7, generation=1, clients=clients)


def randwrite(turn: Turn) -> None:
    _random_write(turn, "randwrite.warm", turn.sizes.random)


def randwrite_clients(turn: Turn) -> None:
    _random_write(turn, "randwrite.warm4", turn.sizes.random, clients=CLIENTS)


def randwrite_cold(turn: Turn) -> None:
    _random_write(turn, "randwrite.cold", turn.sizes.random_cold, cold=True)


def overwrite(turn: Turn) -> None:
    _random_write(turn, "overwrite.fresh", turn.sizes.overwrites)


def mmapwrite(turn: Turn) -> None:
    size = turn.sizes.big
    with turn.cleared() as bare:
        turn.probe("write", bare / "file", size=size, sync=1)
        turn.warm_memory(size // 2)
        with turn.mounted():
            turn.time_probe("mmapwrite.fresh", "mmapwrite", "scratch/file", generation=1)
            turn.time_probe("mmapwrite.warm", "mmapwrite", "scratch/file", generation=2)
            last = 2
            if turn.wants("mmapwrite.warm4"):
                turn.time_probe("mmapwrite.warm4", "mmapwrite", "scratch/file", generation=3, clients=CLIENTS)
                last = 3
        with turn.written() as written:
            turn.probe("verify", written / "file", size=size, generation=last)


def mmapwrite_cold(turn: Turn) -> None:
    size = turn.sizes.big
    with turn.cleared() as bare:
        turn.probe("write", bare / "file", size=size, sync=1)
        with turn.mounted(cold=True):
            turn.time_probe("mmapwrite.cold", "mmapwrite", "scratch/file", generation=1)
        with turn.written() as written:
            turn.probe("verify", written / "file", size=size, generation=1)


WORKLOADS = (
    Workload("seqread", _rows("seqread", "sequential read, 1 MiB", fresh="fresh mount", warm="warm", warm4=FOUR),
             seqread, read_only=True, of_content=True),
    Workload("seqread-cold", _rows("seqread", "sequential read, 1 MiB", cold="cold"), seqread_cold, read_only=True),
    Workload("randread", _rows("randread", "random 4 KiB read", fresh="fresh mount", warm="warm", warm4=FOUR),
             randread, read_only=True, of_content=True),
    Workload("randread-cold", _rows("randread", "random 4 KiB read", cold="cold"), randread_cold, read_only=True),
    Workload("mmapread", _rows("mmapread", "application mmap read", fresh="fresh mount", warm="warm", warm4=FOUR),
             mmapread, read_only=True, of_content=True),
    Workload("mmapread-cold", _rows("mmapread", "application mmap read", cold="cold"), mmapread_cold, read_only=True),
    Workload("seqwrite", _rows("seqwrite", "sequential write, 1 MiB", new="new file", warm="over it, warm"), seqwrite),
    Workload("seqwrite-4", _rows("seqwrite", "sequential write, 1 MiB", new4=f"{CLIENTS} clients, new files"),
             seqwrite_clients),
    Workload("seqwrite-cold", _rows("seqwrite", "sequential write, 1 MiB", cold="over a file, cold"), seqwrite_cold),
    Workload("seqwrite-sync", _rows("seqwrite", "sequential write, 1 MiB", sync="new file, with fsync"),
             seqwrite_sync),
    Workload("randwrite", _rows("randwrite", "random 4 KiB write", warm="warm"), randwrite),
    Workload("randwrite-4", _rows("randwrite", "random 4 KiB write", warm4=FOUR), randwrite_clients),
    Workload("randwrite-cold", _rows("randwrite", "random 4 KiB write", cold="cold"), randwrite_cold),
    Workload("mmapwrite", _rows("mmapwrite", "application mmap write", fresh="fresh mount", warm="warm", warm4=FOUR),
             mmapwrite),
    Workload("mmapwrite-cold", _rows("mmapwrite", "application mmap write", cold="cold"), mmapwrite_cold),
    Workload("overwrite", (Row("overwrite.fresh", "{overwrites} random 4 KiB overwrites of a file", TIME, "s"),),
             overwrite),
)
