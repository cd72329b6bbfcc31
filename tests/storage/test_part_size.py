"""An S3 upload has at most 10,000 parts (S3's multipart limits), however large its datablock is."""

from __future__ import annotations

import pytest

from archiver.storage.objects import MAX_PARTS, PUT_PART_BYTES, part_bytes

GIB = 2**30


@pytest.mark.parametrize("size", [0, 20 * GIB, 78 * GIB, 79 * GIB, 500 * GIB, 5000 * GIB])
def test_a_datablock_of_any_size_fits_into_the_parts_of_one_upload(size: int) -> None:
    framed = size + size // 200
    assert framed <= part_bytes(size) * MAX_PARTS
    assert part_bytes(size) == PUT_PART_BYTES or size > 70 * GIB
