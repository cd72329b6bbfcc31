"""What a requester is given: links to what was delivered, as a part of the job's result object, and the download script.

Links are credentials (P8): what is made here goes to SciCat's job, which the requester reads, and into the retrieval bucket
beside the data. Nothing here logs, and no error tells a URL. SciCat's web UI prints the whole result object, so it is short: a
few files have a link each; of more there is one link, to the script that holds all of them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, islice, repeat
from typing import Any
from urllib.parse import quote

from archiver.patience import patiently
from archiver.retrieval.delivered import Delivered
from archiver.retrieval.script import Fetch, download_script, short_script

MAX_LISTED = 20
"""Files, or directories, that could have an entry each: that many small entries fill the room."""
CHUNK = 256 * 2**10
SCRIPT = "download.sh"

Payload = dict[str, Any]
Read = Callable[[], Iterable[Delivered]]
"""What was delivered of a dataset; called more than once."""


def links(
    datasets: Sequence[tuple[str, Read]],
    *,
    presign: Callable[[str], str],
    put: Callable[[str, Iterable[bytes]], None],
    at: str,
    life_seconds: int,
    room: int,
    run: str,
    now: datetime | None = None,
) -> Payload:
    """``result`` and ``downloadScript`` of the job's result object, as JSON of at most about ``room`` bytes.

    The script, which brings all files and checks them, is written to the bucket by ``put`` below the key ``at`` (another name at
    each try). Where they fit, ``result`` links to each file; else it is the one link to the script, with a ``datasetId`` where
    it is one dataset's. ``downloadScript`` is a short script that brings the real one and runs it; left out where it does not
    fit. ``run`` is the same on every try: see ``payloads.job_says``.
    """
    until = ((now or datetime.now(UTC)) + timedelta(seconds=life_seconds)).astimezone(UTC)
    valid_until = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    told: Payload = {"run": run, "validUntil": valid_until}
    first = [*islice(_all(datasets), MAX_LISTED + 1)]
    if not first:
        return {"result": [], **told}
    # Of a name of its own at each try: what an earlier one told of may be what SciCat has, and its digest with it.
    at += f"{secrets.token_hex(8)}/"
    script = _Told(partial(_script, datasets, presign, valid_until))
    # Made in a thread beside: what it is made of is read and signed by the library that asks for it, which cannot do both in
    # one (it panics, where the text is so long that it goes in parts).
    put(at + SCRIPT, patiently(script, _wait))
    url = presign(at + SCRIPT)
    short = short_script(script.sha256, url, valid_until=valid_until)
    if len(first) <= MAX_LISTED:
        entries = [_entry(pid, item.name, item.size, item.archive_id, presign(item.key)) for pid, item in first]
        each = {"result": entries, "downloadScript": short, **told}
        if size_of(each) <= room:
            return each
    pid = datasets[0][0] if len(datasets) == 1 else ""
    one = {"result": [_entry(pid, SCRIPT, script.size, "", url)], **told}
    return full if size_of(full := {**one, "downloadScript": short}) <= room else one


def places(datasets: Iterable[tuple[str, int]], where: Callable[[str], str], *, above: str, room: int) -> Payload:
    """The same for datasets (pid and bytes) in directories: an entry each, where they fit; else the directory ``above`` them.

    ``where`` is a dataset's absolute path.
    """
    first = [*islice(datasets, MAX_LISTED + 1)]
    each = {"result": [_entry(pid, path := where(pid), size, "", _file(path)) for pid, size in first]}
    if len(first) <= MAX_LISTED and size_of(each) <= room:
        return each
    return {"result": [_entry("", above, 0, "", _file(above))]}


def size_of(value: Any) -> int:
    """Bytes of it as JSON, whichever way it is written."""
    return len(json.dumps(value))


def _file(path: str) -> str:
    return f"file://{quote(path)}"


def _wait(seconds: float) -> None:
    """Requests have their own time limits, and who waits for links says so (``beating``)."""


def _all(datasets: Iterable[tuple[str, Read]]) -> Iterator[tuple[str, Delivered]]:
    return chain.from_iterable(zip(repeat(pid), read(), strict=False) for pid, read in datasets)


def _entry(pid: str, name: str, size: int, archive_id: str, url: str) -> Payload:
    return {"datasetId": pid, "name": name, "size": size, "archiveId": archive_id, "url": url}


def _fetch(item: Delivered, url: str) -> Fetch:
    return Fetch(item.name, item.size, item.sha256, url, item.unpack)


def _script(datasets: Iterable[tuple[str, Read]], presign: Callable[[str], str], valid_until: str) -> Iterator[str]:
    def fetches(read: Read) -> Iterator[Fetch]:
        return (_fetch(item, presign(item.key)) for item in read())

    return download_script(((pid, fetches(read)) for pid, read in datasets), valid_until=valid_until)


class _Told:
    """A text as bytes, piece by piece; once they were read, how many they were and their SHA-256."""

    def __init__(self, texts: Callable[[], Iterable[str]]) -> None:
        self._texts = texts
        self.size, self.sha256 = 0, ""

    def __iter__(self) -> Iterator[bytes]:
        self.size, digest, held = 0, hashlib.sha256(), bytearray()
        for text in chain(self._texts(), [""]):
            held += text.encode()
            if len(held) >= CHUNK or (held and not text):
                digest.update(held)
                self.size += len(held)
                yield bytes(held)
                held.clear()
        self.sha256 = digest.hexdigest()
