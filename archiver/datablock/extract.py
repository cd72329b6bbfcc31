"""Take files out of a datablock: all of them in one pass, or a few by reading the members that they lie in.

What is read is compared as verification does it (``verify.one_pass``, the same code), and the manifest with itself before
anything is read. A file is committed only when its own SHA-256 matched, whatever else is found wrong later.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress

from archiver.datablock.beside import Left
from archiver.datablock.decode import MAX_MEMBER_BYTES
from archiver.datablock.files import check_path, path_key
from archiver.datablock.manifest import ManifestFile, ManifestFooter, ManifestHeader, ManifestReader
from archiver.datablock.sink import FileSink
from archiver.datablock.untar import BLOCK, PAX_LIMIT, Damaged, TarStream
from archiver.datablock.verify import Files, compare, one_pass
from archiver.errors import HostilePath, IntegrityMismatch

HEADER_LIMIT = 2 * BLOCK + PAX_LIMIT
"""The most that stands before a file's bytes: a PAX header, its records, the header itself."""
END_BYTES = 2 * BLOCK
KEPT = 1000
"""So many wanted files are kept from the first reading of a manifest; of more, they are read again when their bytes come."""
_log = logging.getLogger(__name__)

Read = Callable[[], Iterable[memoryview]]
"""The datablock's chunks from its beginning; a chunk must stay valid until the next but one is asked for."""
ReadRange = Callable[[int, int], Iterable[memoryview]]
"""The chunks of so many bytes (second) from an offset (first) of the datablock on; valid as those of ``Read``."""


@dataclass(frozen=True)
class Extracted:
    """What was delivered: ``files`` committed and their ``size_bytes``; ``read_bytes`` of the datablock; ``skipped``:
    files that the sink did not want, checked all the same."""

    files: int
    size_bytes: int
    read_bytes: int
    skipped: int


@dataclass(frozen=True)
class Selected:
    """What of a datablock is wanted. ``read_bytes``: of the datablock, that ``extract_files`` will read for it."""

    header: ManifestHeader
    footer: ManifestFooter
    found: frozenset[str]
    """The wanted paths that are in it; empty if everything was asked for."""
    files: int
    size_bytes: int
    read_bytes: int


def extract(read: Read, manifest: bytes, sink: FileSink, *, progress: Callable[[int], None]) -> Extracted:
    """Read the whole datablock once, check everything that verification checks, and hand every file to ``sink``.

    ``sink`` is called from one thread, not the caller's, in the order of the tar; ``progress`` from the caller's, with the
    bytes of each chunk. Raises ``IntegrityMismatch`` (never retried by itself; files committed before it are right),
    ``LtsFault`` for a read error, and what ``sink`` and ``progress`` raise; a begun file is then aborted.
    """
    index = _Index(manifest)
    delivery = _Delivery(ManifestReader([manifest]).files(), sink)
    with _named(index):
        result = compare(read, index.scan, delivery, progress)
    return Extracted(delivery.count - delivery.skipped, delivery.delivered_bytes, result.packed_bytes, delivery.skipped)


def extract_files(
    read_range: ReadRange,
    manifest: bytes,
    wanted: Callable[[str], bool],
    sink: FileSink,
    *,
    progress: Callable[[int], None],
) -> Extracted:
    """Hand the files whose path is ``wanted`` to ``sink``, reading only the members that hold them.

    ``read_range`` is asked once for each series of neighbouring members, in ascending order; ``wanted`` once for each file.
    Checked are these members, the header of each file against the manifest, and its SHA-256; not the rest of the datablock.
    Otherwise as ``extract``. Files that are not in this datablock are not its concern: see ``select``.
    """
    index = _Index(manifest, wanted)
    again = compress(ManifestReader([manifest]).files(), index.flags)
    delivery = _Delivery(again if index.kept is None else iter(index.kept), sink)
    window = _Window(index, delivery)
    with _named(index):
        read_bytes = one_pass(
            lambda: _ranges(index, read_range), index.scan, window, delivery, progress, chosen=index.members
        )
    return Extracted(delivery.count - delivery.skipped, delivery.delivered_bytes, read_bytes, delivery.skipped)


def pass_through(
    read: Read, manifest: bytes, write: Callable[[memoryview], None], *, progress: Callable[[int], None]
) -> Extracted:
    """Hand the packed bytes to ``write``, chunk by chunk, while everything is checked as ``extract`` does it.

    The caller makes what was written visible only after this has returned. A chunk is the caller's again when ``write``
    returns. Raises as ``extract`` does.
    """
    index = _Index(manifest)
    files = Files(ManifestReader([manifest]).files())
    with _named(index):
        result = compare(read, index.scan, files, progress, write)
    return Extracted(files.count, files.size_bytes, result.packed_bytes, 0)


