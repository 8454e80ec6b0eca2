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
from fnmatch import fnmatch
from pathlib import Path

from . import machine, report_svg, report_text, targets
from . import workloads_data, workloads_names, workloads_programs, workloads_scratch
from .data import QUICK, Data, Sizes
from .disk import Disk
from .filesystems import CANDIDATES, FLOOR, MMAPFS, Candidate, Mounts
from .rows import Row
from .run import Plan, Runner
from .shell import Failed, Probe
from .stats import BARE, Results
from .turn import Place, Workload

WORKLOADS = (*workloads_data.WORKLOADS, *workloads_names.WORKLOADS, *workloads_programs.WORKLOADS,
             *workloads_scratch.WORKLOADS)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures mmapfs against the bare directory and its peers, in one run.",
        epilog="docs/bench.md says how to read what it prints.")
    parser.add_argument("--quick", action="store_true", help="small data, at most 2 minutes")
    parser.add_argument("--rows", metavar="A,B", help="only these rows: ids, groups or patterns (see --list)")
    parser.add_argument("--candidates", metavar="A,B", help="only these candidates; bare always takes part")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many (default 5, quick 3)")
    parser.add_argument("--minutes", type=float, metavar="N", help="the time budget (default 15, quick 2)")
    parser.add_argument("--realtime", action="store_true",
                        help="daemons and workloads go before everything else (SCHED_RR): beside other load")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where data and mounts are made (default: TMPDIR)")
    parser.add_argument("--disk", choices=("loop", "zram", "none"), default="loop",
                        help="what the data lies on: a filesystem of its own in a file (default) or in memory, or "
                             "the directory itself")
    parser.add_argument("--binary", type=Path, metavar="PATH", help="the mmapfs to measure (default: built here)")
    parser.add_argument("--floor", type=Path, metavar="PATH", help="the minimal daemon (default: built here)")
    parser.add_argument("--fuse-overlayfs", type=Path, metavar="PATH",
                        help="another build of it than the one that is installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample (default: target/bench/bench.json)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table (default: target/bench/bench.md)")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="the plot (default: target/bench/bench.svg)")
    parser.add_argument("--targets", action="store_true", help="compare with what must be reached")
    parser.add_argument("--check", action="store_true", help="as --targets; end with 1 where one is missed")
    parser.add_argument("--no-install", action="store_true", help="install no packages")
    parser.add_argument("--list", action="store_true", help="list rows and candidates, and end")
    parser.add_argument("--output", type=Path, default=Path("target/bench"), help=argparse.SUPPRESS)
    parser.add_argument("--missing", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def titled(sizes: Sizes) -> list[Workload]:
    """The workloads, with their sizes in the titles."""
    numbers = {field.name: f"{getattr(sizes, field.name):,}" for field in dataclasses.fields(sizes)}
    return [dataclasses.replace(w, rows=tuple(dataclasses.replace(r, title=r.title.format(**numbers)) for r in w.rows))
            for w in WORKLOADS]


def choose_rows(workloads: list[Workload], wanted: str | None) -> set[str]:
    rows = [row for workload in workloads for row in workload.rows]
    if not wanted:
        return {row.id for row in rows}
    found: set[str] = set()
    for word in wanted.split(","):
        names = [row.id for row in rows if word == row.group or fnmatch(row.id, word)]
        names += [row.id for workload in workloads if workload.name == word for row in workload.rows]
        if not names:
            sys.exit(f"bench: there is no row `{word}`: see --list")
        found.update(names)
    return found


def choose_candidates(wanted: str | None) -> list[Candidate]:
    names = {candidate.name for candidate in CANDIDATES}
    chosen = set(wanted.split(",")) if wanted else names
    if chosen - names:
        sys.exit(f"bench: there is no candidate `{sorted(chosen - names)[0]}`: see --list")
    return [candidate for candidate in CANDIDATES if candidate.name in chosen | {BARE}]


def show_list(workloads: list[Workload]) -> None:
    print("rows:")
    for workload in workloads:
        for row in workload.rows:
            print(f"  {row.id:22} {row.title}")
    print("candidates:")
    for candidate in CANDIDATES:
        print(f"  {candidate.name:22} {candidate.label}: {' '.join(candidate.options) or '(no options)'}")


def fitting(sizes: Sizes, directory: Path) -> Sizes:
    """Files that the page cache holds several times over, and the disk as well."""
    least = min(machine.available_bytes(), shutil.disk_usage(directory).free)
    most = max(least // 6 >> 20 << 20, 64 << 20)
    large = shutil.disk_usage(directory).free // 6 >> 20 << 20  # itself, a copy, and room for the others
    return dataclasses.replace(sizes, big=min(sizes.big, most), written=min(sizes.written, most // 2),
                               large=min(sizes.large, large))


class Bench:
    """One run, and everything that it has to take away again."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.began = time.monotonic()
        self.sizes = fitting(QUICK if options.quick else Sizes(), work)
        self.workloads = titled(self.sizes)
        self.wanted = choose_rows(self.workloads, options.rows)
        self.notes: list[str] = ["reduced data (--quick): figures are indicative"] if options.quick else []
        self.work = work
        self.disk: Disk | None = None
        self.mounts: Mounts | None = None

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {line}", flush=True)

    def note(self, line: str) -> None:
        self.notes.append(line)
        self.say(f"NOTE: {line}")

    def run(self) -> int:
        probe = Probe(self.work)
        workloads = [w for w in self.workloads if any(row.id in self.wanted for row in w.rows)]
        megabytes = 3 * max(self.sizes.big, self.sizes.written) // 2**20 + 2048
        if any(workload.copying for workload in workloads):
            megabytes += 3 * self.sizes.large // 2**20
        self.disk = Disk(self.work, self.options.disk, megabytes)
        if not self.disk.mounted and self.options.disk != "none":
            self.note(f"the data lies on {self.disk.note}: create and remove rows may stall")
        root, beside = self.disk.root / "data", self.work / "beside"
        root.mkdir()
        beside.mkdir()
        upper = self.disk.root / "beside"
        upper.mkdir()
        built = {MMAPFS: self.options.binary, FLOOR: self.options.floor}
        if self.options.fuse_overlayfs:
            built["fuse-overlayfs"] = self.options.fuse_overlayfs.resolve()
        self.mounts = Mounts(self.work, root, upper, built)
        data = Data(root, beside, self.sizes, probe, self.say)
        about = machine.describe(root, self.disk.note)
        if self.options.realtime:
            # What is started from here on inherits it.
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
            self.note("daemons and workloads run at SCHED_RR (--realtime)")
        candidates = self._candidates(about)
        data.make({row.group for workload in workloads for row in workload.rows} | {w.name for w in workloads})
        self.disk.sync()
        plan = self._plan(workloads, candidates)
        place = Place(data, self.disk, self.mounts, probe, timeout=20 if self.options.quick else 90)
        runner = Runner(plan, place, self.say, self._show)
        try:
            runner.run()
        except KeyboardInterrupt:
            self.say("interrupted: this is what was measured until now")
            self._report(runner.results, plan, about)
            return 130
        return self._report(runner.results, plan, about)

    def _candidates(self, about: dict[str, str]) -> list[Candidate]:
        """Those that can be mounted; about the others it says why they cannot."""
        assert self.mounts
        taking_part = []
        for candidate in choose_candidates(self.options.candidates):
            why = "" if candidate.name == BARE else self.mounts.why_not(candidate)
            if why:
                self.note(f"{candidate.name} is LEFT OUT: {why}")
                continue
            taking_part.append(candidate)
            if candidate.name != BARE:
                options = " ".join(option for option in candidate.options if option != "-o")
                about[candidate.name] = f"{self.mounts.version(candidate)}, mounted with: {options or 'no options'}"
        for package in self.options.missing.split():
            self.note(f"the package {package} cannot be installed")
        return taking_part

    def _plan(self, workloads: list[Workload], candidates: list[Candidate]) -> Plan:
        rounds = self.options.rounds or (3 if self.options.quick else 5)
        minutes = self.options.minutes or (2 if self.options.quick else 15)
        return Plan(workloads, candidates, self.wanted, rounds, minutes * 60 - 10, self.began,
                    first={target.row for target in targets.TARGETS})

    def _show(self, results: Results, workload: Workload, number: int) -> None:
        """The rows so far, as each workload's turns are over."""
        rows: list[Row] = [row for row in workload.rows if row.id in self.wanted]
        for row in rows:
            cells = [f"{candidate.name} {report_text.cell(results, row, candidate.name, failures=False)}"
                     for candidate in CANDIDATES if results.value(row.id, candidate.name)
                     or results.failure(row.id, candidate.name)]
            self.say(f"round {number}, {row.id}: " + ", ".join(cells))

    def _report(self, results: Results, plan: Plan, about: dict[str, str]) -> int:
        about["load after"] = machine.load()
        about["took"] = f"{time.monotonic() - self.began:.0f} s, at most {plan.rounds} rounds"
        self.notes += [f"cut for want of time: {line}" for line in plan.cut]
        judged = self.options.targets or self.options.check
        verdicts = targets.judge(results, plan.rows()) if judged else None
        print("\n" + report_text.text(results, plan, about, verdicts, self.notes))
        self._write(results, plan, about, verdicts)
        missed = any(verdict.met is not True for verdict in verdicts or [])
        return 1 if self.options.check and missed else 0

    def _write(self, results: Results, plan: Plan, about: dict[str, str], verdicts) -> None:
        output = self.options.output
        files = {kind: getattr(self.options, option) or output / f"bench.{kind}"
                 for kind, option in (("json", "json"), ("md", "markdown"), ("svg", "svg"))}
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        subtitle = f"{about['date']}, Linux {about['kernel']}, {about['processor']}, {about['memory']}"
        plot = os.path.relpath(files["svg"], files["md"].parent)
        files["svg"].write_text(report_svg.svg(results, plan.rows(), plan.candidates, subtitle))
        files["md"].write_text(report_text.markdown(results, plan, about, verdicts, self.notes, plot))
        files["json"].write_text(report_text.as_json(results, plan, about, verdicts, self.notes))
        print("\nwritten: " + ", ".join(str(path) for path in files.values()))

    def close(self) -> None:
        """Unmounts and detaches; whatever comes, it goes on to the end."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if self.mounts:
            self.mounts.unmount()
        if self.disk:
            self.disk.close()


def interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = parse(sys.argv[1:])
    if options.list:
        show_list(titled(QUICK if options.quick else Sizes()))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    options.binary = options.binary.resolve() if options.binary else Path(MMAPFS)
    options.floor = options.floor.resolve() if options.floor else Path("target/release/examples/floor")
    # The name is short, and any user may pass through it.
    with tempfile.TemporaryDirectory(prefix="mmapfs-bench.", dir=options.dir) as name:
        os.chmod(name, 0o755)
        # Where scratches are listed goes with everything else.
        os.environ["MMAPFS_STATE_DIR"] = str(Path(name).resolve() / "state")
        bench = Bench(options, Path(name).resolve())
        try:
            return bench.run()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Failed as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            bench.close()


if __name__ == "__main__":
    sys.exit(main())
