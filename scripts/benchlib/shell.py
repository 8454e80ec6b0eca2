"""Processes with a time limit, and the probe, which runs the tight loops."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path


class Failed(Exception):
    """Something that was measured did not work: the message is the report's."""


class TimedOut(Failed):
    """It had no end in time. It is not tried again."""


def end_group(process: subprocess.Popen) -> None:
    """Kills a process and those that it started. One that waits for a hung daemon stays until the mount goes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        pass


def run(command: list[str], cwd: Path | None = None, timeout: float = 60, env: dict | None = None,
        output: bool = True) -> str:
    """Runs a command in a process group of its own and returns what it printed. Raises Failed or TimedOut."""
    started = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, text=True, errors="replace",
        stdout=subprocess.PIPE if output else subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        out, error = started.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end_group(started)
        raise TimedOut(f"{os.path.basename(command[0])}: no end in {timeout:.0f} s") from None
    except BaseException:
        end_group(started)
        raise
    if started.returncode:
        lines = [line for line in error.strip().splitlines() if line] or ["no message"]
        raise Failed(f"{os.path.basename(command[0])} ended with {started.returncode}: {lines[-1]}")
    return out or ""


def quietly(command: list[str], timeout: float = 30) -> bool:
    """Whether the command worked; for steps that may fail."""
    try:
        run(command, timeout=timeout)
    except (Failed, OSError):
        return False
    return True


def first_line(command: list[str], containing: str = "") -> str:
    """The first line of the output that has the word; "" where there is none or no such program."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((line.strip() for line in done.stdout.splitlines() if containing in line), "")


class Probe:
    """The compiled probe.c."""

    def __init__(self, directory: Path) -> None:
        self.program = directory / "probe"
        source = Path(__file__).with_name("probe.c")
        run(["gcc", "-O2", "-Wall", "-o", str(self.program), str(source), "-pthread"])

    def __call__(self, job: str, path: Path | str, cwd: Path | None = None, timeout: float = 60,
                 **keys: int) -> tuple[float, int]:
        """Runs a job; seconds, and its result (bytes, a count or a sum)."""
        arguments = [f"{key}={value}" for key, value in keys.items()]
        out = run([str(self.program), job, str(path), *arguments], cwd=cwd, timeout=timeout)
        nanoseconds, result = out.split()
        return int(nanoseconds) / 1e9, int(result)


def wait_until(condition, seconds: float, nap: float = 0.001) -> bool:
    """Waits for a condition; whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(nap)
    return True
