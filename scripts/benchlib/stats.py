"""Medians, spreads, and ratios to the bare filesystem of the same round."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median

from .rows import ABSOLUTE, Row, Sample

BARE = "bare"


@dataclass(frozen=True)
class Spread:
    """A median with what it lies between, and of how many samples."""

    median: float
    least: float
    most: float
    count: int


def spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(median(values), min(values), max(values), len(values))


class Results:
    """Every sample, and for every candidate that has none in a row, why."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.failures: dict[tuple[str, str], str] = {}  # (row, candidate): why

    def values(self, row: str, candidate: str) -> list[float]:
        return [s.value for s in self.samples if s.row == row and s.candidate == candidate]

    def value(self, row: str, candidate: str) -> Spread | None:
        return spread(self.values(row, candidate))

    def ratio(self, row: Row, candidate: str) -> Spread | None:
        """Against the bare filesystem, round by round."""
        if row.kind == ABSOLUTE:
            return None
        bare, own = self._by_round(row.id, BARE), self._by_round(row.id, candidate)
        return spread([own[n] / bare[n] for n in sorted(own) if bare.get(n)])

    def _by_round(self, row: str, candidate: str) -> dict[int, float]:
        """The mean of each round: the bare directory has two turns in one."""
        rounds: dict[int, list[float]] = {}
        for sample in self.samples:
            if sample.row == row and sample.candidate == candidate:
                rounds.setdefault(sample.round, []).append(sample.value)
        return {number: mean(values) for number, values in rounds.items()}

    def failure(self, row: str, candidate: str) -> str | None:
        return self.failures.get((row, candidate))

    def usage(self, row: str, candidate: str) -> dict[str, float]:
        """Medians of what the daemon used: cpu (s), rss (bytes), fds."""
        own = [s for s in self.samples if s.row == row and s.candidate == candidate]
        found = {}
        for name in ("daemon_cpu", "daemon_rss", "daemon_fds"):
            values = [getattr(s, name) for s in own if getattr(s, name) is not None]
            if values:
                found[name[len("daemon_"):]] = median(values)
        return found
