"""``archiver ls``: what lies where of a dataset, by the catalogue, the LTS and the manifests, side by side. Looks only."""

from __future__ import annotations

import asyncio
from typing import Any

from archiver.catalogue.client import SciCat
from archiver.datablock.manifest import ManifestReader
from archiver.errors import IntegrityMismatch, LtsFault
from archiver.pids import pid_path
from archiver.settings import Settings
from archiver.storage import lts_read
from archiver.storage.open import open_lts
from archiver.text import joined
from cli import exits
from workflows.visible import size

Data = dict[str, Any]


async def ls(settings: Settings, pid: str, *, files: bool) -> tuple[str, Data, int]:
    """As text, as data, and the exit code: 0 where all agree, 8 where they do not. An LTS that is not mounted here is said.

    Raises ``NotFound`` if SciCat knows no such dataset, ``CatalogueFault``.
    """
    async with SciCat(settings.scicat) as scicat:
        dataset = await scicat.dataset(pid)
        if dataset is None:
            raise exits.NotFound(
                f"SciCat knows no dataset {pid[:200]!a}",
                expected="a pid that our account may read",
                found="none",
                next_step="check the pid",
            )
        recorded = await scicat.datablocks(pid)
    rows: dict[str, Data] = {
        block.archive_id: {
            "archive_id": block.archive_id,
            "scicat_bytes": block.packed_size,
            "scicat_files": block.files,
        }
        for block in recorded
    }
    where = open_lts(settings).where(pid_path(pid))
    try:
        seen = await asyncio.to_thread(_on_lts, settings, pid, files)
    except LtsFault as fault:
        seen, where = {}, f"not seen from here: {fault.one_line()}"
        problems: list[str] = []
    else:
        for name, found in seen.items():
            rows.setdefault(name, {"archive_id": name}).update(found)
        problems = [problem for row in rows.values() if (problem := _problem(row))]
    lifecycle = dataset.lifecycle
    told: Data = {
        "pid": pid,
        "archive_status": lifecycle.archive_status_message,
        "retrievable": lifecycle.retrievable,
        "retrieve_status": lifecycle.retrieve_status_message,
        "lts": where,
        "datablocks": list(rows.values()),
        "problems": problems,
    }
    return joined(_lines(told)), told, exits.MISMATCH if problems else 0


def _on_lts(settings: Settings, pid: str, files: bool) -> dict[str, Data]:
    """Of each datablock: its size there, and what its manifest says."""
    lts = open_lts(settings)
    lts.check_marker()
    found: dict[str, Data] = {}
    try:
        blocks = lts_read.held(lts, pid)
    except LtsFault as fault:
        if fault.retryable:
            raise
        return {}
    path = pid_path(pid)
    for name, block in sorted(blocks.items(), key=lambda one: one[1].n):
        row: Data = {"lts_bytes": lts.size_of(path, name.removeprefix(f"{path}/")), "sha256": block.sha256}
        try:
            reader = ManifestReader([lts_read.manifest(lts, pid, block)])
            listed = []
            for one in reader.files():
                if files:
                    listed.append({"path": one.path, "size": one.size, "sha256": one.sha256})
            footer = reader.footer
            row |= {"files": footer.files, "size_bytes": footer.size_bytes, "packed_bytes": footer.packed_bytes}
            if files:
                row["listed"] = listed
        except (IntegrityMismatch, LtsFault) as error:
            row["manifest"] = error.one_line()
        found[name] = row
    return found


def _problem(row: Data) -> str:
    """What does not agree about a datablock, in words."""
    name = row["archive_id"]
    if "scicat_bytes" not in row:
        return f"{name} lies on the LTS, without a record in SciCat"
    if "sha256" not in row:
        return f"{name} has a record in SciCat, and is in no bag on the LTS"
    if "manifest" in row:
        return str(row["manifest"])
    sizes = {row["scicat_bytes"], row["lts_bytes"], row["packed_bytes"]}
    if len(sizes) > 1:
        on_lts = "no such file" if row["lts_bytes"] is None else f"{row['lts_bytes']} B"
        return (
            f"{name}: {row['scicat_bytes']} B in SciCat, {on_lts} on the LTS, {row['packed_bytes']} B in its manifest"
        )
    if row["scicat_files"] != row["files"]:
        return f"{name}: {row['scicat_files']} files in SciCat, {row['files']} in its manifest"
    return ""


def _lines(told: Data) -> list[str]:
    shown = "retrievable" if told["retrievable"] else "not retrievable"
    retrieved = f", retrieval: {told['retrieve_status']}" if told["retrieve_status"] else ""
    rows = [
        f"dataset  {told['pid']}",
        f"scicat   {told['archive_status'] or '-'}, {shown}{retrieved}",
        f"lts      {told['lts']}",
    ]
    for row in told["datablocks"]:
        on_lts = f"{size(row['lts_bytes'])} on the LTS" if row.get("lts_bytes") is not None else "not seen on the LTS"
        in_scicat = f"{size(row['scicat_bytes'])} in SciCat" if "scicat_bytes" in row else "no record in SciCat"
        holds = f", {row['files']} files of {size(row['size_bytes'])}" if "size_bytes" in row else ""
        rows.append(f"  {row['archive_id']}  {in_scicat}, {on_lts}{holds}")
        rows += [f"    {one['sha256']}  {one['size']:>12}  {one['path']!a}" for one in row.get("listed", [])]
    return rows + [f"PROBLEM  {problem}" for problem in told["problems"]]
