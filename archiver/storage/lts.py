"""The long-term storage as activities see it (``Lts``), and what is the same wherever its bytes lie (``Bags``).

What stands where: docs/architecture.md. The rules: a final name never holds partial bytes; a datablock with its manifest
beside it is verified, one without is not; nothing verified is ever deleted or overwritten (P3), only moved to
``.archiver/quarantine``; nothing is written or removed without the identity marker. Who is late must harm nothing either: what
is to go is first taken out of the way under a name of the attempt's own, and goes back if it is not what was meant.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from archiver import model as m
from archiver.datablock.bag import PAYLOAD_MANIFEST, TAG_MANIFEST, read_bag_info, read_manifest_sha256
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.verify import VerifyResult
from archiver.errors import IntegrityMismatch, LtsFault, StagingFault
from archiver.progress import SILENT, Progress

if TYPE_CHECKING:
    from archiver.storage.objects import Buffer

LOOKS = 3
NO_BAG = "lists other files than lie there: no bag"
LONG_AGO = 1.0
"""Seconds since 1970: the age of what is to be put right at once."""
MARKER = ".archiver-lts.json"
OWN = ".archiver"
QUARANTINE = "quarantine"
WHY = ".why.json"
BY_HAND = "by-hand"
"""The name of an attempt that is no activity's."""
DATABLOCK = re.compile(r"(\d+)\.(tar\.gz|tar\.zst|tar)")
MANIFEST = re.compile(r"(\d+)\.manifest\.jsonl\.gz")

Chunks = Callable[[], Iterable[memoryview]]
"""Gives the same bytes anew at each call."""


@dataclass(frozen=True)
class Space:
    """Bytes on the LTS: all, free, to be left free, and promised to copies that have not begun."""

    total: int
    free: int
    reserve: int
    promised: int


@dataclass
class Survey:
    """What the LTS holds of a dataset. ``complete``: the bag is complete, made by ``plan_id``."""

    reusable: list[int] = field(default_factory=list)
    complete: bool = False
    plan_id: str = ""
    superseded: int = 0
    removed: int = 0


@dataclass(frozen=True)
class Leftover:
    """What a run left on the LTS of a dataset that has no complete bag. ``newest``: when the last of it was touched."""

    dataset: str
    what: str
    newest: float


