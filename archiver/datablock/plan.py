"""Compare the catalogue with the landing zone and cut datablocks: one merge of two sorted streams, in constant memory."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from archiver.datablock.files import CatalogueFile, PlannedFile, SourceFile, check_path, path_key, write_lines
from archiver.errors import (
    ContentError,
    DuplicatePath,
    EmptyDataset,
    FileDiffers,
    MissingFiles,
    PathCollision,
    SurplusFiles,
)
from archiver.progress import Progress
from archiver.settings import DatablockSettings

PLAN_VERSION = 1
"""To be raised when the packer makes other bytes of the same plan: a plan's id stands for them."""
NAMED = 10
"""Files named in a message; the rest is a count."""
ENTRY_OVERHEAD_BYTES = 190
"""JSON of one file in a SciCat datablock beside its path: keys, size, time, SHA-256, owner (payloads.datablock)."""
REPORT_EVERY = 1000


@dataclass(frozen=True)
class Plan:
    """Which files go into which datablock: the header, and the digest of each datablock's list, which is stored for itself.

    ``plan_id`` is a digest of everything that decides the datablocks' bytes, so the same plan means the same bytes.
    ``lists``: what ``make_plan``'s sink returned for each datablock, from the first on.
    """

    plan_id: str
    pid: str
    format: str
    level: int
    member_bytes: int
    datablocks: int
    files: int
    size_bytes: int
    largest_bytes: int
    lists: list[str]
    version: int = PLAN_VERSION

    def to_json(self) -> bytes:
        """For the staging bucket."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """The inverse of ``to_json``."""
        return cls(**json.loads(data))


def merge_sorted(runs: Iterable[Iterable[CatalogueFile]]) -> Iterator[CatalogueFile]:
    """The sorted runs as one sorted stream; holds one file and one read buffer per run."""
    return heapq.merge(*runs, key=lambda file: path_key(file.path))


class _Differences:
    """Counts what differs, by kind, and names the first few of each."""

    def __init__(self) -> None:
        self._found: dict[type[ContentError], tuple[int, list[str]]] = {}

    def add(self, kind: type[ContentError], text: str) -> None:
        count, named = self._found.get(kind, (0, []))
        self._found[kind] = (count + 1, [*named, text] if len(named) < NAMED else named)

    def __bool__(self) -> bool:
        return bool(self._found)

    def error(self, pid: str, where: str, planned: int) -> ContentError:
        """One error for all; its class is that of the first kind in the order of gravity. ``planned`` files are as listed."""
        words = {
            MissingFiles: f"missing in {where}",
            FileDiffers: f"in {where} of another size than the catalogue says",
            SurplusFiles: f"in {where} but not in the catalogue",
        }
        kinds = [kind for kind in words if kind in self._found]
        count, named = self._found[kinds[0]]
        parts = [f"{self._found[kind][0]} files {words[kind]}" for kind in kinds]
        more = f" and {count - len(named)} more" if count > len(named) else ""
        step = "put the files right or correct the origdatablocks"
        if kinds == [MissingFiles] and not planned:
            parts.append("nothing lies there")
            step = "see whether that is their place: sourceFolder in the dataset's record, or landing.url_template"
        return kinds[0](
            f"dataset {pid} and its catalogue record differ: {', '.join(parts)}",
            expected="the files that the origdatablocks list, of those sizes, and no others",
            found="; ".join(named) + more,
            next_step=f"{step}, then submit the job again",
            dataset=pid,
            file=named[0].split(" (")[0],
        )


class _Cutter:
    """Cuts the stream of files into datablocks by bytes, files and metadata, whichever comes first."""

    def __init__(self, limits: DatablockSettings) -> None:
        self._limits = limits
        self._files = self._bytes = self._metadata = 0

    def starts_new(self, file: PlannedFile) -> bool:
        """Whether ``file`` opens a datablock; counts it."""
        limits = self._limits
        metadata = ENTRY_OVERHEAD_BYTES + len(json.dumps(file.path)) + len(file.uid or "") + len(file.gid or "")
        full = self._files and (
            self._files >= limits.max_files
            or self._bytes + file.size > limits.target_bytes
            or self._metadata + metadata > limits.max_metadata_bytes
        )
        if full:
            self._files = self._bytes = self._metadata = 0
        self._files += 1
        self._bytes += file.size
        self._metadata += metadata
        return bool(full)


class _Planner:
    def __init__(self, limits: DatablockSettings, sink: Callable[[int, Iterator[bytes]], str]) -> None:
        self._limits = limits
        self._sink = sink
        self._digest = hashlib.sha256(
            f"{PLAN_VERSION}\n{limits.format}\n{limits.level}\n{limits.member_bytes}\n".encode()
        )
        self.files = self.size_bytes = self.largest_bytes = 0
        self.lists: list[str] = []

    def run(self, files: Iterator[PlannedFile]) -> None:
        """Store every datablock's list as its files stream by."""
        cutter = _Cutter(self._limits)
        ahead: list[PlannedFile] = []

        def block() -> Iterator[PlannedFile]:
            size = 0
            while True:
                if ahead:
                    file = ahead.pop()
                else:
                    following = next(files, None)
                    if following is None:
                        break
                    if cutter.starts_new(following):
                        ahead.append(following)
                        break
                    file = following
                self._digest.update(file.to_line() + b"\n")
                self.files += 1
                size += file.size
                yield file
            self._digest.update(b"--\n")
            self.size_bytes += size
            self.largest_bytes = max(self.largest_bytes, size)

        first = next(files, None)
        if first is None:
            return
        cutter.starts_new(first)
        ahead.append(first)
        while ahead:
            self.lists.append(self._sink(len(self.lists) + 1, write_lines(block())))

    @property
    def plan_id(self) -> str:
        """32 hexadecimal digits."""
        return self._digest.hexdigest()[:32]


