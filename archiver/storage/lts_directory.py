"""The LTS on a mounted file system (tape front end, NFS, disk): ``Lts`` of directories and files.

A file is written under a partial name of its attempt, made durable, and linked to its final name without clobbering.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from archiver import model as m
from archiver.datablock.bag import TAG_MANIFEST
from archiver.datablock.events import EVENTS, added
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.verifier import Verifiers
from archiver.datablock.verify import VerifyResult
from archiver.direct_io import PastCacheReader
from archiver.errors import IntegrityMismatch, LtsFault, LtsFull, LtsMarkerMissing
from archiver.pids import is_pid_part
from archiver.progress import SILENT, Progress
from archiver.settings import LtsSettings
from archiver.storage.direct_write import publish, sync_folder, write_stream
from archiver.storage.lts import (
    BY_HAND,
    DATABLOCK,
    LONG_AGO,
    MANIFEST,
    MARKER,
    OWN,
    QUARANTINE,
    WHY,
    Bags,
    Chunks,
    Leftover,
    Space,
    check_copied,
    new_marker,
    of_staging,
    other_bytes,
    other_content,
    pairs,
    read_marker,
)
from archiver.storage.quarantine import Seen, back, home, look, one, take

if TYPE_CHECKING:
    from archiver.storage.objects import Buffer

PROMISE_SECONDS = 3 * 86400
"""A promise of space that nobody took for so long was made by a run that is gone."""
SMALL_BYTES = 64 * 2**20
LOOK_SECONDS = 1.0
TRIES = 3
"""Times a small file is replaced that another has just replaced."""
RANGE_CHUNK_BYTES = 2**20
NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.EILSEQ)
"""What a file system says to a name that it can never hold."""
_PARTIAL = re.compile(r"\.\d+\.(tar\.gz|tar\.zst|tar|manifest\.jsonl\.gz)\.[^/]+\.partial")
_KEPT = re.compile(r"(.+)\.\d{8}T\d{6}\.\d{6}\.[0-9a-f]{8}")
_TAG_PARTIAL = re.compile(
    r"\.(bagit\.txt|bag-info\.txt|dataset\.json|events\.jsonl|(tag)?manifest-sha256\.txt)(\.[^/]+)?\.partial"
)


logger = logging.getLogger("archiver.lts")


class FileSystemLts(Bags):
    """``Lts`` on a mounted file system. ``verifications``: how many may run at once, each in a process of its own."""

    def __init__(self, settings: LtsSettings, *, verifications: int = 1) -> None:
        self._settings = settings
        self._verifiers = Verifiers(verifications)
        self._root = settings.root
        self._promises = self._root / OWN / "promises"
        self._quarantine = self._root / OWN / QUARANTINE
        self._lock = threading.Lock()

    def where(self, dataset: str = "") -> str:
        """As ``Lts``."""
        return str(self._root / dataset)

    def close(self) -> None:
        """End the verifier processes that are idle."""
        self._verifiers.close()

    # --- identity -----------------------------------------------------------------------------------------------------

    def setup(self, *, dry_run: bool = False) -> bool:
        """Write the identity marker into the root directory, which must exist; returns whether it was written."""
        try:
            self.check_marker()
            return False
        except LtsMarkerMissing:
            if self._read_marker() is not None:
                raise
        if not self._root.is_dir():
            raise LtsFault(
                f"LTS root {self._root} is no directory",
                expected="the mounted long-term storage",
                found="nothing",
                next_step="mount it, or correct lts.root",
                retryable=False,
            )
        if not dry_run:
            self.probe()
            with self._faults("setup"):
                for folder in (self._promises, self._quarantine, self._root / OWN / "locks"):
                    folder.mkdir(parents=True, exist_ok=True)
                self._write_durably(self._root / MARKER, new_marker(self._settings.identity), "setup")
        return True

    def probe(self) -> list[str]:
        """Try on the real mount what is needed of its file system. Raises ``LtsFault`` that names what is missing.

        Returns what it lacks that is of use, and can be done without. Nothing stays behind.
        """
        folder = self._root / OWN / f"probe-{secrets.token_hex(8)}"
        lacks = []
        try:
            with self._faults(str(folder)):
                folder.mkdir(parents=True)
                first, second, final = folder / "first", folder / "second", folder / "Final"
                self._write_small(first, b"first")
                self._write_small(second, b"second")
                publish(first, final)
                try:
                    publish(second, final)
                except FileExistsError:
                    pass
                if self._small(final) != b"first":
                    raise self._unfit("overwrites a file that is there, though told not to (link, or RENAME_NOREPLACE)")
                if (folder / "fINAL").exists():
                    raise self._unfit("does not tell names in small letters from names in large ones")
                seen = look(final)
                own = take(seen, final, "probe", lambda _: True) if seen is not None else None
                if own is None or final.exists() or not back(own, final) or self._small(final) != b"first":
                    raise self._unfit("does not rename a file and back with its size and time as they were")
                longest = folder / ("n" * 255)
                longest.mkdir()
                longest.rmdir()
                if not sync_folder(folder):
                    lacks.append("makes directories durable (fsync)")
                if os.statvfs(folder).f_blocks == 0:
                    lacks.append("tells how full it is (statfs)")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return lacks

    def _unfit(self, what: str) -> LtsFault:
        return LtsFault(
            f"the file system of {self._root} {what}",
            expected="what docs/operators.md asks of an LTS",
            found=f"one that {what}",
            next_step="mount another, or with other options",
            retryable=False,
        )

    def check_marker(self) -> None:
        """As ``Lts``."""
        found = self._read_marker()
        if found != self._settings.identity:
            raise LtsMarkerMissing(
                f"{self._root} is not the LTS {self._settings.identity!r}",
                expected=f"marker {MARKER} of identity {self._settings.identity!r}",
                found="no marker" if found is None else f"identity {found!r}",
                next_step="mount the LTS; a new one is prepared by  archiver setup",
            )

    def _read_marker(self) -> str | None:
        try:
            return read_marker((self._root / MARKER).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._fault(error, str(self._root / MARKER)) from None

    # --- space --------------------------------------------------------------------------------------------------------

    def space(self) -> Space | None:
        """As ``Lts``: None where ``statfs(2)`` tells of no blocks at all, as some network file systems do."""
        return self._space(but="")

    def _space(self, but: str) -> Space | None:
        self.check_marker()
        with self._faults("space"):
            now = os.statvfs(self._root)
        if not now.f_blocks:
            return None
        total = now.f_blocks * now.f_frsize
        free = now.f_bavail * now.f_frsize
        return Space(total, free, self._settings.reserve_bytes(total), self._promised(but))

    def _promised(self, but: str) -> int:
        total = 0
        oldest = time.time() - PROMISE_SECONDS
        with self._faults("promises"):
            for path in self._promises.glob("*.json"):
                try:
                    if path != self._promise(but) and path.stat().st_mtime > oldest:
                        total += int(json.loads(path.read_bytes())["bytes"])
                except (FileNotFoundError, ValueError, KeyError, TypeError):
                    continue  # released meanwhile, or cut short by a crash
        return total

    def _promise(self, key: str) -> Path:
        return self._promises / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".json")

    def wait_for_space(self, key: str, need_bytes: int, progress: Progress) -> None:
        """As ``Lts``: free space, less the reserve, less what is promised to others, holds ``need_bytes``."""
        while True:
            with self._lock:
                space = self._space(but=key)
                # Where nobody can tell, a write that finds it full is told by the write, and waited out then.
                if space is None or space.free - space.reserve - space.promised >= need_bytes:
                    with self._faults("promise"):
                        self._promises.mkdir(parents=True, exist_ok=True)
                        path = self._promise(key)
                        draft = path.with_suffix(".draft")
                        draft.write_text(json.dumps({"for": key, "bytes": need_bytes}))
                        draft.replace(path)
                    return
            text = (
                f"LTS space: needs {need_bytes} B, {space.free} B free, "
                f"{space.reserve} B reserve, {space.promised} B promised to others"
            )
            until = time.monotonic() + self._settings.space_poll_seconds
            while time.monotonic() < until:
                progress.note(text)
                time.sleep(min(LOOK_SECONDS, self._settings.space_poll_seconds))

    def release(self, key: str) -> None:
        """As ``Lts``."""
        with self._faults("promise"):
            # Looked for first: a file system that is read-only refuses to remove even what is not there.
            if self._promise(key).exists():
                self._promise(key).unlink(missing_ok=True)

    def release_all(self, dataset: str) -> None:
        """As ``Lts``: what a run of this dataset that was killed or terminated had promised to itself."""
        with self._faults("promises"):
            for path in self._promises.glob("*.json"):
                try:
                    if json.loads(path.read_bytes())["for"].startswith(f"{dataset}/"):
                        path.unlink(missing_ok=True)
                except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
                    continue  # released meanwhile, or cut short by a crash

    # --- datablocks ---------------------------------------------------------------------------------------------------

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
        """As ``Lts``: ``.partial`` of this attempt, reserved, written, fsynced, linked without clobbering, fsynced."""
        self.check_marker()
        final = self._root / dataset / name
        if self._is_there(final):
            self._same(final, size, sha256, progress)
            self.release(promise)
            return
        with self._faults(str(final)), self._partial(final, attempt) as partial:
            written, found = write_stream(
                partial,
                of_staging(chunks),
                size=size,
                direct_io=self._settings.direct_io != "never",
                # What fallocate holds is no longer free: the promise would count it twice.
                reserved=lambda done: self.release(promise) if done else None,
                progress=progress,
            )
            check_copied(f"{dataset}/{name}", (size, sha256), (written, found))
            # A marker seen now: what was written went to the LTS, and not to a mount point that lost its mount.
            self.check_marker()
            self._publish(partial, final)
        self._not_of_another(dataset, final, attempt)
        self._same_size(final, size)
        self.release(promise)

    def _publish(self, partial: Path, final: Path) -> None:
        try:
            publish(partial, final)
        except FileExistsError:
            if self._digest(final) != self._digest(partial):
                raise other_bytes(_called(final), "the same bytes, or nothing", "other bytes") from None

    def _not_of_another(self, dataset: str, final: Path, attempt: str) -> None:
        """We were late, if a bag was completed meanwhile that does not list what we have just put there: it goes again."""
        if not self._is_there(self._root / dataset / TAG_MANIFEST) or f"data/{final.name}" in self.listed(dataset):
            return
        with self._faults(str(final)):
            if (seen := look(final)) is not None and (own := take(seen, final, attempt, lambda _: True)):
                own.unlink(missing_ok=True)
        raise LtsFault(
            f"another job completed the bag of {dataset} while {final.name} was written",
            expected="one job at a time on a dataset",
            found=f"a complete bag without {final.name}",
            next_step="nothing of it was changed",
            retryable=False,
        )

    def _same(self, final: Path, size: int, sha256: str, progress: Progress) -> None:
        """An earlier attempt published it: the same bytes, or somebody else's."""
        self._same_size(final, size)
        progress.note("was copied by an earlier attempt: reading it back")
        if (found := self._digest(final, progress)) != sha256:
            raise other_bytes(_called(final), f"SHA-256 {sha256}", f"SHA-256 {found}")
        self._sync_directory(final.parent)

    def _same_size(self, final: Path, size: int) -> None:
        with self._faults(str(final)):
            found = final.stat().st_size
        if found != size:
            raise IntegrityMismatch(
                f"{_called(final)} has another size than was packed",
                expected=f"{size} B",
                found=f"{found} B",
                next_step="it is taken into quarantine and made anew",
                retryable=False,
            )

    def _digest(self, path: Path, progress: Progress | None = None) -> str:
        digest = hashlib.sha256()
        with self._faults(str(path)):
            for chunk in PastCacheReader(path, self._settings.direct_io):
                digest.update(chunk)
                if progress is not None:
                    progress.advance(len(chunk))
        return digest.hexdigest()

    def prove(
        self, dataset: str, name: str, manifest: bytes, *, staged: Chunks | None, progress: Progress
    ) -> VerifyResult:
        """As ``Lts``: by reading it back."""
        return self.check(dataset, name, manifest, progress)

    def check(self, dataset: str, name: str, manifest: bytes, progress: Progress) -> VerifyResult:
        """As ``Lts``, in another process."""
        path = self.path_of(dataset, name)
        with self._verifiers.one() as verifier:
            return verifier.verify(path, manifest, direct_io=self._settings.direct_io, progress=progress)

    def readable(self, dataset: str, name: str) -> bool:
        """As ``Lts``: a file system makes the reader wait."""
        return True

    def recall(self, dataset: str, name: str) -> bool:
        """As ``Lts``."""
        return True

    def read(self, dataset: str, name: str) -> PastCacheReader:
        """As ``Lts``."""
        return PastCacheReader(self.path_of(dataset, name), self._settings.direct_io)

    def part(self, dataset: str, name: str, offset: int, size: int) -> Iterator[memoryview]:
        """As ``Lts``."""
        descriptor = os.open(self.path_of(dataset, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            while size > 0 and (chunk := os.pread(descriptor, min(size, RANGE_CHUNK_BYTES), offset)):
                yield memoryview(chunk)
                offset, size = offset + len(chunk), size - len(chunk)
        finally:
            os.close(descriptor)

    def path_of(self, dataset: str, name: str) -> Path:
        """Where a file lies."""
        self.check_marker()
        return self._root / dataset / name

    def size_of(self, dataset: str, name: str) -> int | None:
        """As ``Lts``."""
        self.check_marker()
        with self._faults(f"{dataset}/{name}"):
            try:
                return (self._root / dataset / name).stat().st_size
            except FileNotFoundError:
                return None

    # --- small files --------------------------------------------------------------------------------------------------

    def get_small(self, dataset: str, name: str) -> bytes | None:
        """As ``Lts``."""
        self.check_marker()
        path = self._root / dataset / name
        return self._small(path) if self._is_there(path) else None

    def put_small(self, dataset: str, name: str, data: bytes, attempt: str) -> None:
        """As ``Lts``."""
        self.check_marker()
        final = self._root / dataset / name
        with self._faults(str(final)):
            self._write_durably(final, data, attempt)
        self._not_of_another(dataset, final, attempt)

    def publish_bag(
        self, dataset: str, files: dict[str, bytes], plan_id: str, attempt: str, progress: Progress
    ) -> None:
        """As ``Lts``. A complete bag of this plan stays as it is; the files of an incomplete one are replaced."""
        folder = self._root / dataset
        if self.bag_is_there(dataset, files, plan_id, attempt, progress):
            with self._faults(str(folder)):
                self._make_directories(folder / "data")
                return self._sync_directory(folder)  # who published it may have died before it was durable
        *tags, last = files
        for name in tags:
            progress.note(f"writing {name}")
            self._replace(
                folder / name, functools.partial(_other, files[name]), attempt, progress, while_incomplete=True
            )
        progress.note(f"writing {last}")
        try:
            with self._faults(str(folder)):
                self._write_durably(folder / last, files[last], attempt)
        except IntegrityMismatch as mismatch:
            # Published by a late attempt over our files: the next try sees that, and takes it out of the way.
            mismatch.retryable = True
            raise
        self.bag_stands(dataset, files, attempt, progress)

    def record_events(self, dataset: str, events: list[m.Event], attempt: str, progress: Progress) -> None:
        """As ``Lts``. The one file beside a complete bag that is ever replaced; no manifest of the bag names it."""
        self.check_marker()
        self.put_back(dataset, attempt, progress)
        final = self._root / dataset / EVENTS
        with self._faults(str(final)):
            for draft in final.parent.glob(f".{EVENTS}.*.partial"):
                if (seen := look(draft)) is not None:
                    self._remove(dataset, seen, attempt)

        def new(before: bytes) -> bytes | None:
            after = added(before, events)
            return None if after == before else after

        self._replace(final, new, attempt, progress, while_incomplete=False)

    def _replace(
        self,
        final: Path,
        new: Callable[[bytes], bytes | None],
        attempt: str,
        progress: Progress,
        *,
        while_incomplete: bool,
    ) -> None:
        """Give a small file the content that ``new`` makes of the old one (empty, if there is none), or leave it (None).

        What lies there is taken out of the way if it is still what was read, and the new one published without clobbering:
        a late attempt can replace nothing that it has not seen, and, ``while_incomplete``, nothing of a complete bag.
        """
        folder = final.parent
        with self._faults(str(final)):
            for _ in range(TRIES):
                seen = look(final)
                data = new(self._small(final) if seen is not None else b"")
                if data is None:
                    return
                with self._partial(final, attempt) as draft:
                    self._write_small(draft, data)
                    # Raises if another attempt has taken over meanwhile: it may have written more.
                    progress.note(f"writing {final.name}")
                    old = None
                    if seen is not None:
                        old = take(
                            seen, final, attempt, lambda _: not (while_incomplete and (folder / TAG_MANIFEST).exists())
                        )
                        if old is None:
                            continue
                    try:
                        publish(draft, final)
                    except FileExistsError:
                        if old is not None:
                            self._keep(
                                old,
                                str(folder.relative_to(self._root)),
                                final,
                                "another was written at the same time",
                                attempt,
                            )
                        continue
                    except OSError:
                        if old is not None:
                            back(old, final)
                        raise
                    # Not earlier: who is killed between the two leaves what can be put back.
                    if old is not None:
                        old.unlink(missing_ok=True)
                    return
        raise LtsFault(
            f"{final.name} of {folder.name} is being written by somebody else",
            expected="one writer of a dataset at a time",
            found=f"another file at each of {TRIES} looks",
            next_step="retried, from what is there then",
        )

    def _small(self, path: Path) -> bytes:
        with self._faults(str(path)):
            if path.stat().st_size > SMALL_BYTES:
                raise LtsFault(f"{path} is too large to be one of our small files", retryable=False)
            return b"".join(bytes(chunk) for chunk in PastCacheReader(path, "never"))

    def _write_durably(self, final: Path, data: bytes, attempt: str) -> None:
        """No-clobber; the same bytes there already are a success. Raises ``IntegrityMismatch`` for others."""
        with self._partial(final, attempt) as partial:
            self._write_small(partial, data)
            try:
                publish(partial, final)
            except FileExistsError:
                if self._small(final) != data:
                    raise other_content(f"{final.name} of {final.parent.name}") from None

    def _write_small(self, path: Path, data: bytes) -> None:
        """Create ``path`` durably, and see that it reads back from below the page cache as it was written."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            view = memoryview(data)
            while len(view):
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self._small(path) != data:
            raise LtsFault(
                f"{path.name} was not read back as it was written",
                expected=f"{len(data)} B, SHA-256 {hashlib.sha256(data).hexdigest()}",
                found="other bytes",
                next_step="written anew; see the health of the LTS",
            )

    @contextmanager
    def _partial(self, final: Path, attempt: str) -> Iterator[Path]:
        """The name under which this attempt writes ``final``, in a durable folder. Afterwards nothing is left under it, and
        what was done in the folder is durable.
        """
        self._make_directories(final.parent)
        self._remove_dead(final, attempt)
        partial = final.with_name(f".{final.name}.{attempt}.partial")
        partial.unlink(missing_ok=True)
        try:
            yield partial
        except BaseException:
            # What failed is what is told; where even this fails, a sweep takes the rest.
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        partial.unlink(missing_ok=True)
        # One fsync for both: the new name, and the end of this one.
        self._sync_directory(final.parent)

    def _remove_dead(self, final: Path, attempt: str) -> None:
        """What earlier attempts of the same work left when they were killed: it holds space that this one needs."""
        work, _, number = attempt.rpartition("-")
        for path in final.parent.glob(f".{final.name}.{work}-*.partial"):
            other = path.name.removesuffix(".partial").rpartition("-")[2]
            older = number.isdecimal() and other.isdecimal() and int(other) < int(number)
            if older and (seen := look(path)) and (own := take(seen, path, attempt, lambda _: True)):
                own.unlink(missing_ok=True)

    # --- what is there ------------------------------------------------------------------------------------------------

    def names(self, dataset: str) -> list[str]:
        """As ``Bags``."""
        with self._faults(dataset):
            try:
                return sorted(os.listdir(self._root / dataset / "data"))
            except FileNotFoundError:
                return []

    def remove_unverified(self, dataset: str, attempt: str = BY_HAND, progress: Progress = SILENT) -> int:
        """As ``Lts``. Never touches a complete bag, a verified datablock, or anything that is not ours by name."""
        self.check_marker()
        self.put_back(dataset, attempt, progress)
        folder = self._root / dataset
        if self._is_there(folder / TAG_MANIFEST):
            self._clear_strays(dataset, attempt, progress)
            return 0
        removed = 0
        with self._faults(dataset):
            for seen in self._unverified(dataset):
                progress.note(f"removing {seen.path.name} of {dataset}")
                removed += self._remove(dataset, seen, attempt)
        # Folders that hold nothing any more; rmdir refuses others. What lies above is shared with other datasets, which
        # may be making their folders at this moment.
        for empty in (folder / "data", folder):
            with suppress(OSError):
                empty.rmdir()
        return removed

    def _clear_strays(self, dataset: str, attempt: str, progress: Progress) -> None:
        """Of a complete bag that is whole: what has a name of ours and is not listed, as a late copy leaves it, goes into
        quarantine. A bag holds what its manifest says, and nothing else.
        """
        if not self._strays(dataset) or not self.stands(dataset):
            return
        listed = self.listed(dataset)
        with self._faults(dataset):
            for path in self._strays(dataset):
                seen = look(path) if f"data/{path.name}" not in listed else None
                progress.note(f"taking {path.name} of {dataset} into quarantine")
                if seen is not None and (own := take(seen, path, attempt, lambda _: True)):
                    self._keep(own, dataset, path, "is not of the bag that lies there", attempt)

    def _strays(self, dataset: str) -> list[Path]:
        """Datablocks without a manifest beside them, and manifests without a datablock: a complete bag has none."""
        names = self.names(dataset)
        kept = {name for pair in pairs(names) for name in pair}
        ours = [name for name in names if DATABLOCK.fullmatch(name) or MANIFEST.fullmatch(name)]
        return [self._root / dataset / "data" / name for name in ours if name not in kept]

    def _unverified(self, dataset: str) -> list[Seen]:
        """Partial and unverified files of a dataset without a complete bag: what may be removed."""
        folder = self._root / dataset
        kept = {name for pair in self.verified(dataset) for name in pair}
        in_data = [
            folder / "data" / name for name in self.names(dataset) if DATABLOCK.fullmatch(name) and name not in kept
        ]
        taken = [path for path, _ in self._taken(dataset)]
        return [seen for path in (*in_data, *self._drafts(dataset), *taken) if (seen := look(path)) is not None]

    def _drafts(self, dataset: str) -> list[Path]:
        """What attempts were writing, or are."""
        folder = self._root / dataset
        drafts = [draft for draft in folder.glob(".*.partial") if _TAG_PARTIAL.fullmatch(draft.name)]
        return drafts + [draft for draft in (folder / "data").glob(".*.partial") if _PARTIAL.fullmatch(draft.name)]

    def _remove(self, dataset: str, seen: Seen, attempt: str) -> bool:
        """Remove a file that is nobody's any more; one that only looks so stays, and what may be of use is kept."""
        taken = home(seen.path)
        to = taken or seen.path
        own = take(seen, to, attempt, lambda own: not self._needed(dataset, own, to, taken is not None))
        if own is None:
            return False
        if taken is not None and not one(own, to) and self._may_be_of_use(dataset, own, to):
            self._keep(own, dataset, to, "was taken out of the way by an attempt that died", attempt)
            return True
        own.unlink(missing_ok=True)
        return True

    def _needed(self, dataset: str, own: Path, to: Path, taken: bool) -> bool:
        """Whether a file that was moved from ``to``, or was found in quarantine, must go back there."""
        folder = self._root / dataset
        if _PARTIAL.fullmatch(to.name) or _TAG_PARTIAL.fullmatch(to.name):
            return False
        if taken:
            return not to.exists() and self._belongs(dataset, to, own)
        if (folder / TAG_MANIFEST).exists():
            return True
        match = DATABLOCK.fullmatch(to.name)
        return match is not None and to.with_name(f"{match[1]}.manifest.jsonl.gz").exists()

    def _may_be_of_use(self, dataset: str, own: Path, to: Path) -> bool:
        """Whether what was found in quarantine is kept for people: manifests, and what lies beside one or in a complete bag."""
        if to.name == EVENTS:
            return not to.exists() or not set(self._small(own).splitlines()) <= set(self._small(to).splitlines())
        return bool(MANIFEST.fullmatch(to.name)) or self._needed(dataset, own, to, taken=False)

    # --- quarantine ---------------------------------------------------------------------------------------------------

    def quarantine(
        self, dataset: str, name: str, reason: str, attempt: str = BY_HAND, progress: Progress = SILENT
    ) -> None:
        """As ``Lts``: renamed into ``.archiver/quarantine/<dataset>``, the reason beside it. A file that is gone is no error."""
        self.check_marker()
        source = self._root / dataset / name
        with self._faults(str(source)):
            seen = look(source)
            progress.note(f"taking {name} of {dataset} into quarantine")
            if seen is None:
                return
            complete = self._root / dataset / TAG_MANIFEST
            own = take(seen, source, attempt, lambda _: not complete.exists())
            if own is not None:
                self._keep(own, dataset, source, reason, attempt)
                self._sync_directory(source.parent)

    def _keep(self, own: Path, dataset: str, was: Path, reason: str, attempt: str) -> None:
        """Move what was taken to where people find it. The reason is written first: no file lies there without one."""
        folder = self._quarantine / dataset
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        target = folder / f"{was.name}.{stamp}.{secrets.token_hex(4)}"
        why = target.with_name(target.name + WHY)
        note = {"was": str(was.relative_to(self._root)), "reason": reason, "when": stamp, "attempt": attempt}
        self._make_directories(folder)
        try:
            self._write_small(why, json.dumps(note).encode())
            own.rename(target)
        except BaseException as error:
            with suppress(OSError):
                why.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                return  # another has put it back
            raise
        self._sync_directory(folder)

    def put_back(self, dataset: str, attempt: str = BY_HAND, progress: Progress = SILENT) -> int:
        """As ``Lts``: by its digest, so that nothing else ever takes a verified file's place."""
        self.check_marker()
        folder = self._root / dataset
        with self._faults(dataset):
            here = self._taken(dataset)
            found = here + self._kept(dataset)
            complete = (folder / TAG_MANIFEST).exists()
            done = 0
            for path, to in found:
                if to.exists() or not self._belongs(dataset, to, path):
                    continue
                progress.note(f"putting back {to.name} of {dataset}")
                if (seen := look(path)) is not None and (
                    own := take(seen, to, attempt, functools.partial(self._belongs, dataset, to))
                ):
                    done += back(own, to)
                    self._sync_directory(to.parent)
                    path.with_name(path.name + WHY).unlink(missing_ok=True)
            if complete:
                # A bag holds what its manifest says, and nothing else.
                for path in (*(path for path, _ in here), *self._drafts(dataset)):
                    if (seen := look(path)) is not None:
                        progress.note(f"clearing {path.name} of {dataset}")
                        self._remove(dataset, seen, attempt)
            return done

    def _taken(self, dataset: str) -> list[tuple[Path, Path]]:
        """What attempts that died have taken out of the way, and where it lay: the bag's own files first."""
        folder = self._root / dataset
        found = []
        for place in (folder, folder / "data"):
            with suppress(FileNotFoundError):
                found += [(place / name, to) for name in sorted(os.listdir(place)) if (to := home(place / name))]
        # A datablock before its manifest: alone, it is looked at again.
        return sorted(found, key=lambda one: (one[1].parent != folder, bool(MANIFEST.fullmatch(one[1].name))))

    def _kept(self, dataset: str) -> list[tuple[Path, Path]]:
        """What of a dataset lies in quarantine for people, and where it lay."""
        folder, place = self._root / dataset, self._quarantine / dataset
        with suppress(FileNotFoundError):
            names = sorted(name for name in os.listdir(place) if not name.endswith(WHY))
            kept = [(place / name, match[1]) for name in names if (match := _KEPT.fullmatch(name))]
            payload = [(path, folder / "data" / was) for path, was in kept if DATABLOCK.fullmatch(was)]
            return payload + [
                (path, folder / "data" / was if MANIFEST.fullmatch(was) else folder / was)
                for path, was in kept
                if not DATABLOCK.fullmatch(was) and (folder / TAG_MANIFEST).exists()
            ]
        return []

    def _belongs(self, dataset: str, to: Path, path: Path) -> bool:
        """Whether ``path`` holds the very bytes that the bag, or the manifest or datablock beside it, says of ``to``."""
        folder = self._root / dataset
        name = str(to.relative_to(folder))
        if (folder / TAG_MANIFEST).exists():
            wanted = self.listed(dataset).get(name)
            return name == EVENTS or (wanted is not None and self._digest(path) == wanted)
        if name == EVENTS:
            return True
        if name == TAG_MANIFEST:
            return self.agrees(dataset, self._small(path))
        if match := DATABLOCK.fullmatch(to.name):
            manifest, block = to.with_name(f"{match[1]}.manifest.jsonl.gz"), path
        elif match := MANIFEST.fullmatch(to.name):
            names = [name for name in self.names(dataset) if (one := DATABLOCK.fullmatch(name)) and one[1] == match[1]]
            if not names:
                return False
            manifest, block = path, to.with_name(names[0])
        else:
            return False
        if not manifest.exists():
            return False
        try:
            footer = ManifestReader([self._small(manifest)]).read_footer()
        except IntegrityMismatch:
            return False
        return block.stat().st_size == footer.packed_bytes and self._digest(block) == footer.sha256

    def leftovers(self, progress: Progress) -> Iterator[Leftover]:
        """As ``Lts``. One look at each dataset's directory; a complete bag is not opened."""
        self.check_marker()
        with self._faults("promises"):
            for path in self._promises.glob("*.json"):
                try:
                    dataset = json.loads(path.read_bytes())["for"].rpartition("/")[0]
                    yield Leftover(dataset, "a promise of space", path.stat().st_mtime)
                except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
                    continue  # released meanwhile, or cut short by a crash
        for dataset in self.datasets():
            progress.note(f"looking at {dataset}")
            if (found := self._left(dataset)) is not None:
                yield found

    def datasets(self) -> Iterator[str]:
        """As ``Lts``: the directories ``a/b``, and ``pid=...`` (``pid_path``)."""
        for name in self._folders(self._root):
            if name.startswith("pid="):
                yield name
            elif is_pid_part(name):
                yield from (f"{name}/{inner}" for inner in self._folders(self._root / name) if is_pid_part(inner))

    def _folders(self, folder: Path) -> list[str]:
        with self._faults(str(folder)):
            try:
                with os.scandir(folder) as entries:
                    return sorted(
                        e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)
                    )
            except FileNotFoundError:
                return []
            except PermissionError as error:
                if folder == self._root:
                    raise
                # Somebody else's: what we make we may read. It stops nothing.
                logger.warning("LTS: folder %s is left out: %s", folder, error.strerror)
                return []

    def _left(self, dataset: str) -> Leftover | None:
        folder = self._root / dataset
        with self._faults(dataset):
            try:
                names = os.listdir(folder)
                taken = [path for path, _ in self._taken(dataset)]
                if TAG_MANIFEST in names:
                    return self._left_of_bag(dataset, taken + self._drafts(dataset))
                files = [seen.path for seen in self._unverified(dataset)]
                # Folders without anything are left by whoever was killed before the first byte.
                empty = not names or (names == ["data"] and not self.names(dataset))
                if not files and not empty:
                    return None
                times = [path.stat().st_mtime for path in (*files, folder, folder / "data") if path.exists()]
                # A file keeps its time when it is moved.
                times += [path.stat().st_ctime for path in taken]
            except FileNotFoundError:
                return None  # somebody is at work here
            except PermissionError as error:
                logger.warning("LTS: folder %s is left out: %s", folder, error.strerror)
                return None
        return Leftover(dataset, f"{len(files)} unverified files" if files else "an empty directory", max(times))

    def _left_of_bag(self, dataset: str, taken: list[Path]) -> Leftover | None:
        """Of a complete bag: what an attempt took, or wrote, that died. What is missing by that is not waited for."""
        strays = self._strays(dataset)
        if not taken and not strays and not (self._quarantine / dataset).exists():
            return None
        missing = [name for name in self.listed(dataset) if not (self._root / dataset / name).exists()]
        if missing:
            return Leftover(dataset, f"{len(missing)} files missing in its bag, and files in quarantine", LONG_AGO)
        # What is missing by a stray is not a stray's to mend: a bag that does not stand is for people to look at.
        taken = taken + (strays if strays and self.stands(dataset) else [])
        if not taken:
            return None
        return Leftover(
            dataset, f"{len(taken)} files that an attempt left in its bag", max(path.stat().st_ctime for path in taken)
        )

    # --- directories and faults -----------------------------------------------------------------------------------------

    def _make_directories(self, folder: Path) -> None:
        """Make ``folder`` and its parents below the root, each durable in its parent.

        Also one that is there: who made it may have died, or not come so far, before it was durable.
        """
        while folder != self._root:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
            folder = folder.parent
            self._sync_directory(folder)

    @staticmethod
    def _sync_directory(folder: Path) -> None:
        sync_folder(folder)

    def _is_there(self, path: Path) -> bool:
        with self._faults(str(path)):
            return path.exists()

    @contextmanager
    def _faults(self, where: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._fault(error, where) from None

    def _fault(self, error: OSError, where: str) -> LtsFault:
        kind = LtsFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else LtsFault
        words = {
            errno.EROFS: "mount the LTS read-write",
            errno.ESTALE: "mount the LTS again",
            errno.EACCES: "give the worker's user the right to write there",
            errno.ENOSPC: "free space on the LTS, or raise lts.reserve",
            errno.EINVAL: "archiver doctor  tries what is needed of the LTS's file system",
            errno.EOPNOTSUPP: "archiver doctor  tries what is needed of the LTS's file system",
        }
        lasts = error.errno in NO_SUCH_NAME
        advice = words.get(error.errno or 0, "see the health of the LTS and its mount")
        return kind(
            f"the LTS failed: {error.strerror or error}",
            expected=f"to work on {where}",
            found=f"errno {error.errno}" + (", for a name that its file system cannot hold" if lasts else ""),
            next_step="use an LTS that takes names of 255 bytes" if lasts else f"retried; {advice}",
            retryable=not lasts,
        )


def _other(data: bytes, before: bytes) -> bytes | None:
    """For ``_replace``: this content, whatever is there, if it is not there already."""
    return None if before == data else data


def _called(final: Path) -> str:
    """A payload file, for messages."""
    return f"{final.name} of {final.parent.parent.name}"
