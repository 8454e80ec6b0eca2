"""The files that all candidates work on: the same in every run, made from fixed seeds."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from .machine import Probe, run

NEEDLE = "needle in the haystack"
GIT = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0", "-c",
       "maintenance.auto=false", "-c", "safe.directory=*"]


@dataclass(frozen=True)
class Sizes:
    """The amount of everything."""

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
    random: int = 25_000  # random reads or writes in the cache
    random_cold: int = 2_000  # those that wait for the disk
    walk: int = 200_000  # files
    large: int = 4 << 30  # bytes of the file of which copies are made
    pokes: int = 2_000  # random overwrites of it
    many: int = 5_000  # files of a directory that is moved


QUICK = Sizes(big=128 << 20, written=96 << 20, small=600, flat=8_000, stats=3_000, names=600, sources=8,
              database=12 << 20, transactions=250, overwrites=2_000, random=6_000, random_cold=400, walk=12_000,
              large=2 << 30)


class Data:
    """The parts under `root`, each made by the method of its name; beside it files that are used but not shown."""

    def __init__(self, root: Path, beside: Path, sizes: Sizes, probe: Probe) -> None:
        self.root, self.sizes, self.probe = root, sizes, probe
        self.scratch = root / "scratch"
        self.scratch.mkdir(parents=True)
        names = ("tree.tar", "tree.list", "stat.list")
        self.archive, self.tree_list, self.stat_list = (beside / name for name in names)

    def big(self) -> None:
        self.probe("write", self.root / "big", size=self.sizes.big, sync=1)

    def large(self) -> None:
        self.probe("write", self.root / "large", size=self.sizes.large, sync=1)

    def _empty_files(self, directory: str, count: int) -> None:
        (self.root / directory).mkdir(parents=True)
        self.probe("create", ".", cwd=self.root / directory, count=count)

    def many(self) -> None:
        self._empty_files("many", self.sizes.many)
        self._empty_files("many-twice", 2 * self.sizes.many)

    def flat(self) -> None:
        self._empty_files("flat", self.sizes.flat)
        names = sorted(path.name for path in (self.root / "flat").iterdir())
        chosen = random.Random(2).sample(names, self.sizes.stats)
        self.stat_list.write_text("".join(f"flat/{name}\n" for name in chosen))

    def walk(self) -> None:
        for first in range(0, self.sizes.walk, 1000):
            self._empty_files(f"walk/{first // 1000:03}", min(1000, self.sizes.walk - first))

    def tree(self) -> None:
        names = write_tree(self.root / "tree", self.sizes.small, seed=1)
        self.tree_list.write_text("".join(f"tree/{name}\n" for name in names))
        run(["tar", "-cf", str(self.archive), "tree"], cwd=self.root)

    def sources(self) -> None:
        write_sources(self.root / "sources", self.sizes.sources)

    def database(self) -> None:
        (self.root / "database").mkdir()
        with sqlite3.connect(self.root / "database" / "scan.db") as connection:
            connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, number INTEGER, text BLOB)")
            rows = ((i, i * 7919 % 1000003, bytes([i % 251]) * 990) for i in range(self.sizes.database // 1024))
            connection.executemany("INSERT INTO rows VALUES (?, ?, ?)", rows)
        connection.close()

    def repository(self) -> None:
        write_tree(self.root / "repository", self.sizes.small, seed=3)
        commit(self.root / "repository", "main")

    def project(self) -> None:
        """A repository with two branches: in the other one a tenth of the files is changed or moved."""
        project = self.root / "project"
        names = write_tree(project, self.sizes.small, seed=4)
        write_sources(project / "sources", self.sizes.sources)
        (project / ".gitignore").write_text("*.o\nprogram\n")
        commit(project, "main")
        for index, path in enumerate(project / name for name in names[::10]):
            if index % 10 == 0:
                path.rename(path.with_suffix(".moved"))
            else:
                path.write_text(path.read_text() + f"other {index}\n")
        commit(project, "other")
        run([*GIT, "checkout", "-q", "main"], cwd=project)


def commit(repository: Path, branch: str) -> None:
    """Makes a branch of everything that is there."""
    for command in (["init", "-q", "."], ["checkout", "-q", "-b", branch], ["add", "."], ["commit", "-q", "-m", branch],
                    ["gc", "-q"]):
        run([*GIT, "-c", "init.defaultBranch=none", *command], cwd=repository)


def write_tree(tree: Path, files: int, seed: int) -> list[str]:
    """Makes small files of text, 9 KB on the average, ten a directory, three deep; the paths of the files below it."""
    dice = random.Random(seed)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 9))) for _ in range(2000)]
    text = "\n".join(" ".join(dice.choices(words, k=12)) for _ in range(4000)) + "\n"
    names = []
    for index in range(files):
        group = index // 10
        name = f"a{group % 8}/b{group // 8 % 8}/c{group // 64}/file-{index:05}.txt"
        length = min(max(int(dice.lognormvariate(8.6, 1.0)), 16), 120_000)
        start = dice.randrange(0, len(text) - 120_000)
        needle = f"\n{NEEDLE}\n" if index % 7 == 0 else ""
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"file {index}\n" + text[start:start + length] + needle)
        names.append(name)
    return names


def write_sources(directory: Path, count: int) -> None:
    """C files and a Makefile. The program prints a sum, one line."""
    directory.mkdir()
    steps = "".join(f'    snprintf(t, sizeof t, "%d", x * {k + 3});\n    x += (int)strlen(t);\n' for k in range(12))
    for n in range(count):
        (directory / f"unit_{n}.c").write_text("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
                                               f"int unit_{n}(int x) {{\n    char t[64];\n{steps}    return x;\n}}\n")
    declarations = "".join(f"int unit_{n}(int);\n" for n in range(count))
    calls = "".join(f"    x = unit_{n}(x);\n" for n in range(count))
    (directory / "main.c").write_text(f"#include <stdio.h>\n{declarations}int main(void) {{\n    int x = 1;\n"
                                      f'{calls}    return printf("%d\\n", x) < 0;\n}}\n')
    (directory / "Makefile").write_text(
        "CFLAGS = -O1\nprogram: $(patsubst %.c,%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n")
