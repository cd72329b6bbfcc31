"""Documents by collection in SQLite, and the little of Mongo's query language that our callers use."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from typing import Any

Document = dict[str, Any]
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")


class Raw:
    """JSON text that is ready to be sent."""

    def __init__(self, text: str) -> None:
        self.text = text


class Store:
    """Documents kept as JSON text; ``path`` ``:memory:`` or a file that survives a restart.

    The list of files, which may be megabytes, is kept beside its document and read only where it is wanted, so that one
    caller with a million files does not stop the others.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY AUTOINCREMENT, collection TEXT, id TEXT, "
            "parent TEXT, tag TEXT, body TEXT, files TEXT, count INTEGER, UNIQUE (collection, id), "
            "UNIQUE (collection, tag))"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS of_parent ON records (collection, parent)")

    def insert(self, collection: str, key: str, body: Document, parent: str = "", tag: str | None = None) -> bool:
        """Insert; False if the key or the tag is taken. ``tag``: a second key, such as a datablock's archiveId."""
        files = body.get("dataFileList")
        head = {name: value for name, value in body.items() if name != "dataFileList"}
        listed = (None, 0) if files is None else (json.dumps(files), len(files))
        with self._lock:
            try:
                self._db.execute(
                    "INSERT INTO records (collection, id, parent, tag, body, files, count) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (collection, key, parent, tag, json.dumps(head), *listed),
                )
            except sqlite3.IntegrityError:
                return False
        return True

    def get(self, collection: str, key: str) -> Document | None:
        """One document, whole."""
        rows = self._rows("SELECT body, files FROM records WHERE collection = ? AND id = ?", collection, key)
        return json.loads(_whole(*rows[0])) if rows else None

    def has(self, collection: str, key: str) -> bool:
        """Whether there is such a document."""
        return bool(self._rows("SELECT 1 FROM records WHERE collection = ? AND id = ?", collection, key))

    def put(self, collection: str, key: str, body: Document) -> None:
        """Replace one document; its list of files, if it has one, stays."""
        with self._lock:
            self._db.execute(
                "UPDATE records SET body = ? WHERE collection = ? AND id = ?", (json.dumps(body), collection, key)
            )

    def delete(self, collection: str, key: str) -> None:
        """Remove one document."""
        with self._lock:
            self._db.execute("DELETE FROM records WHERE collection = ? AND id = ?", (collection, key))

    def all(self, collection: str, parent: str | None = None) -> list[Document]:
        """All documents, whole, in the order of their making."""
        return [json.loads(_whole(*row)) for row in self._select("body, files", collection, parent)]

    def some(self, collection: str, keys: list[str]) -> list[Document]:
        """Those of these documents that are there, whole."""
        return [found for key in keys if (found := self.get(collection, key)) is not None]

    def heads(self, collection: str, parent: str | None = None) -> list[Document]:
        """All documents without their lists of files, in the order of their making."""
        return [json.loads(row[0]) for row in self._select("body", collection, parent)]

    def tagged(self, collection: str, tag: str) -> list[Document]:
        """The document of this tag, without its list of files."""
        rows = self._rows("SELECT body FROM records WHERE collection = ? AND tag = ?", collection, tag)
        return [json.loads(row[0]) for row in rows]

    def whole(self, collection: str, head: Document) -> Raw:
        """This document with its list of files."""
        query = "SELECT body, files FROM records WHERE collection = ? AND id = ?"
        return Raw(", ".join(_whole(*row) for row in self._rows(query, collection, head["_id"])))

    def list_of(self, collection: str, heads: list[Document]) -> Raw:
        """These documents with their lists of files, as one JSON array."""
        return Raw("[" + ", ".join(self.whole(collection, head).text for head in heads) + "]")

    def counts(self, collection: str, parent: str) -> list[int]:
        """How many files each document of the parent lists."""
        return [row[0] for row in self._select("count", collection, parent)]

    def _select(self, columns: str, collection: str, parent: str | None) -> list[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM records WHERE collection = ?"  # noqa: S608  names of ours
        if parent is None:
            return self._rows(query + " ORDER BY seq", collection)
        return self._rows(query + " AND parent = ? ORDER BY seq", collection, parent)

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()


def _whole(head: str, files: str | None) -> str:
    return head if files is None else f'{head[:-1]}, "dataFileList": {files}}}'


def matches(document: Document, where: dict[str, Any]) -> bool:
    """Whether it satisfies a Mongo filter (equality, ``$in``, ``$ne``, ``$gt``, ``$lte``, ``$exists``, ``$and``, ``$or``)."""
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
            "$gt": lambda value: any(_comparable(one, value) and one > value for one in found),
            "$lte": lambda value: any(_comparable(one, value) and one <= value for one in found),
            "$exists": lambda value: bool(found) is bool(value),
        }
        return all(operator in tests and tests[operator](value) for operator, value in wanted.items())
    return wanted in found


def _comparable(found: Any, value: Any) -> bool:
    """Of one type, and no date: Mongo holds dates as dates, and an aggregate does not cast the text to compare them with."""
    return type(found) is type(value) and not (isinstance(found, str) and _DATE.match(found))


def ordered(documents: list[Document], sort: Any) -> list[Document]:
    """Sorted by ``{"field": 1}``, ``{"field": "desc"}`` or ``"field:desc"``."""
    if isinstance(sort, str):
        field, _, direction = sort.partition(":")
        sort = {field: direction or "asc"}
    for field, direction in reversed(list((sort or {}).items())):
        backwards = direction in (-1, "-1", "desc", "descending")
        documents = sorted(documents, key=lambda document: _rank(document.get(field)), reverse=backwards)
    return documents


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers before text, as Mongo sorts."""
    if isinstance(value, (int, float)):
        return (False, value, "")
    return (True, 0, "" if value is None else str(value))
