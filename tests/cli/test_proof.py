"""The demo's proof fails where it must: with the tools that an operator has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cli.proof import check_bag
from cli.sample import MIB, make_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_files(tmp_path / "source", MIB)
    return tmp_path / "source"


@pytest.fixture
def bag(tmp_path: Path, source: Path) -> Path:
    """A bag by hand, of two datablocks."""
    folder = tmp_path / "bag"
    (folder / "data").mkdir(parents=True)
    for n, part in enumerate(
        (["frames", "raw"], [p.name for p in source.iterdir() if p.name not in ("frames", "raw")])
    ):
        subprocess.run(["tar", "-czf", folder / "data" / f"{n + 1}.tar.gz", "-C", source, *part], check=True)
        (folder / "data" / f"{n + 1}.manifest.jsonl.gz").write_bytes(b"a manifest")
    write_sums(folder)
    return folder


def write_sums(bag: Path) -> None:
    with (bag / "manifest-sha256.txt").open("w") as sums:
        names = sorted(str(path.relative_to(bag)) for path in (bag / "data").iterdir())
        subprocess.run(["sha256sum", *names], cwd=bag, stdout=sums, check=True)


def test_what_is_archived_whole_holds(bag: Path, source: Path, tmp_path: Path) -> None:
    sums, unpacked = check_bag(bag, source, tmp_path)
    assert sums == ("$ sha256sum -c manifest-sha256.txt   -> 4 OK", True)
    assert unpacked[1]
    assert not list(tmp_path.glob("unpacked-*"))


def test_a_changed_byte_of_a_datablock_is_seen(bag: Path, source: Path, tmp_path: Path) -> None:
    block = bag / "data" / "1.tar.gz"
    data = bytearray(block.read_bytes())
    data[len(data) // 2] ^= 1
    block.write_bytes(data)
    assert [held for _, held in check_bag(bag, source, tmp_path)] == [False, False]


def test_a_datablock_that_the_bag_does_not_list_is_seen(bag: Path, source: Path, tmp_path: Path) -> None:
    (bag / "data" / "3.tar.gz").write_bytes((bag / "data" / "2.tar.gz").read_bytes())
    assert [held for _, held in check_bag(bag, source, tmp_path)] == [False, True]


def test_a_missing_datablock_is_seen_although_the_sums_agree(bag: Path, source: Path, tmp_path: Path) -> None:
    for path in (bag / "data").glob("2.*"):
        path.unlink()
    write_sums(bag)
    (_, sums), (text, unpacked) = check_bag(bag, source, tmp_path)
    assert (sums, unpacked) == (True, False)
    assert "Only in" in text


def test_another_byte_in_the_source_is_seen(bag: Path, source: Path, tmp_path: Path) -> None:
    (source / "frames" / "frame 0007.tif").write_bytes(b"other")
    assert not check_bag(bag, source, tmp_path)[1][1]