class Lts(Protocol):
    """Long-term storage as activities see it. Every method may be repeated (P6); each raises ``LtsFault``.

    ``dataset`` is a pid's path (``pids.pid_path``), ``name`` a file's in it.
    """

    def where(self, dataset: str = "") -> str:
        """Where a dataset, or all of it, lies, for people."""

    def setup(self, *, dry_run: bool = False) -> bool:
        """Make it the LTS of the settings' identity; returns whether there was anything to do."""

    def check_marker(self) -> None:
        """Raises ``LtsMarkerMissing`` if this is not the LTS it should be."""

    def space(self) -> Space | None:
        """How full it is; None where nobody can tell."""

    def wait_for_space(self, key: str, need_bytes: int, progress: Progress) -> None:
        """Return when there is room, promised to ``key``. Raises only what ``progress`` raises, and faults."""

    def release(self, key: str) -> None:
        """Give a promise back."""

    def copy_in(
        self,
        dataset: str,
        name: str,
        chunks: Iterable[Buffer],
        *,
        size: int,
        sha256: str,
        attempt: str,
        promise: str,
        progress: Progress,
    ) -> None:
        """Write a datablock under its final name, durably. Raises ``IntegrityMismatch`` if the bytes are others."""

    def prove(
        self, dataset: str, name: str, manifest: bytes, *, staged: Chunks | None, progress: Progress
    ) -> VerifyResult:
        """Verify what ``copy_in`` wrote, before its manifest is published. ``staged``: what it was copied from, while known.

        Raises ``IntegrityMismatch``.
        """

    def check(self, dataset: str, name: str, manifest: bytes, progress: Progress) -> VerifyResult:
        """Read a datablock again past all caches of ours, and compare. Changes nothing.

        Raises ``IntegrityMismatch``, and ``NotRecalled`` where it cannot be read now.
        """

    def readable(self, dataset: str, name: str) -> bool:
        """Whether the datablock can be read now. Looks only."""

    def recall(self, dataset: str, name: str) -> bool:
        """Whether the datablock can be read now; if not, ask the store to make it so, which may take days."""

    def read(self, dataset: str, name: str) -> Iterable[memoryview]:
        """The datablock's bytes, once; a chunk stays valid until the next but one is asked for.

        Raises ``OSError`` as the system gives it, and ``NotRecalled``.
        """

    def part(self, dataset: str, name: str, offset: int, size: int) -> Iterator[memoryview]:
        """``size`` bytes from ``offset``. Fewer, if it ends before. Raises as ``read`` does."""

    def size_of(self, dataset: str, name: str) -> int | None:
        """Size of a file, or None."""

    def get_small(self, dataset: str, name: str) -> bytes | None:
        """A small file, read past the cache, or None."""

    def put_small(self, dataset: str, name: str, data: bytes, attempt: str) -> None:
        """Write a small file, durably, without clobbering; the same bytes there already are a success."""

    def publish_bag(
        self, dataset: str, files: dict[str, bytes], plan_id: str, attempt: str, progress: Progress
    ) -> None:
        """Write the bag's files, each whole or not at all, the last of them last; then see that all of it lies there."""

    def record_events(self, dataset: str, events: list[m.Event], attempt: str, progress: Progress) -> None:
        """Add to the dataset's receipt what it does not say yet, whole or not at all. What it says stays in front."""

    def survey(
        self, dataset: str, plan_id: str, datablocks: int, attempt: str = BY_HAND, progress: Progress = SILENT
    ) -> Survey:
        """See what is there; remove what did not verify, take what another plan left into quarantine."""

    def remove_unverified(self, dataset: str, attempt: str = BY_HAND, progress: Progress = SILENT) -> int:
        """Remove partial and unverified files; returns how many."""

    def quarantine(
        self, dataset: str, name: str, reason: str, attempt: str = BY_HAND, progress: Progress = SILENT
    ) -> None:
        """Take a file of an incomplete bag out of the dataset, unchanged, for people to look at."""

    def put_back(self, dataset: str, attempt: str = BY_HAND, progress: Progress = SILENT) -> int:
        """Put back what attempts that died had taken out of the dataset, if it is the archive's; returns how many files."""

    def release_all(self, dataset: str) -> None:
        """Give back all promises of a dataset."""

    def leftovers(self, progress: Progress) -> Iterator[Leftover]:
        """Datasets of which something partial, unverified or promised is there. Looks only."""

    def datasets(self) -> Iterator[str]:
        """The paths that may be a dataset's, in no order that means anything. Looks only."""

    def close(self) -> None:
        """End what runs beside."""


