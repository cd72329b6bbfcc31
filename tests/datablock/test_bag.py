"""The bag's files, held against an independent validator and sha256sum."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import bagit
import pytest

from archiver.datablock.bag import bag_files, least_level, read_bag_info, read_manifest_sha256
from archiver.datablock.record import DatablockRecord


def record(n: int, data: bytes, manifest: bytes, level: str = "host") -> DatablockRecord:
    return DatablockRecord(
        n=n,
        plan_id="p" * 32,
        size_bytes=10,
        packed_bytes=len(data),
        files=3,
        sha256=hashlib.sha256(data).hexdigest(),
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        manifest_bytes=len(manifest),
        level=level,
        how_read="O_DIRECT",
        verified_at="2026-11-24T00:00:00+00:00",
    )


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    records = []
    for n in (1, 2):
        data, manifest = b"datablock %d" % n, b"manifest %d" % n
        (tmp_path / f"data/{n}.tar.gz").write_bytes(data)
        (tmp_path / f"data/{n}.manifest.jsonl.gz").write_bytes(manifest)
        records.append(record(n, data, manifest))
    dataset = {"pid": "20.500.1/x", "datasetName": "Größe\nzwei", "nested": {"ü": [1]}}
    files = bag_files(
        pid="20.500.1/x", plan_id="p" * 32, format="tar.gz", records=records, dataset=dataset, bagging_date="2026-11-24"
    )
    assert list(files)[-1] == "tagmanifest-sha256.txt"
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_p11_the_bag_is_valid_to_a_validator_and_to_sha256sum(bag: Path) -> None:
    bagit.Bag(str(bag)).validate()
    for name in ("manifest-sha256.txt", "tagmanifest-sha256.txt"):
        subprocess.run(["sha256sum", "-c", "--strict", "--quiet", name], cwd=bag, check=True)


def test_p11_damage_to_any_file_makes_the_bag_invalid(bag: Path) -> None:
    for path in [*bag.glob("data/*"), bag / "dataset.json", bag / "bag-info.txt"]:
        good = path.read_bytes()
        path.write_bytes(good + b"x")
        with pytest.raises(bagit.BagValidationError):
            bagit.Bag(str(bag)).validate()
        path.write_bytes(good)


def test_what_is_written_is_read_back(bag: Path) -> None:
    info = read_bag_info((bag / "bag-info.txt").read_bytes())
    assert info["External-Identifier"] == "20.500.1/x"
    assert info["Archiver-Verification-Level"] == "host"
    sums = read_manifest_sha256((bag / "manifest-sha256.txt").read_bytes())
    assert set(sums) == {f"data/{n}{end}" for n in (1, 2) for end in (".tar.gz", ".manifest.jsonl.gz")}


def test_the_bags_level_is_its_weakest(bag: Path) -> None:
    assert least_level([record(1, b"", b"", "tape"), record(2, b"", b"", "store")]) == "store"
