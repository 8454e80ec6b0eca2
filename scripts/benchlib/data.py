"""The files that everybody works on: the same at every run, made from fixed seeds."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .shell import Probe, run

NEEDLE = "needle in the haystack"
GIT = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0", "-c",
       "maintenance.auto=false", "-c", "safe.directory=*"]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    big: int = 1 << 30  # bytes of the file that is read
    written: int = 512 << 20  # bytes of the files that are written
    small: int = 5_000  # files in the tree
    flat: int = 50_000  # entries of the one directory
    stats: int = 18_000  # paths of it
    names: int = 5_000  # files created and removed
    sources: int = 100  # C files
    database: int = 64 << 20  # bytes
    transactions: int = 2_000
    overwrites: int = 10_000
    random: int = 25_000  # random reads or writes from the cache
    random_cold: int = 2_000  # those that wait for the disk
    walk: int = 200_000  # files
    large: int = 4 << 30  # bytes of the file of which copies are made
    pokes: int = 2_000  # random overwrites of it
    many: int = 5_000  # files of a directory that is moved


QUICK = Sizes(big=128 << 20, written=96 << 20, small=600, flat=8_000, stats=3_000, names=600, sources=8,
              database=12 << 20, transactions=250, overwrites=2_000, random=6_000, random_cold=400, walk=12_000,
              large=2 << 30)

# What each part is for: the groups of rows, or the workloads, that need it.
PARTS = {
    "big": {"seqread", "randread", "mmapread"},
    "tree": {"openclose", "find", "grep", "untar", "rmrf"},
    "flat": {"stat", "readdir"},
    "repository": {"gitclone", "gitstatus"},
    "sources": {"cbuild"},
    "database": {"scan"},
    "walk": {"walk"},
    "large": {"scratch-big", "scratch-names"},
    "many": {"scratch-many"},
    "project": {"scratch-git"},
}


class Data:
    """The parts under `root`. Paths are relative to it, since every candidate shows them elsewhere."""

    def __init__(self, root: Path, beside: Path, sizes: Sizes, probe: Probe, say) -> None:
        self.root = root
        self.beside = beside  # what is used but not shown: lists of paths, the archive
        self.sizes = sizes
        self.probe = probe
        self.say = say
        self.scratch = root / "scratch"
        self.archive = beside / "tree.tar"
        self.tree_list = beside / "tree.list"
        self.stat_list = beside / "stat.list"
        self.expected: dict[str, int] = {}

    def make(self, groups: set[str]) -> None:
        """Makes the parts that these groups of rows need."""
        self.scratch.mkdir()
        for part, users in PARTS.items():
            if groups & users:
                self.say(f"making data: {part}")
                getattr(self, "_make_" + part)()

    def _make_big(self) -> None:
        self.probe("write", self.root / "big", size=self.sizes.big, sync=1, timeout=300)
        self.expected["sum"] = self.probe("mmapread", self.root / "big", timeout=300)[1]

    def _make_tree(self) -> None:
        """Small files of text in nested directories, 9 KB on the average; every seventh has the needle."""
        tree = self.root / "tree"
        names = write_tree(tree, self.sizes.small, seed=1)
        self.tree_list.write_text("".join(f"tree/{name}\n" for name in names))
        with tarfile.open(self.archive, "w", format=tarfile.GNU_FORMAT) as archive:
            archive.add(tree, "tree")
        everything = [tree, *tree.rglob("*")]
        self.expected["tree names"] = len(everything)
        self.expected["tree bytes"] = sum(path.stat().st_size for path in everything if path.is_file())
        found = subprocess.run(["grep", "-r", "-c", NEEDLE, str(tree)], stdout=subprocess.PIPE, text=True, check=True)
        self.expected["needles"] = sum(int(line.rpartition(":")[2]) for line in found.stdout.splitlines())

    def _make_flat(self) -> None:
        flat = self.root / "flat"
        flat.mkdir()
        self.probe("create", ".", cwd=flat, count=self.sizes.flat)
        names = sorted(path.name for path in flat.iterdir())
        chosen = random.Random(2).sample(names, self.sizes.stats)
        self.stat_list.write_text("".join(f"flat/{name}\n" for name in chosen))

    def _make_repository(self) -> None:
        repository = self.root / "repository"
        write_tree(repository, self.sizes.small, seed=3)
        run([*GIT, "init", "-q", "-b", "main", "."], cwd=repository)
        run([*GIT, "add", "."], cwd=repository, timeout=300)
        run([*GIT, "commit", "-q", "-m", "tree"], cwd=repository, timeout=300)
        run([*GIT, "gc", "-q"], cwd=repository, timeout=300)

    def _make_sources(self) -> None:
        write_sources(self.root / "sources", self.sizes.sources)

    def _make_database(self) -> None:
        (self.root / "database").mkdir()
        connection = sqlite3.connect(self.root / "database" / "scan.db")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, number INTEGER, text BLOB)")
        n = self.sizes.database // 1024
        connection.executemany("INSERT INTO rows VALUES (?, ?, ?)",
                               ((i, i * 7919 % 1000003, bytes([i % 251]) * 990) for i in range(n)))
        connection.commit()
        self.expected["scan"] = connection.execute("SELECT sum(number + length(text)) FROM rows").fetchone()[0]
        connection.close()

    def _make_large(self) -> None:
        self.probe("write", self.root / "large", size=self.sizes.large, sync=1, timeout=300)

    def _make_many(self) -> None:
        for name, count in (("many", self.sizes.many), ("many-twice", 2 * self.sizes.many)):
            (self.root / name).mkdir()
            self.probe("create", ".", cwd=self.root / name, count=count)

    def _make_project(self) -> None:
        """A repository with two branches: a tenth of the files is another, some are gone and some new."""
        project = self.root / "project"
        names = write_tree(project, self.sizes.small, seed=4)
        write_sources(project / "sources", self.sizes.sources)
        run([*GIT, "init", "-q", "-b", "main", "."], cwd=project)
        (project / ".gitignore").write_text("*.o\nprogram\n")
        for branch in ("main", "other"):
            if branch == "other":
                run([*GIT, "checkout", "-q", "-b", branch], cwd=project)
                for index, name in enumerate(names[::10]):
                    path = project / name
                    if index % 10 == 0:
                        path.rename(path.with_suffix(".moved"))
                    else:
                        path.write_text(path.read_text() + f"{branch} {index}\n")
            run([*GIT, "add", "."], cwd=project, timeout=300)
            run([*GIT, "commit", "-q", "-m", branch], cwd=project, timeout=300)
        run([*GIT, "gc", "-q"], cwd=project, timeout=300)
        run([*GIT, "checkout", "-q", "main"], cwd=project, timeout=300)

    def _make_walk(self) -> None:
        walk = self.root / "walk"
        each = 1000
        for index, first in enumerate(range(0, self.sizes.walk, each)):
            directory = walk / f"{index:03}"
            directory.mkdir(parents=True)
            self.probe("create", ".", cwd=directory, count=min(each, self.sizes.walk - first))
        self.expected["walk"] = self.probe("walk", walk)[1]


def write_tree(tree: Path, files: int, seed: int) -> list[str]:
    """Makes the nested tree and returns the paths of its files below it."""
    dice = random.Random(seed)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 9))) for _ in range(2000)]
    text = "\n".join(" ".join(dice.choices(words, k=12)) for _ in range(4000)) + "\n"
    names = []
    for index in range(files):
        # Ten files a directory, directories three deep.
        group = index // 10
        name = f"a{group % 8}/b{group // 8 % 8}/c{group // 64}/file-{index:05}.txt"
        length = min(max(int(dice.lognormvariate(8.6, 1.0)), 16), 120_000)
        start = dice.randrange(0, len(text) - 120_000)
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        needle = f"\n{NEEDLE}\n" if index % 7 == 0 else ""
        path.write_text(f"file {index}\n" + text[start:start + length] + needle)
        names.append(name)
    return names


def write_sources(directory: Path, count: int) -> None:
    """C files with a header and a Makefile; the program prints a sum that tells whether it was built right."""
    directory.mkdir()
    units = range(count)
    (directory / "all.h").write_text("".join(f"int unit_{n}(int);\n" for n in units))
    for n in units:
        body = "".join(f"static int step_{k}(int x) {{ char t[64]; snprintf(t, sizeof t, \"%d\", x * {k + 3}); "
                       f"return (int)strlen(t) + x; }}\n" for k in range(12))
        calls = "".join(f"    x = step_{k}(x);\n" for k in range(12))
        (directory / f"unit_{n}.c").write_text(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include \"all.h\"\n"
            f"{body}int unit_{n}(int x) {{\n{calls}    return x;\n}}\n")
    calls = "".join(f"    x = unit_{n}(x);\n" for n in units)
    (directory / "main.c").write_text(
        f"#include <stdio.h>\n#include \"all.h\"\nint main(void) {{\n    int x = 1;\n{calls}"
        "    return printf(\"%d\\n\", x) < 0;\n}\n")
    objects = " ".join(["main.o", *(f"unit_{n}.o" for n in units)])
    (directory / "Makefile").write_text(
        f"CFLAGS = -O1\nprogram: {objects}\n\t$(CC) -o $@ {objects}\n%.o: %.c all.h\n\t$(CC) $(CFLAGS) -c -o $@ $<\n")