class Bags(ABC):
    """What every ``Lts`` does alike, by the names and the small files of a dataset."""

    # --- what a kind of storage says ------------------------------------------------------------------------------------

    @abstractmethod
    def check_marker(self) -> None:
        """As ``Lts``."""

    @abstractmethod
    def names(self, dataset: str) -> list[str]:
        """The names in the dataset's ``data/``, sorted; empty if there is none."""

    @abstractmethod
    def get_small(self, dataset: str, name: str) -> bytes | None:
        """As ``Lts``."""

    @abstractmethod
    def size_of(self, dataset: str, name: str) -> int | None:
        """As ``Lts``."""

    @abstractmethod
    def remove_unverified(self, dataset: str, attempt: str = BY_HAND, progress: Progress = SILENT) -> int:
        """As ``Lts``."""

    @abstractmethod
    def release_all(self, dataset: str) -> None:
        """As ``Lts``."""

    @abstractmethod
    def quarantine(
        self, dataset: str, name: str, reason: str, attempt: str = BY_HAND, progress: Progress = SILENT
    ) -> None:
        """As ``Lts``."""

    @abstractmethod
    def put_back(self, dataset: str, attempt: str = BY_HAND, progress: Progress = SILENT) -> int:
        """As ``Lts``."""

    # --- what all do alike ------------------------------------------------------------------------------------------------

    def survey(
        self, dataset: str, plan_id: str, datablocks: int, attempt: str = BY_HAND, progress: Progress = SILENT
    ) -> Survey:
        """As ``Lts``."""
        self.check_marker()
        self.release_all(dataset)
        found = Survey()
        for _ in range(LOOKS):
            self.put_back(dataset, attempt, progress)
            if (plan := self.plan_of_bag(dataset)) is not None:
                if plan == plan_id or self.stands(dataset):
                    found.complete, found.plan_id = True, plan
                    if plan == plan_id:
                        found.reusable = list(range(1, datablocks + 1))
                    return found
                self.quarantine(dataset, TAG_MANIFEST, NO_BAG, attempt, progress)
            self._clear(dataset, plan_id, found, attempt, progress)
            if self.size_of(dataset, TAG_MANIFEST) is None:
                break
            # A late attempt completed the bag meanwhile: looked at once more, with what was taken out of it.
            found = Survey()
        return found

    def _clear(self, dataset: str, plan_id: str, found: Survey, attempt: str, progress: Progress) -> None:
        """Of a dataset without a complete bag: remove what did not verify, take what is of another plan into quarantine."""
        found.removed = self.remove_unverified(dataset, attempt, progress)
        for name, manifest in self.verified(dataset):
            if self._is_of(dataset, name, manifest, plan_id):
                found.reusable.append(int(name.split(".")[0]))
            else:
                # The manifest last: a datablock without one would count as unverified, and be removed.
                self.quarantine(
                    dataset, f"data/{name}", "of another plan, or its manifest cannot be read", attempt, progress
                )
                self.quarantine(dataset, f"data/{manifest}", "of another plan, or cannot be read", attempt, progress)
                found.superseded += 1
        for manifest in self.names(dataset):
            if (match := MANIFEST.fullmatch(manifest)) and int(match[1]) not in found.reusable:
                self.quarantine(dataset, f"data/{manifest}", "its datablock is gone", attempt, progress)
        found.reusable.sort()

    def plan_of_bag(self, dataset: str) -> str | None:
        """The plan of the dataset's complete bag, or None if there is no such bag."""
        if self.size_of(dataset, TAG_MANIFEST) is None:
            return None
        return read_bag_info(self.get_small(dataset, "bag-info.txt") or b"").get("Archiver-Plan", "")

    def listed(self, dataset: str) -> dict[str, str]:
        """File and digest of all that a complete bag lists, payload and bag files."""
        sums: dict[str, str] = {}
        for name in (TAG_MANIFEST, PAYLOAD_MANIFEST):
            with suppress(UnicodeDecodeError):
                sums |= read_manifest_sha256(self.get_small(dataset, name) or b"")
        return sums

    def agrees(self, dataset: str, tags: bytes) -> bool:
        """Whether the bag's files are those that this tag manifest lists."""
        try:
            sums = read_manifest_sha256(tags)
        except UnicodeDecodeError:
            return False
        found = {name: self.get_small(dataset, name) for name in sums}
        return bool(sums) and all(
            data is not None and hashlib.sha256(data).hexdigest() == sums[name] for name, data in found.items()
        )

    def stands(self, dataset: str) -> bool:
        """Whether a bag that is complete by its last file is so by the others: each is there, small ones by their digest,
        datablocks by the size and digest of which their manifests tell. Reads no datablock.
        """
        if not self.agrees(dataset, self.get_small(dataset, TAG_MANIFEST) or b""):
            return False
        sums = read_manifest_sha256(self.get_small(dataset, PAYLOAD_MANIFEST) or b"")
        for name, sha256 in sums.items():
            match = DATABLOCK.fullmatch(name.removeprefix("data/"))
            if match is None:
                continue
            manifest = f"data/{match[1]}.manifest.jsonl.gz"
            data = self.get_small(dataset, manifest)
            if data is None or hashlib.sha256(data).hexdigest() != sums.get(manifest):
                return False
            try:
                footer = ManifestReader([data]).read_footer()
            except IntegrityMismatch:
                return False
            if (self.size_of(dataset, name), sha256) != (footer.packed_bytes, footer.sha256):
                return False
        return True

    def verified(self, dataset: str) -> list[tuple[str, str]]:
        """Each datablock with a manifest beside it, and that manifest."""
        return pairs(self.names(dataset))

    def _is_of(self, dataset: str, name: str, manifest: str, plan_id: str) -> bool:
        data = self.get_small(dataset, f"data/{manifest}")
        try:
            reader = ManifestReader([data or b""])
            footer = reader.read_footer()
        except IntegrityMismatch:
            return False
        size = self.size_of(dataset, f"data/{name}")
        return reader.header.plan == plan_id and name.endswith(reader.header.format) and size == footer.packed_bytes

    def bag_is_there(
        self, dataset: str, files: dict[str, bytes], plan_id: str, attempt: str, progress: Progress
    ) -> bool:
        """Whether the bag of this plan is complete; if there is none, see that one may be made of what is in ``data/``.

        What a killed attempt left there goes first: a bag holds what its manifest says and nothing else. Raises ``LtsFault``
        for another plan's bag, ``IntegrityMismatch`` if a payload file is gone.
        """
        self.check_marker()
        self.put_back(dataset, attempt, progress)
        if (found := self.plan_of_bag(dataset)) is not None:
            stands = self.stands(dataset)
            if stands and found != plan_id:
                raise LtsFault(
                    f"a complete bag lies in {dataset} already",
                    expected=f"plan {plan_id}",
                    found=f"plan {found}",
                    next_step="an archive that exists is never replaced: compare it with SciCat",
                    retryable=False,
                )
            if stands:
                return True
            # Of an attempt that was late: it was published over the files that another had just written, or taken away.
            self.quarantine(dataset, TAG_MANIFEST, NO_BAG, attempt, progress)
        self.remove_unverified(dataset, attempt, progress)
        payload = read_manifest_sha256(files[PAYLOAD_MANIFEST])
        for name in self.names(dataset):
            if f"data/{name}" not in payload and (DATABLOCK.fullmatch(name) or MANIFEST.fullmatch(name)):
                self.quarantine(dataset, f"data/{name}", "is not of the bag that is made", attempt, progress)
        missing = [n for n in payload if self.size_of(dataset, n) is None]
        if missing:
            raise IntegrityMismatch(
                f"verified files of {dataset} are no longer on the LTS",
                expected="every file of the bag's manifest",
                found=f"{len(missing)} missing, the first {missing[0]}",
                next_step="see who removes files from the LTS, then submit the job again",
                retryable=False,
            )
        return False

    def bag_stands(self, dataset: str, files: dict[str, bytes], attempt: str, progress: Progress) -> None:
        """See that all of a bag just completed lies there: whoever was late may have taken a file before it could see that
        the bag is complete. Raises ``LtsFault``, to be retried.
        """
        listed = {name: data for name, data in files.items() if name != TAG_MANIFEST}
        payload = read_manifest_sha256(files[PAYLOAD_MANIFEST])
        for last in (False, True):
            wrong = [name for name, data in listed.items() if self.get_small(dataset, name) != data]
            wrong += [name for name in payload if self.size_of(dataset, name) is None]
            if not wrong:
                # What a late one put there before it could see that the bag is complete.
                self.remove_unverified(dataset, attempt, progress)
                return
            if not last:
                self.put_back(dataset, attempt, progress)
        raise LtsFault(
            f"the bag of {dataset} is not whole right after it was completed",
            expected="every file that was written",
            found=f"{len(wrong)} missing or different, the first {wrong[0]}",
            next_step="retried; see who else works on the LTS",
        )


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Of the names in a ``data/``, each datablock that has a manifest beside it, and that manifest."""
    names = list(names)
    manifests = {match[1]: name for name in names if (match := MANIFEST.fullmatch(name))}
    blocks = [(match[1], name) for name in names if (match := DATABLOCK.fullmatch(name))]
    return [(name, manifests[n]) for n, name in blocks if n in manifests]


def new_marker(identity: str) -> bytes:
    """The bytes of a new identity marker."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"identity": identity, "version": 1, "created": now}).encode()


