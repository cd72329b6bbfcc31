"""Comparing the catalogue with the landing zone, and cutting datablocks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver import errors
from archiver.datablock.files import CatalogueFile, SourceFile, path_key
from archiver.datablock.plan import Plan, make_plan, merge_sorted
from archiver.progress import Silent
from tests.counts import often
from tests.datablock.making import TIME, catalogue, limits, planned, source

FILES = {"a.dat": b"1", "b/c.dat": b"22", "b/d.dat": b"333"}


def test_p4_what_agrees_is_planned_in_the_version_seen() -> None:
    plan, blocks = planned(catalogue(FILES), source(FILES))
    assert (plan.datablocks, plan.files, plan.size_bytes, plan.largest_bytes) == (1, 3, 6, 6)
    assert [(file.path, file.version) for file in blocks[1]] == [(file.path, file.version) for file in source(FILES)]
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("there", "error", "words"),
    [
        (
            {"a.dat": b"1", "b/c.dat": b"22"},
            errors.MissingFiles,
            ["1 files missing", "b/d.dat", "expected 3 B, found nothing"],
        ),
        ({**FILES, "a.dat": b"12"}, errors.FileDiffers, ["a.dat", "expected 1 B, found 2 B"]),
        ({**FILES, "a.dat": b""}, errors.FileDiffers, ["expected 1 B, found 0 B"]),
        ({**FILES, "z.tmp": b"1"}, errors.SurplusFiles, ["z.tmp", "not in the catalogue"]),
        ({}, errors.MissingFiles, ["3 files missing"]),
    ],
)
def test_p4_a_difference_is_a_content_error_that_names_files_and_counts(
    there: dict[str, bytes], error: type[errors.ContentError], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        planned(catalogue(FILES), source(there))
    for word in words:
        assert word in raised.value.one_line()
    assert "20.500.1/x" in raised.value.one_line()
    assert raised.value.next_step


def test_the_message_says_where_was_looked_and_what_to_do_where_nothing_lies_there() -> None:
    def error(there: dict[str, bytes]) -> errors.ContentError:
        with pytest.raises(errors.MissingFiles) as caught:
            make_plan(
                catalogue(FILES),
                source(there),
                pid="20.500.1/x",
                limits=limits(),
                surplus="refuse",
                sink=lambda n, chunks: str(list(chunks)),
                progress=Silent(),
                where="s3://landing/data/p1/x/",
            )
        return caught.value

    nothing = error({})
    assert "files missing in s3://landing/data/p1/x/, nothing lies there" in nothing.what
    assert "landing.url_template" in str(nothing.next_step)
    some = error(dict(list(FILES.items())[:1]))
    assert "files missing in s3://landing/data/p1/x/" in some.what
    assert "nothing lies there" not in some.what
    assert "landing.url_template" not in str(some.next_step)


def test_p4_many_differences_are_counted_and_the_first_ones_named() -> None:
    files = {f"f{k:04}": b"x" for k in range(5000)}
    with pytest.raises(errors.MissingFiles) as raised:
        planned(catalogue(files), source({"f0000": b"x"}))
    text = raised.value.one_line()
    assert "4999 files missing" in text
    assert "f0001" in text
    assert "and 4989 more" in text
    assert len(text) <= errors.ArchiverError.MAX_MESSAGE


def test_surplus_files_are_left_alone_where_the_setting_allows_them() -> None:
    plan, _ = planned(catalogue(FILES), source({**FILES, "z.tmp": b"1"}), surplus="allow")
    assert plan.files == 3


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(errors.EmptyDataset):
        planned([], [])


def test_two_files_of_one_path_are_refused() -> None:
    with pytest.raises(errors.DuplicatePath, match=r"a\.dat"):
        planned(sorted([*catalogue(FILES), *catalogue({"a.dat": b"1"})], key=lambda f: path_key(f.path)), source(FILES))


@pytest.mark.parametrize("others", [[], ["a!", "a-b", "a.txt"], ["a-b/c", "a.b/d/e"]])
def test_a_path_that_is_file_and_folder_is_refused_whatever_sorts_between(others: list[str]) -> None:
    files = dict.fromkeys(["a", "a/b", *others], b"x")
    with pytest.raises(errors.PathCollision, match="'a'"):
        planned(catalogue(files), source(files))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a/..",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "a\0b",
        "x" * 256,
        "\ud800",
        "d/" * 2100 + "f",
    ],
)
def test_a_hostile_path_is_refused_by_name(path: str) -> None:
    with pytest.raises(errors.HostilePath):
        planned([CatalogueFile(path, 1, TIME)], [])


@pytest.mark.parametrize(
    "path", ["a b", "-rf", "x\ny", "q\"'", "é", "e\u0301", "日本", "#1", "a\\b", "x" * 255, "..a", "a..", "\t"]
)
def test_an_unusual_path_is_taken_as_it_is(path: str) -> None:
    _, blocks = planned(catalogue({path: b"x"}), source({path: b"x"}))
    assert [file.path for file in blocks[1]] == [path]


def test_20001_files_make_two_datablocks() -> None:
    files = {f"{k:05}": b"" for k in range(20_001)}
    plan, blocks = planned(catalogue(files), source(files))
    assert plan.datablocks == 2
    assert [len(block) for block in blocks.values()] == [20_000, 1]


def test_a_file_larger_than_the_target_gets_its_own_datablock() -> None:
    listed = [CatalogueFile(path, size, TIME) for path, size in (("a", 10), ("b", 5 * 2**20), ("c", 10), ("d", 10))]
    there = [SourceFile(file.path, file.size, "v") for file in listed]
    _, blocks = planned(listed, there, target_bytes=2**20)
    assert [[file.path for file in block] for block in blocks.values()] == [["a"], ["b"], ["c", "d"]]


def test_the_metadata_limit_cuts_datablocks_too() -> None:
    files = {f"{'n' * 200}{k:05}": b"" for k in range(200)}
    plan, blocks = planned(catalogue(files), source(files), max_metadata_bytes=20_000)
    assert plan.datablocks > 3
    assert sum(len(block) for block in blocks.values()) == 200


def test_the_same_plan_has_the_same_id_and_any_difference_another() -> None:
    base = planned(catalogue(FILES), source(FILES))[0].plan_id
    assert planned(catalogue(FILES), source(FILES))[0].plan_id == base
    touched = [SourceFile(file.path, file.size, "other") for file in source(FILES)]
    others = [
        planned(catalogue(FILES), touched)[0].plan_id,
        planned(catalogue(FILES, mode=0o600), source(FILES))[0].plan_id,
        planned(catalogue(FILES), source(FILES), format="tar")[0].plan_id,
        planned(catalogue(FILES), source(FILES), max_files=1)[0].plan_id,
    ]
    assert len({base, *others}) == 5


@settings(max_examples=often(100), deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), unique=True), st.integers(1, 4)
)
def test_merged_runs_are_in_the_order_of_bytes(paths: list[str], runs: int) -> None:
    parts = [catalogue(dict.fromkeys(paths[k::runs], b"")) for k in range(runs)]
    merged = [file.path.encode() for file in merge_sorted(parts)]
    assert merged == sorted(path.encode() for path in paths)
    assert all(one < two for one, two in pairwise(merged))
