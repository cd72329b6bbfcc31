"""The digest over which files there are: the same in any order, another for any other files."""

from __future__ import annotations

import hashlib
import random
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.datablock.contents import contents_of
from archiver.datablock.files import CatalogueFile
from archiver.model import Contents

FILES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 2**53), max_size=8)


def listed(files: dict[str, int]) -> list[CatalogueFile]:
    return [CatalogueFile(path, size, "") for path, size in files.items()]


@given(FILES, st.randoms(use_true_random=False), st.integers(1, 5))
def test_p4_order_and_chunks_do_not_matter(files: dict[str, int], order: random.Random, chunks: int) -> None:
    whole = contents_of(listed(files))
    shuffled = listed(files)
    order.shuffle(shuffled)
    parts = [contents_of(shuffled[k::chunks]) for k in range(chunks)]
    assert reduce(Contents.plus, parts, Contents()).same(whole)
    assert (whole.files, whole.size_bytes) == (len(files), sum(files.values()))


@given(FILES, FILES)
def test_p4_other_files_have_another_digest(one: dict[str, int], other: dict[str, int]) -> None:
    assert contents_of(listed(one)).same(contents_of(listed(other))) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 11}, {"a1": 1}),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ({"a": 0}, {}),
        ({"a/b": 1}, {"a": 1}),
        ({"\u00e9": 1}, {"e\u0301": 1}),
    ],
)
def test_p4_the_same_number_and_bytes_of_other_files_are_told_apart(one: dict[str, int], other: dict[str, int]) -> None:
    assert contents_of(listed(one)).digest != contents_of(listed(other)).digest


def test_p4_a_file_that_is_listed_twice_does_not_cancel_itself_out() -> None:
    twice = contents_of(listed({"a": 0}) * 2)
    assert twice.digest != Contents().plus(Contents()).digest
    assert not twice.same(contents_of([]))


def test_p4_the_digest_is_the_sum_of_the_files_digests() -> None:
    """As an auditor would make it."""
    files = {"a.dat": 3, "b/\u03c0.dat": 2**53, "c" * 300: 0}
    digests = (hashlib.sha256(path.encode() + b"\0" + str(size).encode()).hexdigest() for path, size in files.items())
    assert contents_of(listed(files)).digest == f"{sum(int(one, 16) for one in digests) % 2**256:064x}"


def test_p2_what_is_not_known_is_the_same_as_nothing() -> None:
    assert not Contents().same(Contents())
    assert not Contents(files=1, size_bytes=1).same(Contents(files=1, size_bytes=1))
    assert contents_of([]).same(contents_of([]))
