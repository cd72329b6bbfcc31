"""What a requester is given: links to what was delivered, as a part of the job's result object, and the download script.

Links are credentials (P8): what is made here goes to SciCat's job, which the requester reads, and, where there are too many for
it, into the retrieval bucket beside the data. Nothing here logs, and no error tells a URL.
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
from archiver.retrieval.script import Fetch, download_script, follow_script

MAX_SHOWN_BYTES = 1_000_000
"""Of links and script in a job's result object, which SciCat stores and shows as it is."""
CHUNK = 256 * 2**10
LIST, SCRIPT = "files.jsonl", "download.sh"

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
    max_listed: int,
    run: str,
    now: datetime | None = None,
) -> Payload:
    """``result`` and ``downloadScript`` of the job's result object (contract 2.5).

    More than ``max_listed`` files, and only those, are written to the bucket: a list (JSON lines, each with the file's SHA-256)
    and the script, by ``put`` below the key ``at`` (another name at each try); then ``result`` is one link to the list, and
    ``downloadScript`` brings the script and runs it. ``run`` is the same on every try: see ``payloads.job_says``.
    """
    until = ((now or datetime.now(UTC)) + timedelta(seconds=life_seconds)).astimezone(UTC)
    valid_until = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    told: Payload = {"run": run, "validUntil": valid_until}
    first = [*islice(_all(datasets), max_listed + 1)]
    if not first:
        return {"result": [], **told}
    if len(first) <= max_listed:
        signed = [(pid, item, presign(item.key)) for pid, item in first]
        entries = [_entry(pid, item.name, item.size, item.archive_id, url) for pid, item, url in signed]
        by_pid: dict[str, list[Fetch]] = {}
        for pid, item, url in signed:
            by_pid.setdefault(pid, []).append(_fetch(item, url))
        script = "".join(download_script(by_pid.items(), valid_until=valid_until))
        if len(json.dumps([entries, script])) <= MAX_SHOWN_BYTES:
            return {"result": entries, "downloadScript": script, **told}
    # Of a name of its own at each try: what an earlier one told of may be what SciCat has, and its digest with it.
    at += f"{secrets.token_hex(8)}/"
    listed, long = _Told(partial(_lines, datasets, presign)), _Told(partial(_script, datasets, presign, valid_until))
    # Made in a thread beside: what they are made of is read and signed by the library that asks for them, which cannot do
    # both in one (it panics, where the text is so long that it goes in parts).
    put(at + LIST, patiently(listed, _wait))
    put(at + SCRIPT, patiently(long, _wait))
    pid = datasets[0][0] if len(datasets) == 1 else ""
    script = follow_script(long.size, long.sha256, presign(at + SCRIPT), valid_until=valid_until)
    return {"result": [_entry(pid, LIST, listed.size, "", presign(at + LIST))], "downloadScript": script, **told}


def places(datasets: Iterable[tuple[str, int]], where: Callable[[str], str], *, max_listed: int) -> Payload:
    """The same for datasets (pid and bytes) in directories: one entry each, the first ones; ``where`` is the absolute path."""
    first = [*islice(datasets, max_listed)]
    return {
        "result": [_entry(pid, path := where(pid), size, "", f"file://{quote(path)}") for pid, size in first],
    }


def _wait(seconds: float) -> None:
    """Requests have their own time limits, and who waits for links says so (``beating``)."""


def _all(datasets: Iterable[tuple[str, Read]]) -> Iterator[tuple[str, Delivered]]:
    return chain.from_iterable(zip(repeat(pid), read(), strict=False) for pid, read in datasets)


def _entry(pid: str, name: str, size: int, archive_id: str, url: str) -> Payload:
    return {"datasetId": pid, "name": name, "size": size, "archiveId": archive_id, "url": url}


def _fetch(item: Delivered, url: str) -> Fetch:
    return Fetch(item.name, item.size, item.sha256, url, item.unpack)


def _lines(datasets: Iterable[tuple[str, Read]], presign: Callable[[str], str]) -> Iterator[str]:
    for pid, item in _all(datasets):
        entry = _entry(pid, item.name, item.size, item.archive_id, presign(item.key)) | {"sha256": item.sha256}
        yield json.dumps(entry) + "\n"


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
