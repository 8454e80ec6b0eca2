"""Rounds: in each, every candidate has its turn at every workload, in an order that rotates; within a time budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from .filesystems import Candidate
from .machine import Failed
from .results import BARE, NOT_ITS, OUT_OF_TIME, Results, Row
from .turn import Bench, Turn, Workload


@dataclass
class Plan:
    workloads: list[Workload]  # with the wanted rows
    candidates: list[Candidate]
    rounds: int
    end: float  # of the time budget, by the monotonic clock
    first: set[str]  # rows whose rounds come before those of others

    @property
    def rows(self) -> list[Row]:
        return [row for workload in self.workloads for row in workload.rows]

    def left(self) -> float:
        return self.end - time.monotonic()

    def order(self, number: int) -> list[Workload]:
        """The workloads of a round, those with targets first, in case the time does not suffice for all."""
        def last(workload: Workload) -> tuple[bool, bool]:
            unbound = not any(row.id in self.first for row in workload.rows)
            return (unbound, not workload.cheap) if number == 1 else (not workload.cheap, unbound)

        return sorted((w for w in self.workloads if w.cheap or number <= 2), key=last)

    def turns(self, shift: int) -> list[Candidate]:
        """The candidates, rotated, with a second turn of the bare directory half a round after its first."""
        bare, *others = sorted(self.candidates, key=lambda candidate: candidate.name != BARE)
        half, shift = len(others) // 2, shift % (len(others) + 2)
        turns = [bare, *others[:half], bare, *others[half:]] if others else [bare]
        return turns[shift:] + turns[:shift]


class Runner:
    def __init__(self, plan: Plan, bench: Bench, note) -> None:
        self.plan, self.bench = plan, bench
        self.results = Results()
        self.note = note  # keeps a line for the report
        self.costs: dict[str, float] = {}  # seconds of a workload's round

    def run(self) -> None:
        for number in range(1, self.plan.rounds + 1):
            order = self.plan.order(number)
            left_out = [workload.name for workload in order if not self._round(workload, number)]
            if left_out:
                names = "everything" if len(left_out) == len(order) else ", ".join(left_out)
                self.note(f"round {number} is left out for want of time, for {names}")

    def _round(self, workload: Workload, number: int) -> bool:
        """Every candidate's turn; whether there was time. Later rounds begin only if they fit in as a whole."""
        if self.plan.left() <= self.costs.get(workload.name, 0) * 1.1:
            for candidate in self.plan.candidates if number == 1 else ():
                self._fail(workload.rows, candidate, OUT_OF_TIME)
            return False
        if number == 1:
            # A rehearsal: nobody pays for the first time, which reads from the disk or writes into a new filesystem.
            self._turn(replace(workload, rows=()), self.plan.candidates[0], number)
        begun = time.monotonic()
        for candidate in self.plan.turns(number + self.plan.workloads.index(workload)):
            self._turn(workload, candidate, number)
        self.costs[workload.name] = time.monotonic() - begun
        print(f"{self.plan.left():5.0f} s left after round {number} of {workload.name}", flush=True)
        return True

    def _turn(self, workload: Workload, candidate: Candidate, number: int) -> None:
        cold = workload.name.endswith("-cold")
        if workload.needs not in candidate.meets or candidate.preloads and cold:
            return self._fail(workload.rows, candidate, NOT_ITS)
        if self.plan.left() < 0 and candidate.name != BARE:
            return self._fail(workload.rows, candidate, OUT_OF_TIME)
        # The last steps may not take much more than the time that is left.
        bench = replace(self.bench, timeout=min(self.bench.timeout, max(self.plan.left(), 0) + 5))
        turn = Turn(bench, workload.rows, candidate, number)
        try:
            workload.run(turn)
        except (Failed, OSError) as error:
            measured = {sample.row for sample in turn.samples}
            missing = [row for row in workload.rows if row.id not in measured]
            self._fail(missing or workload.rows[-1:], candidate, str(error))
        finally:
            self.bench.mounts.unmount()
        self.results.samples += turn.samples

    def _fail(self, rows: list[Row], candidate: Candidate, why: str) -> None:
        for row in rows:
            self.results.failures.setdefault((row.id, candidate.name), why)
