"""What an application does with SQLite; prints "SECONDS RESULT". Run as: sqlite_client.py JOB DATABASE NUMBER."""

from __future__ import annotations

import sqlite3
import sys
import time


def transactions(connection: sqlite3.Connection, number: int) -> int:
    """Small transactions, one row each, as an application with a log of events makes them."""
    for index in range(number):
        connection.execute("INSERT INTO rows VALUES (?, ?)", (index, f"event number {index}" * 5))
        connection.commit()
    return connection.execute("SELECT count(*) FROM rows").fetchone()[0]


def scan(connection: sqlite3.Connection, _number: int) -> int:
    """The whole table, through a mapping of the file."""
    connection.execute("PRAGMA mmap_size = 1073741824")
    return connection.execute("SELECT sum(number + length(text)) FROM rows").fetchone()[0]


def main() -> None:
    job, path, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    connection = sqlite3.connect(path)
    if job == "transactions":
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            sys.exit(f"the journal is {mode}: WAL needs shared mappings")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT)")
    begun = time.perf_counter()
    result = {"transactions": transactions, "scan": scan}[job](connection, number)
    print(time.perf_counter() - begun, result)
    connection.close()


if __name__ == "__main__":
    main()
