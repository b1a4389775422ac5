"""What an unfinished build knows about itself: one SQLite file, written in step with the shards."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

CACHE_KIB = 64 << 10
"""Page cache for the ids seen so far: the memory of duplicate detection, whatever the size of the corpus."""


class BuildState:
    """Document ids seen and a JSON note of the position; `save` makes both durable at once."""

    def __init__(self, file: Path):
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS seen (id INTEGER PRIMARY KEY)")
        self._db.execute("CREATE TABLE IF NOT EXISTS note (key INTEGER PRIMARY KEY, value TEXT)")
        self._db.execute("BEGIN")

    def first_seen(self, document: int) -> bool:
        """Remember a document; False when it was there already."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (document,)).rowcount == 1

    def save(self, note: dict[str, Any]) -> None:
        """Commit the documents remembered since the last save together with `note`."""
        self._db.execute("INSERT OR REPLACE INTO note VALUES (0, ?)", (json.dumps(note),))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def load(self) -> dict[str, Any] | None:
        """The note of the last save."""
        row = self._db.execute("SELECT value FROM note WHERE key = 0").fetchone()
        return json.loads(row[0]) if row else None

    def close(self) -> None:
        """Drop what was not saved."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._db.close()
