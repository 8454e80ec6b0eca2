"""What was measured, as text for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json

from .filesystems import Candidate
from .rows import ABSOLUTE, BANDWIDTH, Row, human, three
from .run import NEVER_COLD, NOT_ITS, OUT_OF_TIME, READ_ONLY, Plan
from .stats import BARE, Results
from .targets import Verdict

HOW_TO_READ = ("Ratios are to the bare directory of the same round, median [least-most]: for bandwidth (MB/s) the share "
               "of it, more is better; for time the multiple of it, less is better. "
               "cold: nothing cached; fresh mount: cached beneath the mount only; warm: once more.")


def cell(results: Results, row: Row, candidate: str, failures: bool = True) -> str:
    """One number with its spread: absolute for the bare directory and rows without a ratio."""
    value = results.value(row.id, candidate)
    failure = results.failure(row.id, candidate)
    if value is None:
        if failure in (None, READ_ONLY, NEVER_COLD, NOT_ITS):
            return "-"
        if failure == OUT_OF_TIME:
            return "no time"
        return f"failed: {failure}" if failures else "failed"
    if candidate == BARE or row.kind == ABSOLUTE:
        text = human(value.median, row.unit)
        spread = f" [{human(value.least, '')}-{human(value.most, '')}]" if row.unit != "s" else ""
    else:
        ratio = results.ratio(row, candidate)
        if ratio is None:
            return f"{human(value.median, row.unit)} (no bare)"
        text, spread = three(ratio.median), f" [{three(ratio.least)}-{three(ratio.most)}]"
    return text + (spread if value.count > 1 else "") + (" (failed at times)" if failure else "")


def _sense(row: Row) -> str:
    return {BANDWIDTH: "share", ABSOLUTE: "absolute"}.get(row.kind, "times")


def aligned(lines: list[list[str]]) -> str:
    """Columns, the first to the left and the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) if i == 0 else text.rjust(width)
                               for i, (text, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def _failures(results: Results, rows: list[Row]) -> list[str]:
    wanted = {row.id for row in rows}
    return [f"{row} of {candidate}: failed: {why}" for (row, candidate), why in results.failures.items()
            if row in wanted and why not in (READ_ONLY, NEVER_COLD, NOT_ITS, OUT_OF_TIME)]


def table(results: Results, rows: list[Row], candidates: list[Candidate]) -> str:
    lines = [["row", "", *(candidate.name for candidate in candidates)]]
    for row in rows:
        cells = [cell(results, row, candidate.name, failures=False) for candidate in candidates]
        lines.append([f"{row.id}: {row.title}", _sense(row), *cells])
    return aligned(lines)


def usage_lines(results: Results, rows: list[Row], candidates: list[Candidate]) -> list[list[str]]:
    """What the daemons used: CPU seconds, most memory, descriptors."""
    having = [candidate for candidate in candidates if candidate.has_daemon]
    lines = [["row", *(candidate.name for candidate in having)]]
    for row in rows:
        cells = []
        for candidate in having:
            used = results.usage(row.id, candidate.name)
            cells.append(f"{used['cpu']:.2f} s, {used['rss'] / 2**20:.0f} MiB, {used['fds']:.0f}"
                         if {"cpu", "rss", "fds"} <= set(used) else "-")
        if set(cells) != {"-"}:
            lines.append([row.id, *cells])
    return lines


def target_lines(verdicts: list[Verdict]) -> list[list[str]]:
    lines = [["row", "by", "target", "reached", "", "note"]]
    for verdict in verdicts:
        lines.append([f"{verdict.row.id}: {verdict.row.title}", verdict.target.candidate,
                      verdict.target.describe(verdict.row), verdict.shown(), verdict.word(), verdict.remark()])
    return lines


def text(results: Results, plan: Plan, machine: dict[str, str], verdicts: list[Verdict] | None,
         notes: list[str]) -> str:
    rows = plan.rows()
    parts = [HOW_TO_READ, "", table(results, rows, plan.candidates), "",
             "daemons: CPU time, most memory (mapped files included), open descriptors",
             aligned(usage_lines(results, rows, plan.candidates))]
    for heading, lines in (("failed", _failures(results, rows)), ("notes", notes)):
        if lines:
            parts += ["", heading + ":", *(f"  {line}" for line in lines)]
    if verdicts is not None:
        parts += ["", "targets:", aligned(target_lines(verdicts)), summary(verdicts)]
    parts += ["", "machine:", *(f"  {key}: {value}" for key, value in machine.items())]
    return "\n".join(parts)


def summary(verdicts: list[Verdict]) -> str:
    count = {True: 0, False: 0, None: 0}
    for verdict in verdicts:
        count[verdict.met] += 1
    return f"targets: {count[True]} met, {count[False]} missed, {count[None]} not measured"


def _markdown_table(lines: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(lines[0]), "|" + "---|" * len(lines[0]), *(line(cells) for cells in lines[1:])]


def markdown(results: Results, plan: Plan, machine: dict[str, str], verdicts: list[Verdict] | None,
             notes: list[str], plot: str) -> str:
    rows, candidates = plan.rows(), plan.candidates
    lines = [["row", "id", "ratio", *(candidate.label for candidate in candidates)]]
    lines += [[row.title, f"`{row.id}`", _sense(row), *(cell(results, row, c.name, failures=False) for c in candidates)]
              for row in rows]
    parts = ["# Bench", "", HOW_TO_READ, "", *_markdown_table(lines)]
    if plot:
        parts += ["", f"![Ratios to the bare directory]({plot})"]
    if verdicts is not None:
        parts += ["", "## Targets", "", *_markdown_table(target_lines(verdicts)), "", summary(verdicts)]
    parts += ["", "## What the daemons used", "", "CPU time, most memory (mapped files included), open descriptors.",
              "", *_markdown_table(usage_lines(results, rows, candidates))]
    for heading, found in (("Failed", _failures(results, rows)), ("Notes", notes)):
        if found:
            parts += ["", f"## {heading}", "", *(f"* {line}" for line in found)]
    parts += ["", "## Machine", "", *(f"* {key}: {value}" for key, value in machine.items())]
    return "\n".join(parts) + "\n"


def as_json(results: Results, plan: Plan, machine: dict[str, str], verdicts: list[Verdict] | None,
            notes: list[str]) -> str:
    rows = {}
    for row in plan.rows():
        cells = {}
        for candidate in plan.candidates:
            value, ratio = results.value(row.id, candidate.name), results.ratio(row, candidate.name)
            failure = results.failure(row.id, candidate.name)
            cells[candidate.name] = {
                **({"value": value.__dict__} if value else {}), **({"ratio": ratio.__dict__} if ratio else {}),
                **({"failed": failure} if failure else {}), **results.usage(row.id, candidate.name)}
        rows[row.id] = {"title": row.title, "kind": row.kind, "unit": row.unit, "candidates": cells}
    judged = [{"row": v.row.id, "candidate": v.target.candidate, "target": v.target.describe(v.row),
               "reached": v.reached, "met": v.met, "note": v.note,
               "floor": v.floor} for v in verdicts or []]
    return json.dumps({"machine": machine, "notes": notes, "rows": rows, "targets": judged,
                       "samples": [sample.as_dict() for sample in results.samples]}, indent=1) + "\n"
