"""What machine it was measured on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path


def _field(path: str, name: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""


def memory_bytes() -> int:
    return int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) * 1024


def available_bytes() -> int:
    return int((_field("/proc/meminfo", "MemAvailable") or "0").split()[0]) * 1024


def load() -> str:
    return " ".join(f"{n:.2f}" for n in os.getloadavg())


def filesystem_of(path: Path) -> str:
    """The type and options of the mount that a path is on."""
    best, found = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options = line.split()[:4]
        inside = point == "/" or str(path) == point or str(path).startswith(point + "/")
        if inside and len(point) >= len(best):
            best, found = point, f"{kind} ({options})"
    return found


def distribution() -> str:
    return _field_of_release("PRETTY_NAME") or "unknown"


def _field_of_release(name: str) -> str:
    try:
        for line in Path("/etc/os-release").read_text().splitlines():
            if line.startswith(name + "="):
                return line.partition("=")[2].strip('"')
    except OSError:
        pass
    return ""


def virtual() -> str:
    return "virtual" if "hypervisor" in _field("/proc/cpuinfo", "flags").split() else "physical, or unknown"


def describe(data: Path, note: str) -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "system": distribution(),
        "kernel": platform.release(),
        "processor": f"{_field('/proc/cpuinfo', 'model name') or platform.machine()}, {os.cpu_count()} CPUs, {virtual()}",
        "memory": f"{memory_bytes() / 2**30:.1f} GiB",
        "data on": f"{filesystem_of(data)}; {note}",
        "user": "root" if os.geteuid() == 0 else f"uid {os.geteuid()}",
        "load before": load(),
    }
