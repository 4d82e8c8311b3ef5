"""Locks in one SQLite file: the embedded default, for the processes of one machine."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from delta_sink.errors import FatalError, RetriableError
from delta_sink.ports import Item, Scalar

BUSY_TIMEOUT_MS = 5_000
"""How long a call waits for another process that writes; then it is retriable."""

_RETRIABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}


class SqliteLeases:
    """A `LeaseStore` in the file `path`, for any number of threads and processes of one machine.

    An item is a row: its key, and its attributes as one canonical JSON text, so that comparing
    the whole item is comparing two strings. Each put is one statement, hence one transaction that
    takes the write lock before it reads. The file must not lie on a network file system.
    """

    def __init__(self, path: str) -> None:
        """Open the file; make it, and its folder, if there is none.

        Raises:
            FatalError: it cannot be made, or is not a database of locks.
            RetriableError: another process kept it locked.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FatalError(f"cannot make the folder of lock file {path}: {error}") from error
        with _answering(path):
            self._connection = sqlite3.connect(
                path,
                timeout=BUSY_TIMEOUT_MS / 1000,
                isolation_level=None,  # each statement is a transaction
                check_same_thread=False,  # the lock serves the threads one at a time
            )
            # The rollback journal, not WAL: a put costs two flushes more, but one file is all
            # there is, and changing the mode cannot fail between processes that start together.
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS leases"
                " (key TEXT PRIMARY KEY, attributes TEXT NOT NULL) WITHOUT ROWID"
            )

    def __repr__(self) -> str:
        return f"SqliteLeases({self._path!r})"

    def get(self, key: str) -> Item | None:
        """Return the item as the last write left it, or None."""
        rows = self._execute("SELECT attributes FROM leases WHERE key = ?", key)[0]
        return Item(key, json.loads(rows[0][0])) if rows else None

    def put(self, item: Item, expected: Item | None) -> bool:
        """Write `item` if what is stored equals `expected` (None: nothing); say whether."""
        assert expected is None or expected.key == item.key, (item.key, expected)
        attributes = canonical(item.attributes)
        if expected is None:
            statement = "INSERT INTO leases VALUES (?, ?) ON CONFLICT DO NOTHING"
            return self._execute(statement, item.key, attributes)[1] == 1
        statement = "UPDATE leases SET attributes = ? WHERE key = ? AND attributes = ?"
        before = canonical(expected.attributes)
        return self._execute(statement, attributes, item.key, before)[1] == 1

    def scan(self, prefix: str) -> list[Item]:
        """Return the items whose key begins with `prefix`, by key."""
        statement = (
            "SELECT key, attributes FROM leases WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key"
        )
        rows = self._execute(statement, prefix)[0]
        return [Item(key, json.loads(attributes)) for key, attributes in rows]

    def close(self) -> None:
        """Close the file. Nothing may be called afterwards."""
        with self._lock:
            self._connection.close()

    def _execute(self, statement: str, *values: str) -> tuple[list[tuple[str, ...]], int]:
        """Return the rows and how many rows the statement changed."""
        with self._lock, _answering(self._path):
            cursor = self._connection.execute(statement, values)
            return cursor.fetchall(), cursor.rowcount


def canonical(attributes: Mapping[str, Scalar]) -> str:
    """Return the attributes as JSON that is the same text for equal attributes, and only then."""
    assert all(isinstance(value, str | int) for value in attributes.values()), list(attributes)
    return json.dumps(dict(attributes), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@contextmanager
def _answering(path: str) -> Iterator[None]:
    """Turn every error of SQLite in the block into what the port says."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without its extended part
        sentence = f"lock file {path}: {error}"
        raise (RetriableError if code in _RETRIABLE else FatalError)(sentence) from error
