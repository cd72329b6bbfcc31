"""Names of what a retrieval keeps: in staging while it runs, in the retrieval bucket as long as its data lies there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from archiver.pids import path_pid, pid_path
from archiver.retrieval.wire import Destination

SELECTION_DIGITS = 24
TOLD = ".scicat-archiver/"
"""Folder beside a dataset's data in the retrieval bucket: it expires with the data."""


def selection_of(destination: Destination, files: Iterable[str]) -> str:
    """The name of what a job wants of a dataset: the same for the same files at the same destination, in any order."""
    wanted = [destination.kind, destination.root, destination.path, sorted(set(files))]
    text = json.dumps(wanted, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:SELECTION_DIGITS]


def works(staging_prefix: str, pid: str | None = None) -> str:
    """The prefix in staging below which lies what retrievals need while they run: of this dataset, or of all."""
    return f"{staging_prefix}retrievals/" + (f"{pid_path(pid)}/" if pid is not None else "")


def retrieved_pid(staging_prefix: str, key: str) -> str | None:
    """The pid of the dataset whose retrieval a key of the staging bucket belongs to; None if it is no retrieval's."""
    path, _, rest = key.removeprefix(works(staging_prefix)).rpartition("/")
    path, _, selection = path.rpartition("/")
    try:
        return path_pid(path) if key.startswith(works(staging_prefix)) and selection and rest else None
    except ValueError:
        return None


def dead(entries: Iterable[tuple[str, float]], before: float) -> list[str]:
    """Of these keys of retrievals, each with when it was last written, those of selections of which nothing is younger.

    A time that is not known (0) is taken for now.
    """
    selections: dict[str, list[tuple[str, float]]] = {}
    for key, when in entries:
        selections.setdefault(key.rpartition("/")[0], []).append((key, when))
    return [key for listed in selections.values() if all(0 < when < before for _, when in listed) for key, _ in listed]


@dataclass(frozen=True)
class RetrievalKeys:
    """Keys of one dataset and selection. The same on every try; ``n`` counts datablocks from 1."""

    staging_prefix: str
    pid: str
    selection: str

    @property
    def work(self) -> str:
        """Everything in staging that this retrieval needs while it runs, and nothing else, lies below this prefix."""
        return f"{works(self.staging_prefix, self.pid)}{self.selection}/"

    def staged(self, sha256: str) -> str:
        """In staging, by the SHA-256 of its bytes: the catalogue's datablocks, or the wanted names."""
        return self.work + sha256

    def told(self, dataset_prefix: str) -> str:
        """In the retrieval bucket: what is told of this selection lies below this prefix, in the dataset's own."""
        return f"{dataset_prefix}{TOLD}{self.selection}/"

    def delivered(self, dataset_prefix: str, n: int) -> str:
        """In the retrieval bucket: what was delivered of datablock ``n``, JSON lines, gzip (``Delivered``)."""
        return f"{self.told(dataset_prefix)}{n}.jsonl.gz"

    def complete(self, dataset_prefix: str) -> str:
        """In the retrieval bucket: there only once everything wanted was checked and lies there."""
        return self.told(dataset_prefix) + "complete.json"
