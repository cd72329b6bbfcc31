"""Documents by collection in SQLite, and the little of Mongo's query language that our callers use."""

from __future__ import annotations

import json
import sqlite3
import threading
from typing import Any

Document = dict[str, Any]


class Store:
    """Documents kept as JSON text; ``path`` ``:memory:`` or a file that survives a restart."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS documents (collection TEXT, id TEXT, parent TEXT, body TEXT, "
            "seq INTEGER PRIMARY KEY AUTOINCREMENT, UNIQUE (collection, id))"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_parent ON documents (collection, parent)")

    def insert(self, collection: str, key: str, body: Document, parent: str = "") -> bool:
        """Insert; False if the key is taken."""
        with self._lock:
            try:
                self._db.execute(
                    "INSERT INTO documents (collection, id, parent, body) VALUES (?, ?, ?, ?)",
                    (collection, key, parent, json.dumps(body)),
                )
            except sqlite3.IntegrityError:
                return False
        return True

    def get(self, collection: str, key: str) -> Document | None:
        """One document."""
        row = self._rows("SELECT body FROM documents WHERE collection = ? AND id = ?", (collection, key))
        return json.loads(row[0]) if row else None

    def put(self, collection: str, key: str, body: Document) -> None:
        """Replace one document."""
        with self._lock:
            self._db.execute(
                "UPDATE documents SET body = ? WHERE collection = ? AND id = ?", (json.dumps(body), collection, key)
            )

    def delete(self, collection: str, key: str) -> None:
        """Remove one document."""
        with self._lock:
            self._db.execute("DELETE FROM documents WHERE collection = ? AND id = ?", (collection, key))

    def all(self, collection: str, parent: str | None = None) -> list[Document]:
        """All documents in the order of their making."""
        if parent is None:
            rows = self._rows("SELECT body FROM documents WHERE collection = ? ORDER BY seq", (collection,))
        else:
            query = "SELECT body FROM documents WHERE collection = ? AND parent = ? ORDER BY seq"
            rows = self._rows(query, (collection, parent))
        return [json.loads(row) for row in rows]

    def _rows(self, query: str, values: tuple[str, ...]) -> list[str]:
        with self._lock:
            return [row[0] for row in self._db.execute(query, values)]


def matches(document: Document, where: Any) -> bool:
    """Whether the document satisfies a Mongo filter of equality, ``$in``, ``$ne``, ``$exists``, ``$and`` and ``$or``."""
    if not isinstance(where, dict):
        return True
    for key, wanted in where.items():
        if key == "$and":
            if not all(matches(document, part) for part in wanted):
                return False
        elif key == "$or":
            if not any(matches(document, part) for part in wanted):
                return False
        elif not _field(list(_values(document, key.split("."))), wanted):
            return False
    return True


def _values(value: Any, path: list[str]) -> Any:
    if isinstance(value, list):
        for entry in value:
            yield from _values(entry, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _values(value[path[0]], path[1:])


def _field(found: list[Any], wanted: Any) -> bool:
    if isinstance(wanted, dict) and any(key.startswith("$") for key in wanted):
        tests = {
            "$in": lambda value: any(one in value for one in found),
            "$ne": lambda value: value not in found,
            "$exists": lambda value: bool(found) is bool(value),
        }
        return all(operator in tests and tests[operator](value) for operator, value in wanted.items())
    return wanted in found


def ordered(documents: list[Document], sort: Any) -> list[Document]:
    """Sorted by ``{"field": 1}``, ``{"field": "desc"}`` or ``"field:desc"``."""
    if isinstance(sort, str):
        field, _, direction = sort.partition(":")
        sort = {field: direction or "asc"}
    for field, direction in reversed((sort or {}).items()):
        backwards = direction in (-1, "-1", "desc", "descending")
        documents = sorted(documents, key=lambda document: str(document.get(field, "")), reverse=backwards)
    return documents
