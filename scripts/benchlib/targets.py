"""What mmapfs must reach, as issues 3 and 4 list it, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass

from .filesystems import CANDIDATES, FLOOR, FLOOR_CACHED, MMAPFS, SCRATCH
from .rows import Row, human, three
from .stats import Results, Spread

PEERS = tuple(candidate.name for candidate in CANDIDATES if candidate.peer)
MAPPED, NOOPEN = "mmapfs-mapped", "mmapfs-noopen"

AT_LEAST, AT_MOST = "at least", "at most"
OF_BARE, OF_PEER, ITSELF = "of bare", "of the best FUSE peer", ""
OF_OVERLAY, OF_COPY, OF_WRITE = "fuse-overlayfs", "fuse-overlayfs-copy", MMAPFS  # of that candidate


@dataclass(frozen=True)
class Target:
    row: str
    candidate: str
    sense: str
    bound: float
    against: str

    def describe(self, row: Row) -> str:
        times = "times" if self.sense == AT_MOST else "of"
        whose = {OF_BARE: f"{times} the bare filesystem", OF_PEER: f"{times} the best FUSE peer",
                 OF_OVERLAY: f"{times} fuse-overlayfs",
                 OF_COPY: f"{times} fuse-overlayfs", OF_WRITE: f"{times} the mount with access=write"}
        if self.against == ITSELF:
            return f"{self.sense} {human(self.bound, row.unit)}"
        return f"{self.sense} {self.bound:g} {whose[self.against]}"


def _times(row: str, bare: float | None = None, peer: float | None = None, by: str = MMAPFS) -> list[Target]:
    found = []
    if bare is not None:
        found.append(Target(row, by, AT_MOST, bare, OF_BARE))
    if peer is not None:
        found.append(Target(row, by, AT_MOST, peer, OF_PEER))
    return found


def _share(row: str, bare: float, by: str = MMAPFS) -> Target:
    return Target(row, by, AT_LEAST, bare, OF_BARE)


def _ahead(*rows: str, sense: str = AT_MOST) -> list[Target]:
    """Rows in which a scratch must not be behind fuse-overlayfs."""
    return [Target(row, SCRATCH, sense, 1, OF_OVERLAY) for row in rows]


def _as_write(*rows: str, sense: str = AT_MOST) -> list[Target]:
    """Rows of files made in a scratch, which must be as with access=write."""
    bound = 1.1 if sense == AT_MOST else 0.91
    return [Target(row, SCRATCH, sense, bound, OF_WRITE) for row in rows]


def _itself(row: str, bound: float) -> list[Target]:
    return [Target(row, by, AT_MOST, bound, ITSELF) for by in (SCRATCH, "mmapfs-scratch-ram")]


TARGETS: tuple[Target, ...] = (
    _share("seqread.warm", 0.97),
    _share("seqwrite.new", 0.95),
    _share("randread.warm", 0.90),
    _share("randwrite.warm", 0.88),
    _share("mmapread.warm", 0.95),
    _share("mmapwrite.warm", 0.95),
    _share("seqread.warm", 0.75, MAPPED),
    _share("seqread.fresh", 0.25, MAPPED),
    Target("seqread.warm", MAPPED, AT_LEAST, 1, OF_PEER),
    Target("seqread.fresh", MAPPED, AT_LEAST, 1, OF_PEER),
    *_times("overwrite.fresh", bare=1.2),
    *_times("sqlite.transactions", bare=1.5),
    *_times("find.fresh", peer=0.8),
    *_times("find.warm", bare=1.5),
    *_times("stat.fresh", peer=0.8),
    *_times("stat.warm", bare=1.1),
    *_times("readdir.fresh", peer=0.8),
    *_times("readdir.warm", bare=0.5),
    *_times("grep.warm", peer=0.6),
    *_times("grep.warm", bare=1.3, by=NOOPEN),
    *_times("untar.new", peer=0.8),
    *_times("rmrf.all", peer=0.8),
    *_times("gitclone.all", peer=0.8),
    *_times("gitstatus.warm", peer=0.8),
    *_times("cbuild.make", bare=1.1),
    Target("walk.memory", MMAPFS, AT_MOST, 200, ITSELF),
    Target("walk.descriptors", MMAPFS, AT_MOST, 400, ITSELF),
    Target("start.mount", MMAPFS, AT_MOST, 20, ITSELF),
    *_itself("scratch.first", 0.002),
    *_itself("scratch.firststored", 64),
    *_itself("scratch.overwrites", 0.15),
    *_itself("scratch.stored", 10),
    *_itself("scratch.chmod", 0.001),
    *_itself("scratch.mv", 0.010),
    *_itself("scratch.rm", 0.001),
    *_itself("scratch.mvdir", 0.010),
    *_ahead("seqread.warm", "seqread.fresh", "seqwrite.new", "randread.warm", "randwrite.warm", "mmapread.warm",
            "mmapwrite.warm", sense=AT_LEAST),
    *_ahead("sqlite.transactions", "find.fresh", "find.warm", "stat.fresh", "stat.warm",
            "readdir.fresh", "readdir.warm", "grep.warm", "create.one", "unlink.one", "untar.new", "rmrf.all",
            "gitclone.all", "gitstatus.warm", "cbuild.make"),
    Target("scratch.overwrites", SCRATCH, AT_MOST, 1, OF_COPY),
    *_as_write("seqwrite.new", "seqwrite.warm", sense=AT_LEAST),
    *_as_write("sqlite.transactions", "create.one", "unlink.one", "untar.new", "rmrf.all", "gitstatus.warm"),
)


@dataclass(frozen=True)
class Verdict:
    target: Target
    row: Row
    reached: float | None
    note: str  # against whom, or why nothing was measured
    floor: float | None = None  # what the minimal daemon reached of the same target

    @property
    def met(self) -> bool | None:
        """None: it could not be told."""
        if self.reached is None:
            return None
        bound = self.target.bound
        return self.reached >= bound if self.target.sense == AT_LEAST else self.reached <= bound

    def remark(self) -> str:
        """The note; where the target is missed, how far from the minimal daemon, and where that is itself."""
        if self.met is not False or not self.floor or self.reached is None:
            return self.note
        times = "times" if self.target.sense == AT_MOST else "of"
        floor = f"{three(self.reached / self.floor)} {times} the floor, which is at {three(self.floor)}"
        return f"{self.note}; {floor}" if self.note else floor

    def word(self) -> str:
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]

    def shown(self) -> str:
        if self.reached is None:
            return "-"
        return human(self.reached, self.row.unit) if self.target.against == ITSELF else three(self.reached)


def judge(results: Results, rows: list[Row]) -> list[Verdict]:
    """Every target whose row was to be measured."""
    known = {row.id: row for row in rows}
    return [_verdict(results, target, known[target.row]) for target in TARGETS if target.row in known]


def _verdict(results: Results, target: Target, row: Row) -> Verdict:
    own = results.value(row.id, target.candidate) if target.against == ITSELF else results.ratio(row, target.candidate)
    if own is None:
        return Verdict(target, row, None, results.failure(row.id, target.candidate) or "no sample")
    # Each is a measure for its own way of serving a file only.
    floor_of = {MMAPFS: FLOOR, MAPPED: FLOOR_CACHED}.get(target.candidate)
    ratio = results.ratio(row, floor_of) if floor_of else None
    floor = ratio.median if ratio else None
    if target.against in (ITSELF, OF_BARE):
        return Verdict(target, row, own.median, "", floor)
    if target.against != OF_PEER:
        return _against(target, row, own, results.ratio(row, target.against))
    peers = {name: ratio.median for name in PEERS for ratio in [results.ratio(row, name)] if ratio}
    if not peers:
        return Verdict(target, row, None, "no FUSE peer was measured")
    pick = max if target.sense == AT_LEAST else min
    best = pick(peers, key=lambda name: peers[name])
    return Verdict(target, row, own.median / peers[best], f"the best is {best}", floor / peers[best] if floor else None)


def _against(target: Target, row: Row, own: Spread, other: Spread | None) -> Verdict:
    if other is None:
        return Verdict(target, row, None, f"{target.against} was not measured")
    return Verdict(target, row, own.median / other.median, f"which is at {three(other.median)} of the bare filesystem")
