"""Rows: what is measured, in which unit, and what a ratio of it means."""

from __future__ import annotations

from dataclasses import dataclass

BANDWIDTH = "bandwidth"  # MB/s; the ratio is the share of the bare filesystem's: more is better
TIME = "time"  # seconds; the ratio is the multiple of the bare filesystem's: less is better
ABSOLUTE = "absolute"  # a number of its own that the bare filesystem does not have: less is better


@dataclass(frozen=True)
class Row:
    """One line of the report. `id` is GROUP.VARIANT."""

    id: str
    title: str
    kind: str
    unit: str = ""

    @property
    def group(self) -> str:
        return self.id.split(".")[0]


@dataclass(frozen=True)
class Sample:
    """One measurement: the value in the row's unit, and what the daemon used for it (None without a daemon)."""

    row: str
    candidate: str
    round: int
    value: float
    daemon_cpu: float | None = None
    daemon_rss: int | None = None  # bytes, the most since it started
    daemon_fds: int | None = None

    def as_dict(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if value is not None}


def human(value: float, unit: str) -> str:
    """A value with its unit, three digits."""
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us")):
            if value * factor >= 1 or name == "us":
                return f"{three(value * factor)} {name}"
    return f"{three(value)} {unit}".strip()


def three(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.4f}"