def make_plan(
    catalogue: Iterable[CatalogueFile],
    source: Iterable[SourceFile],
    *,
    pid: str,
    limits: DatablockSettings,
    surplus: str,
    sink: Callable[[int, Iterator[bytes]], str],
    progress: Progress,
    where: str = "the landing zone",
) -> Plan:
    """Compare both lists (sorted by the UTF-8 bytes of their paths) and cut datablocks; may be repeated.

    ``sink(n, chunks)`` stores the list of datablock ``n`` and returns its digest. If the lists differ, the whole comparison is
    still made, so that the message counts everything; what the sink stored then means nothing.

    ``where``: the place that ``source`` lists, for messages.

    Raises ``EmptyDataset``, ``HostilePath``, ``DuplicatePath``, ``PathCollision``, ``MissingFiles``, ``FileDiffers``
    and, unless ``surplus`` is ``allow``, ``SurplusFiles``.
    """
    differences = _Differences()
    planner = _Planner(limits, sink)
    planner.run(_compare(_possible(catalogue, pid), iter(source), surplus, differences, progress))
    if differences:
        raise differences.error(pid, where, planner.files)
    if planner.files == 0:
        raise EmptyDataset(
            f"dataset {pid} has no files",
            expected="origdatablocks that list at least one file",
            found="none",
            next_step="register the dataset's files in SciCat, then submit the job again",
            dataset=pid,
        )
    return Plan(
        plan_id=planner.plan_id,
        pid=pid,
        format=limits.format,
        level=limits.level,
        member_bytes=limits.member_bytes,
        datablocks=len(planner.lists),
        files=planner.files,
        size_bytes=planner.size_bytes,
        largest_bytes=planner.largest_bytes,
        lists=planner.lists,
    )


def _possible(catalogue: Iterable[CatalogueFile], pid: str) -> Iterator[CatalogueFile]:
    """The catalogue's files, refusing what cannot be: hostile paths, one path twice, a path that is file and folder.

    In the order of bytes everything that begins with a path follows it without a gap, so the paths that the present one
    begins with form a short chain.
    """
    chain: list[str] = []
    for file in catalogue:
        check_path(file.path)
        while chain and not file.path.startswith(chain[-1]):
            chain.pop()
        if chain and chain[-1] == file.path:
            raise DuplicatePath(
                f"the catalogue lists {file.path!a} of dataset {pid} twice",
                expected="each path once",
                found="two files of one path",
                next_step="correct the origdatablocks, then submit the job again",
                dataset=pid,
                file=ascii(file.path),
            )
        for shorter in chain:
            if file.path[len(shorter)] == "/":
                raise PathCollision(
                    f"the catalogue lists {shorter!a} of dataset {pid} as a file and as a folder",
                    expected="a path to be one of the two",
                    found=f"also {file.path!a}",
                    next_step="correct the origdatablocks, then submit the job again",
                    dataset=pid,
                    file=ascii(shorter),
                )
        chain.append(file.path)
        yield file


def _compare(
    catalogue: Iterator[CatalogueFile],
    source: Iterator[SourceFile],
    surplus: str,
    differences: _Differences,
    progress: Progress,
) -> Iterator[PlannedFile]:
    listed, there = next(catalogue, None), next(source, None)
    steps = 0
    while listed is not None or there is not None:
        steps += 1
        if steps % REPORT_EVERY == 0:
            progress.advance(files=REPORT_EVERY)
        listed_key = path_key(listed.path) if listed else None
        there_key = path_key(there.path) if there else None
        if listed is not None and (there_key is None or (listed_key is not None and listed_key < there_key)):
            differences.add(MissingFiles, f"{listed.path!a} (expected {listed.size} B, found nothing)")
            listed = next(catalogue, None)
        elif there is not None and (listed_key is None or (there_key is not None and there_key < listed_key)):
            if surplus != "allow":
                differences.add(SurplusFiles, f"{there.path!a} ({there.size} B, not in the catalogue)")
            there = next(source, None)
        else:
            assert listed is not None  # noqa: S101
            assert there is not None  # noqa: S101
            if listed.size != there.size:
                text = f"{listed.path!a} (expected {listed.size} B, found {there.size} B)"
                differences.add(FileDiffers, text)
            else:
                yield PlannedFile.of(listed, there.version)
            listed, there = next(catalogue, None), next(source, None)