def select(manifest: bytes, wanted: Set[str] | None = None) -> Selected:
    """What of ``wanted`` is in this datablock (all of it without ``wanted``), in one streaming pass over the manifest.

    Raises ``IntegrityMismatch`` if the manifest is damaged, contradicts itself or names a hostile path.
    """
    found: set[str] = set()

    def wants(path: str) -> bool:
        if wanted is not None and path in wanted:
            found.add(path)
            return True
        return wanted is None

    index = _Index(manifest, wants)
    read_bytes = sum(size for _, size in index.ranges())
    return Selected(
        index.scan.header, index.scan.footer, frozenset(found), sum(index.flags), index.size_bytes, read_bytes
    )


class _Delivery(Files):
    """Compares as verification does, and tells the sink: all from one thread."""

    def __init__(self, expected: Iterator[ManifestFile], sink: FileSink) -> None:
        super().__init__(expected)
        self._sink = sink
        self._open = False
        self._given_up = False
        self.skipped = self.delivered_bytes = 0

    def begin(self, path: str, size: int, offset: int) -> None:
        """A file begins in the tar."""
        if self._given_up:
            raise Left
        super().begin(path, size, offset)
        assert self._file is not None  # noqa: S101
        self._open = self._sink.begin(self._file)

    def data(self, chunk: memoryview) -> None:
        """Bytes of the file."""
        super().data(chunk)
        if self._open:
            self._sink.data(chunk)

    def end(self) -> None:
        """The file has ended."""
        super().end()
        assert self._file is not None  # noqa: S101
        if self._open:
            self._sink.commit()
            self._open = False
            self.delivered_bytes += self._file.size
        else:
            self.skipped += 1

    def give_up(self) -> None:
        """A piece may hold thousands of small files: a stop does not wait for them."""
        self._given_up = True

    def leave(self) -> None:
        """The thread ends; what is begun by now is not whole."""
        if not self._open:
            return
        self._open = False
        try:
            self._sink.abort()
        except Exception:  # noqa: BLE001  the error that led here is the one to be told
            _log.exception("an unfinished file could not be taken back")


