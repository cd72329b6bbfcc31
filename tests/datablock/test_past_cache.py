"""The disk changes its mind beneath a mounted file system: the page cache still says the old, verification must not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver import errors
from archiver.datablock.verifier import VerifierProcess
from archiver.progress import Silent
from tests.datablock.making import packed
from tests.needs import run

IMAGE_BYTES = 32 * 2**20


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 file system, and the image that it lies in."""
    image, folder = tmp_path / "image", tmp_path / "lts"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(folder))
    yield folder, image
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("direct_io", "how"), [("auto", "O_DIRECT"), ("never", "fsync+DONTNEED")])
def test_p2_a_bit_that_rots_on_the_disk_is_found_though_the_cache_still_has_it_right(
    mounted: tuple[Path, Path], direct_io: str, how: str
) -> None:
    folder, image = mounted
    data, making = packed({f"{k}": os.urandom(100_000) for k in range(10)})
    path = folder / "1.tar.gz"
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    verifier = VerifierProcess()
    good = verifier.verify(path, making.manifest, direct_io=direct_io, progress=Silent())
    assert (good.level, good.how_read) == ("host", how)
    assert path.read_bytes() == data

    where = image.read_bytes().index(data[500_000:500_100])
    with image.open("r+b") as file:
        file.seek(where)
        file.write(bytes([data[500_000] ^ 1]))

    assert path.read_bytes() == data, "the cache was to give the old bytes: else this test proves nothing"
    with pytest.raises(errors.IntegrityMismatch, match="the same at the second reading"):
        verifier.verify(path, making.manifest, direct_io=direct_io, progress=Silent())
    verifier.stop()
