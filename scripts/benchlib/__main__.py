"""The command line of scripts/bench, and the order of events."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path

from . import machine, report, targets, workloads, workloads_scratch
from .data import QUICK, Data, Sizes
from .filesystems import CANDIDATES, COPIES, FLOOR, MMAPFS, Candidate, Mounts
from .machine import Failed, Probe
from .results import BARE
from .run import Plan, Runner
from .turn import Bench, Workload

WORKLOADS = (*workloads.WORKLOADS, *workloads_scratch.WORKLOADS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures mmapfs against the bare directory and its peers, in one run.",
        epilog="docs/bench.md says how to read the output.")
    parser.add_argument("--quick", action="store_true", help="small data, at most 2 minutes")
    parser.add_argument("--rows", metavar="A,B", default="*",
                        help="only these rows: ids, groups or patterns (see --list)")
    parser.add_argument("--candidates", metavar="A,B", help="only these and bare; NAME=PATH is NAME with another "
                        "program, which is compared with NAME")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most N rounds (default 5, quick 3)")
    parser.add_argument("--minutes", type=float, metavar="N", help="the time budget (default 15, quick 2)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="the place of data and mounts (default: TMPDIR)")
    parser.add_argument("--disk", choices=("loop", "none"), default="loop",
                        help="the data lies on a filesystem of its own in a file (default), or in the directory itself")
    parser.add_argument("--binary", type=Path, default=Path(MMAPFS), metavar="PATH",
                        help="the mmapfs to measure (default: built here)")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("target/bench"),
                        help="the place of bench.txt and bench.json, which has every sample (default: target/bench)")
    parser.add_argument("--targets", action="store_true", help="compare with the targets")
    parser.add_argument("--check", action="store_true", help="as --targets; end with 1 if one is missed")
    parser.add_argument("--no-install", action="store_true", help="install no packages")
    parser.add_argument("--list", action="store_true", help="list rows and candidates, and end")
    parser.add_argument("--floor", type=Path, default=Path(FLOOR), help=argparse.SUPPRESS)
    parser.add_argument("--missing", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def choose_workloads(sizes: Sizes, words: str) -> list[Workload]:
    """Workloads with the wanted rows, and with the sizes in their titles."""
    numbers = {name: f"{size:,}" for name, size in dataclasses.asdict(sizes).items()}
    chosen, used = [], set()
    for workload in WORKLOADS:
        rows = []
        for row in workload.rows:
            found = {word for word in words.split(",")
                     if word in (workload.name, row.id.partition(".")[0]) or fnmatch(row.id, word)}
            used |= found
            rows += [dataclasses.replace(row, title=row.title.format(**numbers))] if found else []
        chosen += [dataclasses.replace(workload, rows=tuple(rows))] if rows else []
    for word in set(words.split(",")) - used:
        sys.exit(f"bench: there is no row `{word}`: see --list")
    return chosen


def choose_candidates(words: str | None) -> list[Candidate]:
    """Those of the table in its order, each followed by its other builds."""
    known = {candidate.name: candidate for candidate in CANDIDATES}
    chosen = {BARE: known[BARE]}
    for word in words.split(",") if words else known:
        name, _, program = word.partition("=")
        if name not in known or program and not known[name].program:
            sys.exit(f"bench: there is no candidate `{word}`: see --list")
        chosen[word] = known[name].built_by(program) if program else known[name]
    return sorted(chosen.values(), key=lambda candidate: list(known).index(candidate.kind))


def show_list(workloads: list[Workload]) -> None:
    print("rows:")
    for row in (row for workload in workloads for row in workload.rows):
        print(f"  {row.id:22} {row.title}")
    print("candidates:")
    for candidate in CANDIDATES:
        print(f"  {candidate.name:22} {candidate.what}: {' '.join(candidate.options) or '(no options)'}")


def fitting(sizes: Sizes, directory: Path) -> Sizes:
    """Files that the page cache and the disk hold several times over."""
    free = shutil.disk_usage(directory).free // 6 >> 20 << 20  # each file, a copy of it, and room for the others
    most = max(min(machine.bytes_of("/proc/meminfo", "MemAvailable") // 6 >> 20 << 20, free), 64 << 20)
    return dataclasses.replace(sizes, big=min(sizes.big, most), written=min(sizes.written, most // 2),
                               large=min(sizes.large, free))


def mountable(mounts: Mounts, candidates: list[Candidate], note) -> dict[Candidate, str]:
    """The candidates that can be mounted, with version and options; a note says why another one cannot."""
    found = {}
    for candidate in candidates:
        try:
            found[candidate] = " ".join([mounts.version(candidate), *candidate.options])
        except (Failed, OSError) as error:
            note(f"{candidate.name} is LEFT OUT: {error}")
    return found


def measure(options: argparse.Namespace, work: Path, undo: ExitStack) -> int:
    """One run. `undo` removes its mounts and its disk."""
    began = time.monotonic()
    notes = [f"the package {package} cannot be installed" for package in options.missing.split()]

    def note(line: str) -> None:
        notes.append(line)
        print(f"NOTE: {line}", flush=True)

    sizes = fitting(QUICK if options.quick else Sizes(), work)
    chosen, wanted = choose_workloads(sizes, options.rows), choose_candidates(options.candidates)
    megabytes = 3 * max(sizes.big, sizes.written) // 2**20 + 2048
    if any(workload.needs == COPIES for workload in chosen):
        megabytes += 3 * sizes.large // 2**20
    disk = machine.Disk(work, megabytes if options.disk == "loop" else 0)
    undo.callback(disk.close)
    mounts = Mounts(work, disk.root / "data", disk.root, {MMAPFS: options.binary, FLOOR: options.floor})
    undo.callback(mounts.unmount)
    undo.callback(handle_signals, signal.SIG_IGN)
    probe = Probe(work)
    data = Data(mounts.source, work, sizes, probe)
    candidates = mountable(mounts, wanted, note)
    about = machine.describe(data.root) | {candidate.name: line for candidate, line in candidates.items()}
    for part in dict.fromkeys(workload.data for workload in chosen if workload.data):
        print(f"making data: {part}", flush=True)
        getattr(data, part)()
    disk.sync()

    seconds = (options.minutes or (2 if options.quick else 15)) * 60 - 10
    plan = Plan(chosen, list(candidates), options.rounds or (3 if options.quick else 5), began + seconds,
                {target.row for target in targets.TARGETS})
    runner = Runner(plan, Bench(data, disk, mounts, probe, timeout=20 if options.quick else 90), note)
    interrupted = False
    try:
        runner.run()
    except KeyboardInterrupt:
        note("interrupted: some turns are missing")
        interrupted = True
    about["load after"] = machine.load()
    judged = options.targets or options.check
    verdicts = targets.judge(runner.results, plan.rows, plan.candidates) if judged else []
    report.write(options.output, runner.results, plan, about, verdicts, notes)
    missed = options.check and any(verdict.word != "met" for verdict in verdicts)
    return 130 if interrupted else int(missed)


def interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def handle_signals(handler) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def main() -> int:
    options = parse()
    if options.list:
        show_list(choose_workloads(QUICK if options.quick else Sizes(), options.rows))
        return 0
    handle_signals(interrupt)
    with tempfile.TemporaryDirectory(prefix="mmapfs-bench.", dir=options.dir) as name, ExitStack() as undo:
        os.chmod(name, 0o755)  # Any user may pass through it.
        os.environ["MMAPFS_STATE_DIR"] = f"{name}/state"  # The registry of scratches is removed with everything else.
        try:
            return measure(options, Path(name).resolve(), undo)
        except KeyboardInterrupt:
            return 130
        except Failed as error:
            sys.exit(f"bench: {error}")


if __name__ == "__main__":
    sys.exit(main())
