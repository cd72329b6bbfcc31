"""Names of the objects in the staging bucket (docs/architecture.md); nothing else lies there."""

from __future__ import annotations

from dataclasses import dataclass

from archiver.pids import path_pid, pid_path


@dataclass(frozen=True)
class StagingKeys:
    """Keys of one dataset. The same on every try; ``n`` counts datablocks from 1."""

    prefix: str
    pid: str

    @property
    def dataset(self) -> str:
        """Everything of this dataset lies below this prefix, and nothing of another (``pid_path``)."""
        return f"{self.prefix}datasets/{pid_path(self.pid)}/"

    @property
    def record(self) -> str:
        """The catalogue's record of the dataset, as it goes into the bag."""
        return self.dataset + "dataset.json"

    def run(self, k: int) -> str:
        """Sorted run ``k`` (from 0) of the catalogue's files."""
        return f"{self.dataset}runs/{k}.jsonl.gz"

    @property
    def plan(self) -> str:
        """Header of the plan in work."""
        return self.dataset + "plan/plan.json"

    def files(self, n: int) -> str:
        """The files of datablock ``n`` in the plan in work."""
        return f"{self.dataset}plan/{n}.jsonl.gz"

    def datablock(self, plan_id: str, n: int, extension: str) -> str:
        """The staged datablock."""
        return f"{self.dataset}{plan_id}/{n}.{extension}"

    def manifest(self, plan_id: str, n: int) -> str:
        """Its manifest."""
        return f"{self.dataset}{plan_id}/{n}.manifest.jsonl.gz"

    def verified(self, plan_id: str, n: int) -> str:
        """Its record: there only after verification."""
        return f"{self.dataset}{plan_id}/{n}.record.json"


def datablock_name(n: int, extension: str) -> str:
    """File name of a datablock below ``data/`` of its dataset."""
    return f"{n}.{extension}"


def manifest_name(n: int) -> str:
    """File name of a datablock's manifest below ``data/`` of its dataset."""
    return f"{n}.manifest.jsonl.gz"


def archive_id(pid: str, n: int, extension: str) -> str:
    """The datablock's path on the LTS, which is its archiveId in SciCat: the same on every try."""
    return f"{pid_path(pid)}/data/{datablock_name(n, extension)}"


def dataset_of(prefix: str, key: str) -> str | None:
    """The pid of the dataset that a key of the staging bucket belongs to; None if it is none of ours."""
    parts = key.removeprefix(prefix).split("/")
    if not key.startswith(prefix) or parts[0] != "datasets":
        return None
    for depth in (2, 3):
        try:
            return path_pid("/".join(parts[1:depth])) if len(parts) > depth else None
        except ValueError:
            continue
    return None
