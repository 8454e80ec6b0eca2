"""The targets of mmapfs, and whether a run reaches them."""

from __future__ import annotations

from dataclasses import dataclass

from .filesystems import FLOOR, MMAPFS, Candidate
from .results import BARE, Results, Row, Spread, human

MAPPED, NOOPEN, SCRATCH, RAM = "mmapfs-mapped", "mmapfs-noopen", "mmapfs-scratch", "mmapfs-scratch-ram"
OVERLAY = "fuse-overlayfs"
FLOORS = {MMAPFS: FLOOR, MAPPED: "floor-cached"}  # each for its own way of serving a file
AT_LEAST, AT_MOST = "at least", "at most"
PEER, ITSELF = "the best peer", ""  # beside the names of candidates that a target can be against


@dataclass(frozen=True)
class Target:
    candidate: str
    sense: str
    against: str
    row: str
    bound: float

    @property
    def times(self) -> str:
        return "times" if self.sense == AT_MOST else "of"

    def describe(self, row: Row) -> str:
        if self.against == ITSELF:
            return f"{self.sense} {human(self.bound, row.unit)}"
        return f"{self.sense} {self.bound:g} {self.times} {self.against}"

    def is_met(self, reached: float) -> bool:
        return reached >= self.bound if self.sense == AT_LEAST else reached <= self.bound


def _same(bound: float, rows: str) -> dict[str, float]:
    return dict.fromkeys(rows.split(), bound)


TABLE = (
    (MMAPFS, AT_LEAST, BARE, {"seqread.warm": 0.97, "seqwrite.new": 0.95, "randread.warm": 0.9, "randwrite.warm": 0.88,
                              "mmapread.warm": 0.95, "mmapwrite.warm": 0.95}),
    (MMAPFS, AT_MOST, BARE, {"overwrite.fresh": 1.2, "sqlite.transactions": 1.5, "find.warm": 1.5, "stat.warm": 1.1,
                             "readdir.warm": 0.5, "cbuild.make": 1.1}),
    (MMAPFS, AT_MOST, PEER, {"grep.warm": 0.6, **_same(0.8, "find.fresh stat.fresh readdir.fresh untar.new rmrf.all "
                                                            "gitclone.all gitstatus.warm")}),
    (MMAPFS, AT_MOST, ITSELF, {"walk.memory": 200, "walk.descriptors": 400, "start.mount": 20}),
    (MAPPED, AT_LEAST, BARE, {"seqread.warm": 0.75, "seqread.fresh": 0.25}),
    (MAPPED, AT_LEAST, PEER, _same(1, "seqread.warm seqread.fresh")),
    (NOOPEN, AT_MOST, BARE, {"grep.warm": 1.3}),
    *((by, AT_MOST, ITSELF, {
        "scratch.first": 0.002, "scratch.firststored": 64, "scratch.overwrites": 0.15, "scratch.stored": 10,
        "scratch.chmod": 0.001, "scratch.mv": 0.01, "scratch.rm": 0.001, "scratch.mvdir": 0.01})
      for by in (SCRATCH, RAM)),
    (SCRATCH, AT_LEAST, OVERLAY, _same(1, "seqread.warm seqread.fresh seqwrite.new randread.warm randwrite.warm "
                                          "mmapread.warm mmapwrite.warm")),
    (SCRATCH, AT_MOST, OVERLAY, _same(1, "sqlite.transactions find.fresh find.warm stat.fresh stat.warm readdir.fresh "
                                         "readdir.warm grep.warm create.one unlink.one untar.new rmrf.all gitclone.all "
                                         "gitstatus.warm cbuild.make")),
    (SCRATCH, AT_MOST, OVERLAY + "-copy", {"scratch.overwrites": 1}),
    (SCRATCH, AT_LEAST, MMAPFS, _same(0.91, "seqwrite.new seqwrite.warm")),
    (SCRATCH, AT_MOST, MMAPFS, _same(1.1, "sqlite.transactions create.one unlink.one untar.new rmrf.all "
                                          "gitstatus.warm")),
)
TARGETS = tuple(Target(by, sense, against, row, bound) for by, sense, against, bounds in TABLE
                for row, bound in bounds.items())


@dataclass(frozen=True)
class Verdict:
    target: Target
    row: Row
    by: str  # the target's candidate, or another build of it
    reached: Spread | None
    note: str

    @property
    def word(self) -> str:
        if self.reached is None:
            return "not measured"
        return "met" if self.target.is_met(self.reached.median) else "MISSED"


def judge(results: Results, rows: list[Row], candidates: list[Candidate]) -> list[Verdict]:
    """Every target of the rows, for every build of its candidate."""
    known = {row.id: row for row in rows}
    return [_verdict(results, target, known[target.row], by, candidates) for target in TARGETS if target.row in known
            for by in [c.name for c in candidates if c.kind == target.candidate] or [target.candidate]]


def _verdict(results: Results, target: Target, row: Row, by: str, candidates: list[Candidate]) -> Verdict:
    if not results.value(row, by):
        return Verdict(target, row, by, None, results.failures.get((row.id, by), "takes no part"))
    if target.against == ITSELF:
        return Verdict(target, row, by, results.value(row, by), "")
    others = [c.name for c in candidates if (c.peer if target.against == PEER else c.kind == target.against)]
    mine = next((c.program for c in candidates if c.name == by), "")  # Builds are compared with their own kind first.
    others = [c.name for c in candidates if c.name in others and c.program == mine] or others
    ratios = {other: ratio.median for other in others for ratio in [results.ratio(row, other)] if ratio}
    if not ratios:
        return Verdict(target, row, by, None, f"{target.against} was not measured")
    best = (max if target.sense == AT_LEAST else min)(ratios, key=ratios.__getitem__)
    reached = results.ratio(row, by, best)
    notes = [] if target.against == BARE else [f"{best} is at {human(ratios[best])} {target.times} bare"]
    if reached and not target.is_met(reached.median):
        notes += _floor(results, target, row, by, best)
    return Verdict(target, row, by, reached, "; ".join(notes))


def _floor(results: Results, target: Target, row: Row, by: str, other: str) -> list[str]:
    """How far a candidate is from the minimal daemon, and where that is itself."""
    floor = FLOORS.get(target.candidate, "")
    own, bound = results.ratio(row, by, floor), results.ratio(row, floor, other)
    if not own or not bound:
        return []
    return [f"{human(own.median)} {target.times} the floor, which is at {human(bound.median)}"]
