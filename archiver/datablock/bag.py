"""The bag's files (BagIt, RFC 8493): what makes a dataset's directory on the LTS speak for itself (P11). Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from archiver.datablock.record import DatablockRecord
from archiver.model import LEVELS

TAG_MANIFEST = "tagmanifest-sha256.txt"
PAYLOAD_MANIFEST = "manifest-sha256.txt"
AGENT = "scicat-archiver"


def least_level(records: Iterable[DatablockRecord], at_most: str = "") -> str:
    """The weakest level that the records prove; never better than ``at_most``, where that is known."""
    return min((*(record.level for record in records), *([at_most] if at_most else [])), key=LEVELS.index)


def bag_files(
    *,
    pid: str,
    plan_id: str,
    format: str,
    records: list[DatablockRecord],
    at_most: str = "",
    dataset: dict[str, Any],
    bagging_date: str,
) -> dict[str, bytes]:
    """Name and bytes of each file of the bag, in the order in which they must be written: the tag manifest is last.

    ``at_most``: the level of verification is no better than this.
    """
    payload: list[tuple[str, str, int]] = []
    for record in records:
        payload.append((f"data/{record.n}.{format}", record.sha256, record.packed_bytes))
        payload.append((f"data/{record.n}.manifest.jsonl.gz", record.manifest_sha256, record.manifest_bytes))
    info = {
        "Bag-Software-Agent": AGENT,
        "Bagging-Date": bagging_date,
        "External-Identifier": pid,
        "Payload-Oxum": f"{sum(size for _, _, size in payload)}.{len(payload)}",
        "Archiver-Plan": plan_id,
        "Archiver-Verification-Level": least_level(records, at_most),
        "Archiver-Files": str(sum(record.files for record in records)),
        "Archiver-Bytes": str(sum(record.size_bytes for record in records)),
    }
    files = {
        "bagit.txt": b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
        "bag-info.txt": "".join(f"{name}: {_one_line(value)}\n" for name, value in info.items()).encode(),
        "dataset.json": json.dumps(dataset, ensure_ascii=False, indent=1, sort_keys=True).encode("utf-8", "replace"),
        PAYLOAD_MANIFEST: "".join(f"{sha256}  {name}\n" for name, sha256, _ in payload).encode(),
    }
    tags = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    return {**files, TAG_MANIFEST: tags.encode()}


def read_bag_info(data: bytes) -> dict[str, str]:
    """Labels and values of a ``bag-info.txt`` (RFC 8493 2.2.2), continuation lines joined."""
    info: dict[str, str] = {}
    label = ""
    for line in data.decode("utf-8", "replace").splitlines():
        if line[:1] in (" ", "\t") and label:
            info[label] += " " + line.strip()
        elif ":" in line:
            label, _, value = line.partition(":")
            info[label] = value.strip()
    return info


def read_manifest_sha256(data: bytes) -> dict[str, str]:
    """File and digest of a ``manifest-sha256.txt`` (RFC 8493 2.1.3)."""
    sums: dict[str, str] = {}
    for line in data.decode("utf-8").splitlines():
        digest, _, name = line.partition("  ")
        sums[name] = digest
    return sums


def _one_line(value: str) -> str:
    return " ".join(value.split())
