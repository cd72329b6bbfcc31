"""``archiver archive --dry-run``: what would become of datasets: their plans, made as the real ones are, and thrown away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from archiver.catalogue import payloads
from archiver.catalogue.admission import NOT_YET, is_foreign
from archiver.catalogue.client import SciCat
from archiver.catalogue.records import Dataset
from archiver.datablock.files import CatalogueFile, path_key
from archiver.datablock.plan import Plan, make_plan
from archiver.errors import ArchiverError, ContentError, LtsFault
from archiver.progress import SILENT
from archiver.settings import Settings
from archiver.storage.landing import open_landing
from archiver.storage.open import open_lts
from archiver.text import name
from cli import exits
from cli.pid_list import Say
from workflows.visible import size

Data = dict[str, Any]


async def dry_run(settings: Settings, pids: list[str], say: Say) -> tuple[list[str], Data, int]:
    """As lines, as data, and the exit code that the job would end with. Changes nothing, starts nothing.

    Raises ``CatalogueFault`` where SciCat does not answer.
    """
    rows: list[Data] = []
    async with SciCat(settings.scicat) as scicat:
        for number, pid in enumerate(pids, 1):
            say(f"looking at {name(pid)} ({number} of {len(pids)})")
            rows.append({"pid": pid, **await _dataset(scicat, settings, pid)})
    need = sum(row.get("size_bytes", 0) for row in rows)
    space = await asyncio.to_thread(_space, settings)
    jobs = -(-len(pids) // payloads.DATASETS_PER_JOB)
    told = {"datasets": rows, "jobs": jobs, "size_bytes": need, "lts": space}
    lines = [_line(row) for row in rows]
    lines += [f"LTS: at most {size(need)} would be added; {space}"]
    lines += [f"dry run: nothing was made; without --dry-run {jobs} job{'s' if jobs != 1 else ''} would be"]
    bad = [row for row in rows if row["outcome"] not in ("would archive", "already archived")]
    if not bad:
        return lines, told, 0
    return lines, told, exits.PARTLY if len(bad) < len(rows) else bad[0]["code"]


async def _dataset(scicat: SciCat, settings: Settings, pid: str) -> Data:
    dataset = await scicat.dataset(pid)
    if dataset is None:
        return {"outcome": "unknown", "message": "SciCat knows no such dataset", "code": exits.NOT_FOUND}
    lifecycle = dataset.lifecycle
    if is_foreign(lifecycle.storage_location, settings.archive):
        where = name(lifecycle.storage_location or "")
        return {"outcome": "refused", "message": f"belongs to another archive, {where}", "code": exits.REFUSED}
    if lifecycle.retrievable and lifecycle.archive_status_message == payloads.ARCHIVED:
        return {"outcome": "already archived", "message": "nothing would change"}
    if lifecycle.archive_status_message in NOT_YET:
        said = f"its ingest is not finished: {lifecycle.archive_status_message}"
        return {"outcome": "refused", "message": said, "code": exits.REFUSED}
    try:
        plan = await _plan(scicat, settings, dataset)
    except ArchiverError as error:
        kind = "content error" if isinstance(error, ContentError) else "could not be looked at"
        return {"outcome": kind, "message": error.one_line(), "code": exits.exit_code(error)}
    return {
        "outcome": "would archive",
        "files": plan.files,
        "size_bytes": plan.size_bytes,
        "datablocks": plan.datablocks,
        "largest_bytes": plan.largest_bytes,
    }


async def _plan(scicat: SciCat, settings: Settings, dataset: Dataset) -> Plan:
    """The dataset's plan, as the step plan-dataset makes it, of which nothing is stored."""
    listed: list[CatalogueFile] = []
    async for block in scicat.origdatablocks(dataset.pid):
        listed += block.catalogue_files(dataset.pid)
    listed.sort(key=lambda entry: path_key(entry.path))
    landing = open_landing(settings.landing, settings.s3, dataset.landing_fields)

    def thrown_away(n: int, chunks: Iterator[bytes]) -> str:
        for _ in chunks:
            pass
        return ""

    def work() -> Plan:
        return make_plan(
            listed,
            landing.list(),
            pid=dataset.pid,
            limits=settings.datablock,
            surplus=settings.landing.surplus,
            sink=thrown_away,
            progress=SILENT,
            where=landing.where,
        )

    return await asyncio.to_thread(work)


def _space(settings: Settings) -> str:
    """In words: a machine that does not see the LTS is not at fault."""
    try:
        with closing(open_lts(settings)) as lts:
            space = lts.space()
    except LtsFault as fault:
        return f"its space is not seen from here: {fault.what}"
    room = max(0, space.free - space.reserve - space.promised) if space is not None else 0
    return (
        f"{size(room)} are free beside reserve and promises"
        if space is not None
        else "its space has no end that could be told"
    )


def _line(row: Data) -> str:
    if row["outcome"] != "would archive":
        return f"{row['pid']}  {row['outcome'].upper()}  {row['message']}"
    blocks = f"{row['datablocks']} datablocks, the largest of {size(row['largest_bytes'])}"
    return f"{row['pid']}  would be archived  {row['files']} files, {size(row['size_bytes'])}, in {blocks}"