def read_marker(data: bytes) -> str:
    """The identity that a marker carries; empty for what is none."""
    try:
        marker = json.loads(data)
    except ValueError:
        return ""
    return str(marker.get("identity")) if isinstance(marker, dict) else ""


def of_staging(chunks: Iterable[Buffer]) -> Iterator[Buffer]:
    """An ``OSError`` of theirs is not the LTS's."""
    try:
        yield from chunks
    except OSError as error:
        raise StagingFault(f"the staged datablock cannot be read: {error}", next_step="retried") from None


def check_copied(called: str, wanted: tuple[int, str], found: tuple[int, str]) -> None:
    """Size and SHA-256 of what staging gave. Raises ``IntegrityMismatch`` if they are not those that were packed."""
    if found != wanted:
        raise IntegrityMismatch(
            f"staging gave other bytes of {called} than were packed",
            expected=f"{wanted[0]} B, SHA-256 {wanted[1]}",
            found=f"{found[0]} B, SHA-256 {found[1]}",
            next_step="read again; if it lasts, the datablock is packed anew",
        )


def other_bytes(name: str, expected: str, found: str) -> IntegrityMismatch:
    """Something else lies under the final name of a datablock."""
    return IntegrityMismatch(
        f"{name} is there already with other bytes",
        expected=expected,
        found=found,
        next_step="it is taken into quarantine and made anew",
        retryable=False,
    )


def other_content(name: str) -> IntegrityMismatch:
    """Something else lies under the name of a small file."""
    return IntegrityMismatch(
        f"{name} is there already with other content",
        expected="the same content, or nothing",
        found="other content",
        next_step="compare the LTS with SciCat; nothing was overwritten",
        retryable=False,
    )
