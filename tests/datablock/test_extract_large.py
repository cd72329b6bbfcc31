"""One file out of a large datablock is had by reading little of it, and a large file in little memory (P10)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.datablock.extract import extract_files, select
from archiver.datablock.files import CatalogueFile, SourceFile
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.pack import pack
from archiver.progress import Silent
from tests.datablock.extracting import Sink, nothing
from tests.datablock.making import TIME, planned

MIB = 2**20
MEMBER_BYTES = 4 * MIB
SMALL = {f"small/{k:03}": MIB for k in range(96)}
SIZES = {**SMALL, "large": 160 * MIB}
BODY = random.Random(5).randbytes(MIB)


def body(path: str) -> bytes:
    """A MiB of a file: of each another one, made in no time."""
    turn = zlib.crc32(path.encode()) % MIB
    return BODY[turn:] + BODY[:turn]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datablock of 256 MiB on disk, and its manifest."""
    place = tmp_path_factory.mktemp("large")
    paths = sorted(SIZES)
    plan, blocks = planned(
        [CatalogueFile(path, SIZES[path], TIME) for path in paths],
        [SourceFile(path, SIZES[path], "v") for path in paths],
        member_bytes=MEMBER_BYTES,
    )
    parts = ((file, (body(file.path) for _ in range(file.size // MIB))) for file in blocks[1])
    making = pack(parts, plan=plan, n=1, progress=Silent())
    with (place / "data").open("wb") as out:
        for chunk in making:
            out.write(chunk)
    (place / "manifest").write_bytes(making.manifest)
    return place


def test_one_file_of_a_mib_out_of_256_is_had_by_reading_less_than_a_hundredth_and_one_member(folder: Path) -> None:
    manifest = (folder / "manifest").read_bytes()
    whole = (folder / "data").stat().st_size
    assert whole > 256 * MIB
    reader = ManifestReader([manifest])
    within = [
        file
        for file in reader.files()
        if file.path in SMALL and file.offset // MEMBER_BYTES == (file.offset + MIB + 1023) // MEMBER_BYTES
    ]
    assert len(within) > 60, "most lie in one member"
    largest = max(reader.member_sizes)
    for file in within:
        assert select(manifest, {file.path}).read_bytes <= largest
    read = 0

    def read_range(offset: int, size: int) -> Iterator[memoryview]:
        nonlocal read
        with (folder / "data").open("rb") as data:
            for at in range(offset, offset + size, MIB):
                chunk = os.pread(data.fileno(), min(MIB, offset + size - at), at)
                read += len(chunk)
                yield memoryview(chunk)

    path = within[len(within) // 2].path
    sink = Sink()
    result = extract_files(read_range, manifest, lambda it: it == path, sink, progress=nothing)
    assert sink.committed == {path: body(path)}
    assert read == result.read_bytes < whole / 100 + largest
    for over_a_border in set(SMALL) - {file.path for file in within}:
        assert select(manifest, {over_a_border}).read_bytes <= 2 * largest


CHILD = """
import hashlib, os, resource, sys
from archiver.datablock.extract import extract, extract_files
from archiver.direct_io import PastCacheReader
from pathlib import Path
folder, how = Path(sys.argv[1]), sys.argv[2]
class Sink:
    def begin(self, file): self.sum, self.size = hashlib.sha256(), 0; return True
    def data(self, chunk): self.sum.update(chunk); self.size += len(chunk)
    def commit(self): print(self.size, self.sum.hexdigest())
    def abort(self): print("aborted")
def read_range(offset, size):
    with open(folder / "data", "rb") as data:
        for at in range(offset, offset + size, 2**22):
            yield memoryview(os.pread(data.fileno(), min(2**22, offset + size - at), at))
manifest = (folder / "manifest").read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if how == "whole":
    extract(lambda: PastCacheReader(folder / "data"), manifest, Sink(), progress=lambda size: None)
else:
    extract_files(read_range, manifest, lambda path: path == "large", Sink(), progress=lambda size: None)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(("how", "files"), [("whole", 97), ("one file", 1)])
def test_p10_a_file_of_160_mib_streams_in_little_memory(folder: Path, how: str, files: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), how], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert len(done) == files + 1
    expected = subprocess.run(["sha256sum"], input=body("large") * 160, check=True, capture_output=True).stdout.split()[
        0
    ]
    assert f"{160 * MIB} {expected.decode()}" in done
    assert int(done[-1]) < 64 * MIB
