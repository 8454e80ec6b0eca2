"""The filesystem that the data lies on: an ext4 of its own, without discard.

With discard, creating files after many were removed waits for the disk, by a factor of 20 and at times of its own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .shell import Failed, quietly, run

INODES = 500_000  # for the tree of the walk, with room for everything else


class Disk:
    """Where the data lies: `root`. `close` takes it away again."""

    def __init__(self, work: Path, kind: str, megabytes: int) -> None:
        self.root = work / "disk"
        self.root.mkdir()
        self.device = ""
        self.image: Path | None = None
        self.note = ""
        self.mounted = False
        if kind == "none":
            self.note = "the directory itself: no filesystem of its own"
            return
        try:
            self._make(work, kind, megabytes)
        except (Failed, OSError) as error:
            self.close()
            self.note = f"the directory itself, for want of a filesystem of its own ({error})"

    def _make(self, work: Path, kind: str, megabytes: int) -> None:
        if kind == "zram":
            quietly(["modprobe", "zram"])
            self.device = run(["zramctl", "--find", "--size", f"{megabytes}M"]).strip()
        else:
            self.image = work / "disk.img"
            with open(self.image, "wb") as file:
                file.truncate(megabytes << 20)
            # Direct: what the filesystem caches is not cached once more beneath it.
            try:
                self.device = run(["losetup", "--find", "--show", "--direct-io=on", str(self.image)]).strip()
            except Failed:
                self.device = run(["losetup", "--find", "--show", str(self.image)]).strip()
        # Nothing is left to be initialised in the background while something is measured.
        run(["mkfs.ext4", "-q", "-F", "-N", str(INODES), "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
             self.device], timeout=120)
        run(["mount", "-o", "nodiscard", self.device, str(self.root)])
        self.mounted = True
        os.chmod(self.root, 0o755)
        self.note = f"ext4 without discard on {'zram' if kind == 'zram' else 'a loop device'}, {megabytes} MiB"

    def close(self) -> None:
        if self.mounted:
            self.mounted = not (quietly(["umount", str(self.root)]) or quietly(["umount", "-l", str(self.root)]))
        if self.device.startswith("/dev/zram"):
            quietly(["zramctl", "--reset", self.device])
        elif self.device:
            quietly(["losetup", "--detach", self.device])
        self.device = ""
        if self.image:
            self.image.unlink(missing_ok=True)

    def sync(self) -> None:
        """What was written reaches the device, so that its writing does not fall into the next turn."""
        run(["sync", "--file-system", str(self.root)], timeout=120)


def drop_caches() -> None:
    """Empties the kernel's caches of pages, names and inodes. Raises Failed without the right to."""
    subprocess.run(["sync"], check=False)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError as error:
        raise Failed(f"the caches cannot be dropped: {error.strerror}") from None
