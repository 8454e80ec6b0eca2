"""The results of a run, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .filesystems import Candidate
from .results import BANDWIDTH, BARE, NOT_ITS, OUT_OF_TIME, Results, Row, Spread, human
from .run import Plan
from .targets import Verdict

HOW_TO_READ = """\
Ratios are to the bare directory of the same round, median [least-most]. share: of its bandwidth, more is better;
times: of its time, less is better; absolute: no ratio, less is better. cold: nothing cached; fresh mount: cached
beneath the mount only; warm: once more."""
Lines = list[list[str]]


def aligned(lines: Lines) -> list[str]:
    """Columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(text.ljust(width) if i == 0 else text.rjust(width)
                      for i, (text, width) in enumerate(zip(line, widths))).rstrip() for line in lines]


def _with_spread(value: Spread, unit: str = "") -> str:
    spread = f" [{human(value.least, unit)}-{human(value.most, unit)}]" if value.count > 1 else ""
    return human(value.median, unit) + spread


def cell(results: Results, row: Row, candidate: str) -> str:
    """One figure with its spread: absolute for the bare directory and for rows without a ratio."""
    value, failure = results.value(row, candidate), results.failures.get((row.id, candidate), NOT_ITS)
    failed = failure not in (NOT_ITS, OUT_OF_TIME)
    if value is None:
        return "failed" if failed else "no time" if failure == OUT_OF_TIME else "-"
    ratio = results.ratio(row, candidate) if candidate != BARE else None
    return (_with_spread(ratio) if ratio else _with_spread(value, row.unit)) + (" (failed at times)" if failed else "")


def _table(results: Results, rows: list[Row], candidates: list[Candidate]) -> Lines:
    return [["row", "", *(candidate.name for candidate in candidates)]] + [
        [f"{row.id}: {row.title}", row.kind, *(cell(results, row, candidate.name) for candidate in candidates)]
        for row in rows]


def _builds(results: Results, rows: list[Row], candidates: list[Candidate]) -> Lines:
    """The first build of a candidate against each other one of it, round by round."""
    lines = [["row", "", "this", "against", "ratio", ""]]
    for first in candidates:
        same = [candidate for candidate in candidates if candidate.kind == first.kind]
        for other in same[1:] if first is same[0] else ():
            for row in rows:
                ratio = results.ratio(row, first.name, other.name)
                if ratio:
                    lines.append([row.id, row.kind, first.name, other.name, _with_spread(ratio), _word(row, ratio)])
    return lines


def _word(row: Row, ratio: Spread) -> str:
    """Says worse or better only where all of several rounds do."""
    if ratio.count < 3 or ratio.least <= 1 <= ratio.most:
        return ""
    return "better" if (ratio.least > 1) == (row.kind == BANDWIDTH) else "WORSE"


def _targets(verdicts: list[Verdict]) -> Lines:
    return [["row", "by", "target", "reached", "", "note"]] + [
        [f"{v.row.id}: {v.row.title}", v.by, v.target.describe(v.row),
         human(v.reached.median, "" if v.target.against else v.row.unit) if v.reached else "-", v.word, v.note]
        for v in verdicts]


def _count(verdicts: list[Verdict]) -> str:
    words = [verdict.word for verdict in verdicts]
    return "targets: " + ", ".join(f"{words.count(word)} {word.lower()}" for word in ("met", "MISSED", "not measured"))


def text(results: Results, plan: Plan, machine: dict[str, str], verdicts: list[Verdict], notes: list[str]) -> str:
    rows, candidates = plan.rows, plan.candidates
    builds, targets = _builds(results, rows, candidates), _targets(verdicts)
    sections = {
        HOW_TO_READ: aligned(_table(results, rows, candidates)),
        "builds: the first against the others": aligned(builds) if builds[1:] else [],
        _count(verdicts): aligned(targets) if targets[1:] else [],
        "failed:": [f"{row} of {candidate}: {why}" for (row, candidate), why in results.failures.items()
                    if why not in (NOT_ITS, OUT_OF_TIME)],
        "notes:": notes,
        "machine:": [f"{key}: {value}" for key, value in machine.items() if value.strip()],
    }
    return "\n\n".join("\n".join([heading, *lines]) for heading, lines in sections.items() if lines)


def write(directory: Path, results: Results, plan: Plan, machine: dict[str, str], verdicts: list[Verdict],
          notes: list[str]) -> None:
    """Prints the report and keeps it, and every sample beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    report = text(results, plan, machine, verdicts, notes)
    (directory / "bench.txt").write_text(report + "\n")
    (directory / "bench.json").write_text(json.dumps({
        "machine": machine, "notes": notes, "rows": [asdict(row) for row in plan.rows],
        "samples": [asdict(sample) for sample in results.samples],
        "failures": [[*key, why] for key, why in results.failures.items()]}, indent=1) + "\n")
    print(f"\n{report}\n\nwritten: {directory}/bench.txt and bench.json")
