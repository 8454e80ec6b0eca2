"""An application with SQLite: sqlite_client.py DATABASE TRANSACTIONS prints "SECONDS RESULT".

Transactions of one row each, as by a log of events; with none, a scan of the whole table through a mapping.
"""

import sqlite3
import sys
import time

path, number = sys.argv[1], int(sys.argv[2])
connection = sqlite3.connect(path)
if number:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        sys.exit(f"the journal is {mode}: WAL needs shared mappings")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT)")
    query = "SELECT count(*) FROM rows"
else:
    query = "SELECT sum(number + length(text)) FROM rows"
begun = time.perf_counter()
for index in range(number):
    connection.execute("INSERT INTO rows VALUES (?, ?)", (index, f"event number {index}" * 5))
    connection.commit()
if not number:
    connection.execute("PRAGMA mmap_size = 1073741824")
result = connection.execute(query).fetchone()[0]
print(time.perf_counter() - begun, result)
connection.close()
