"""Rounds: in each, every candidate has its turn at every workload, in an order that rotates; within a time budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from .filesystems import Candidate
from .rows import Row
from .shell import Failed, TimedOut
from .stats import BARE, Results
from .turn import Place, Turn, Workload

READ_ONLY = "reads only"
NOT_ITS = "not for it"
NEVER_COLD = "reads every name at its start"
OUT_OF_TIME = "not measured: out of time"
MOST_TIMEOUTS = 3  # of one candidate, before it is given up


@dataclass
class Plan:
    workloads: list[Workload]
    candidates: list[Candidate]
    wanted: set[str]
    rounds: int
    budget: float  # seconds from `began`
    began: float
    first: set[str] = field(default_factory=set)  # rows that get their rounds before others
    cut: list[str] = field(default_factory=list)  # what was left out for want of time

    def left(self) -> float:
        return self.budget - (time.monotonic() - self.began)

    def rows(self) -> list[Row]:
        """In the order of the report, wanted ones only."""
        return [row for workload in self.workloads for row in workload.rows if row.id in self.wanted]


class Runner:
    def __init__(self, plan: Plan, place: Place, say, show) -> None:
        self.plan = plan
        self.place = place
        self.results = Results()
        self.say = say  # a line of progress
        self.show = show  # a workload whose turns of a round are over
        self.hopeless: set[tuple[str, str]] = set()  # (workload, candidate) that had no end in time
        self.costs: dict[str, float] = {}

    def run(self) -> None:
        for number in range(1, self.plan.rounds + 1):
            left_out = [w.name for w in self._workloads(number) if not self._all_turns(w, number)]
            if left_out:
                everything = len(left_out) == len(self._workloads(number))
                self.plan.cut.append(f"round {number} of {'every row' if everything else ', '.join(left_out)}")

    def _workloads(self, number: int) -> list[Workload]:
        """Those first that something must be reached in: where time ends, the others are left out."""
        def last(workload: Workload) -> tuple[bool, bool]:
            unbound = not any(row.id in self.plan.first for row in workload.rows)
            return (unbound, not workload.cheap) if number == 1 else (not workload.cheap, unbound)

        return sorted((w for w in self.plan.workloads if w.cheap or number <= 2), key=last)

    def _all_turns(self, workload: Workload, number: int) -> bool:
        """Every candidate's turn; whether there was time."""
        if not self._affordable(workload, number):
            if number == 1:
                for candidate in self.plan.candidates:
                    self._fail(self._rows(workload), candidate, OUT_OF_TIME)
            return False
        if number == 1:
            # What is done for the first time, from the disk or in a new filesystem, is nobody's to pay for.
            self._turn(workload, self.plan.candidates[0], number, rehearsal=True)
        begun = time.monotonic()
        for candidate in self._order(number + self.plan.workloads.index(workload)):
            self._turn(workload, candidate, number)
        self.costs[workload.name] = time.monotonic() - begun
        if self.plan.left() < 0:
            self.plan.cut.append(f"some turns of round {number} of {workload.name}")
        self.show(self.results, workload, number)
        return True

    def _order(self, shift: int) -> list[Candidate]:
        """Rotated, with a second turn of the bare directory half a round after its first."""
        candidates = self.plan.candidates
        if len(candidates) == 1:
            return candidates
        shift %= len(candidates)
        order = candidates[shift:] + candidates[:shift]
        bare = next(index for index, candidate in enumerate(order) if candidate.name == BARE)
        middle = (bare + len(order) // 2) % len(order) + 1
        return order[:middle] + [order[bare]] + order[middle:]

    def _rows(self, workload: Workload) -> list[str]:
        return [row.id for row in workload.rows if row.id in self.plan.wanted]

    def _affordable(self, workload: Workload, number: int) -> bool:
        """The first round is always begun while there is time at all; later ones where they fit in wholly."""
        left = self.plan.left()
        return left > 0 if number == 1 else self.costs.get(workload.name, 0) * 1.1 < left

    def _turn(self, workload: Workload, candidate: Candidate, number: int, rehearsal: bool = False) -> None:
        rows = self._rows(workload)
        if candidate.read_only and not workload.read_only:
            self._fail(rows, candidate, READ_ONLY)
            return
        if candidate.name != BARE and (candidate.only_copying and not workload.copying
                                       or workload.copying and not candidate.copies):
            self._fail(rows, candidate, NOT_ITS)
            return
        if candidate.only_reading and not workload.of_content:
            self._fail(rows, candidate, NOT_ITS)
            return
        if candidate.preloads and all(row.id.endswith(".cold") for row in workload.rows):
            self._fail(rows, candidate, NEVER_COLD)
            return
        if (workload.name, candidate.name) in self.hopeless:
            return
        if sum(name == candidate.name for _, name in self.hopeless) >= MOST_TIMEOUTS:
            self._fail(rows, candidate, f"given up after {MOST_TIMEOUTS} rows without an end")
            return
        if self.plan.left() < 0 and candidate.name != BARE:
            if number == 1:
                self._fail(rows, candidate, OUT_OF_TIME)
            return
        # The last steps may not take much more than the time that is left.
        place = replace(self.place, timeout=min(self.place.timeout, max(self.plan.left(), 0) + 5))
        turn = Turn(place, workload, candidate, number, set() if rehearsal else set(rows))
        why = ""
        try:
            workload.run(turn)
        except TimedOut as error:
            self.hopeless.add((workload.name, candidate.name))
            why = str(error)
        except (Failed, OSError) as error:
            why = str(error)
        finally:
            self.place.mounts.unmount()
        if rehearsal:
            return
        self.results.samples += turn.samples
        missing = [row for row in rows if row not in {sample.row for sample in turn.samples}]
        if why:
            self.say(f"{candidate.name} failed in {workload.name}: {why}")
            self._fail(missing or rows[-1:], candidate, why)

    def _fail(self, rows: list[str], candidate: Candidate, why: str) -> None:
        for row in rows:
            self.results.failures.setdefault((row, candidate.name), why)