class _Index:
    """A manifest read once, in memory that its files do not fill, and compared with itself; and what of it is wanted.

    Raises ``IntegrityMismatch``.
    """

    def __init__(self, manifest: bytes, wanted: Callable[[str], bool] | None = None) -> None:
        self.scan = ManifestReader([manifest])
        header = self.scan.header
        if not 0 < header.member_bytes <= MAX_MEMBER_BYTES:
            raise self._damaged(f"members of at most {MAX_MEMBER_BYTES} B", f"{header.member_bytes} B")
        self._wanted = wanted
        self.flags = bytearray()
        """Of each file, in order: is it wanted?"""
        self.extents = array("Q")
        """Start and end in the tar of each series of wanted files."""
        self.kept: list[ManifestFile] | None = []
        """The wanted files, unless they are too many."""
        self.size_bytes = 0
        total = 0
        last: ManifestFile | None = None
        for file in self.scan.files():
            self._check_path(file.path, last)
            if last is None and file.offset:
                raise self._damaged("the first file at 0", f"{file.offset}", file)
            if last is not None:
                self._place(last, file.offset)
            total += file.size
            last = file
        footer = self.scan.footer
        end = footer.tar_bytes - END_BYTES
        if last is not None:
            self._place(last, end)
        members = -(-footer.tar_bytes // header.member_bytes)
        expected = (len(self.flags), total, members)
        if (footer.files, footer.size_bytes, footer.members) != expected or (last is None and end):
            raise self._damaged(f"files, bytes and members in the footer {expected}", f"{footer}"[:200])
        self.members = self._members()

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Offset and size, in the datablock, of each series of neighbouring wanted members."""
        sizes = self.scan.member_sizes
        offset = counted = start = 0
        while start < len(self.members):
            end = start + 1
            while end < len(self.members) and self.members[end] == self.members[end - 1] + 1:
                end += 1
            first, behind = self.members[start], self.members[end - 1] + 1
            offset += sum(sizes[counted:first])
            size = sum(sizes[first:behind])
            yield offset, size
            offset += size
            counted, start = behind, end

    def _members(self) -> array[int]:
        """Of the wanted files, ascending, each once."""
        members: array[int] = array("Q")
        size = self.scan.header.member_bytes
        for start, end in _pairs(self.extents):
            first = start // size
            if members and members[-1] == first:
                first += 1
            members.extend(range(first, (end - 1) // size + 1))
        return members

    def _place(self, file: ManifestFile, end: int) -> None:
        """``file`` reaches to ``end`` in the tar."""
        start = file.offset
        before = end - start - -(-file.size // BLOCK) * BLOCK
        if file.size < 0 or start % BLOCK or not BLOCK <= before <= HEADER_LIMIT or end >= 2**63:
            raise self._damaged(f"a header and {file.size} B from {start} on", f"the next file at {end}", file)
        if file.member != start // self.scan.header.member_bytes:
            raise self._damaged(f"member {start // self.scan.header.member_bytes}", f"{file.member}", file)
        wanted = self._wanted is None or self._wanted(file.path)
        self.flags.append(wanted)
        if not wanted:
            return
        self.size_bytes += file.size
        if self.kept is not None:
            self.kept.append(file)
            if len(self.kept) > KEPT:
                self.kept = None
        if self.extents and self.extents[-1] == start:
            self.extents[-1] = end
        else:
            self.extents.extend((start, end))

    def _check_path(self, path: str, last: ManifestFile | None) -> None:
        try:
            check_path(path)
        except HostilePath as error:
            raise self._damaged("a path that a file below a dataset can have", f"{error.found}") from None
        if last is not None and path_key(path) <= path_key(last.path):
            raise self._damaged(f"a path behind {last.path[:200]!a}", f"{path[:200]!a}")

    def _damaged(self, expected: str, found: str, file: ManifestFile | None = None) -> IntegrityMismatch:
        return IntegrityMismatch(
            "the manifest contradicts itself",
            expected=expected,
            found=found,
            next_step="compare it with the bag's manifest-sha256.txt; nothing was read or delivered",
            dataset=self.scan.header.pid,
            datablock=self.scan.header.datablock,
            file=ascii(file.path[:200]) if file else None,
            retryable=False,
        )


class _Window:
    """Cuts the wanted files out of the plain bytes of the members that hold them."""

    def __init__(self, index: _Index, files: Files) -> None:
        self._tar = TarStream(files)
        self._member_bytes = index.scan.header.member_bytes
        self._members = iter(index.members)
        self._position = self._member_end = 0
        self._extents = _pairs(index.extents)
        self._extent = next(self._extents, None)

    def feed(self, data: memoryview) -> None:
        """The next bytes, all of one member."""
        if self._position == self._member_end and len(data):
            self._position = next(self._members) * self._member_bytes
            self._member_end = self._position + self._member_bytes
        at = self._position
        self._position += len(data)
        while len(data) and self._extent is not None:
            start, end = self._extent
            if at < start:
                skipped = min(len(data), start - at)
                data, at = data[skipped:], at + skipped
                continue
            if at == start:
                self._tar.seek(at)
            piece = data[: end - at]
            self._tar.feed(piece)
            data, at = data[len(piece) :], at + len(piece)
            if at == end:
                self._extent = next(self._extents, None)

    def close(self) -> None:
        """All bytes came."""
        self._tar.seek(self._tar.position)
        if self._extent is not None:
            raise Damaged(f"a file at {self._extent[0]} of the tar expected, found the end")


def _pairs(extents: array[int]) -> Iterator[tuple[int, int]]:
    each = iter(extents)
    return zip(each, each, strict=True)


def _ranges(index: _Index, read_range: ReadRange) -> Iterator[memoryview]:
    """The wanted members' bytes: of each range exactly as many as it has."""
    for offset, size in index.ranges():
        left = size
        chunks = iter(read_range(offset, size))
        try:
            for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        if left:
            found = "more" if left < 0 else f"{size - left} B"
            raise Damaged(f"{size} B from {offset} on expected, found {found}")


@contextmanager
def _named(index: _Index) -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        header = index.scan.header
        raise IntegrityMismatch(
            f"datablock {header.datablock} of dataset {header.pid} does not match its manifest",
            expected="the bytes that were archived",
            found=str(error)[:600],
            next_step="run 'archiver verify' on the dataset, see the LTS's health; no wrong byte was delivered",
            dataset=header.pid,
            datablock=header.datablock,
            file=ascii(error.file[:200]) if error.file else None,
            retryable=False,
        ) from None
