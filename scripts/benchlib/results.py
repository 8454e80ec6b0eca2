"""Rows and samples; medians, spreads, and ratios to another candidate of the same round."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median

BARE = "bare"  # the candidate that all others are compared with
BANDWIDTH, TIME, ABSOLUTE = "share", "times", "absolute"  # the sense of a row's ratio; less is better but for the first
NOT_ITS, OUT_OF_TIME = "not for it", "out of time"  # reasons for no sample that are no failure


@dataclass(frozen=True)
class Row:
    """One line of the report. `id` is GROUP.VARIANT."""

    id: str
    title: str
    unit: str = "s"

    @property
    def kind(self) -> str:
        return {"MB/s": BANDWIDTH, "s": TIME}.get(self.unit, ABSOLUTE)


@dataclass(frozen=True)
class Sample:
    """One measurement, in the row's unit."""

    row: str
    candidate: str
    round: int
    value: float


@dataclass(frozen=True)
class Spread:
    median: float
    least: float
    most: float
    count: int


def spread(values: list[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values), len(values)) if values else None


class Results:
    """Every sample, and for every candidate without one in a row the reason."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.failures: dict[tuple[str, str], str] = {}  # (row, candidate): why

    def of(self, row: Row, candidate: str) -> list[Sample]:
        return [s for s in self.samples if s.row == row.id and s.candidate == candidate]

    def value(self, row: Row, candidate: str) -> Spread | None:
        return spread([s.value for s in self.of(row, candidate)])

    def ratio(self, row: Row, candidate: str, other: str = BARE) -> Spread | None:
        """Against another candidate, round by round; the bare directory has no figure of an absolute row."""
        if row.kind == ABSOLUTE and other == BARE:
            return None
        own, theirs = self._by_round(row, candidate), self._by_round(row, other)
        return spread([own[number] / theirs[number] for number in sorted(own) if theirs.get(number)])

    def _by_round(self, row: Row, candidate: str) -> dict[int, float]:
        """The mean of each round: the bare directory has two turns in one."""
        rounds: dict[int, list[float]] = {}
        for sample in self.of(row, candidate):
            rounds.setdefault(sample.round, []).append(sample.value)
        return {number: mean(values) for number, values in rounds.items()}


def human(value: float, unit: str = "") -> str:
    """Three significant digits without an exponent, and the unit."""
    if unit == "s" and value < 1:
        value, unit = (value * 1e3, "ms") if value >= 1e-3 else (value * 1e6, "us")
    if abs(value) >= 100:
        digits = f"{value:.0f}"
    else:
        digits = f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.4f}"
    return f"{digits} {unit}".strip()
