"""``archiver demo``: a made-up dataset, archived on an embedded system and brought back, proved by tools that are not ours."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from activities.connection import connect
from activities.starting import job_workflow_id
from archiver import model as m
from archiver.catalogue.payloads import ARCHIVED
from archiver.errors import OwnFault, StagingFault
from archiver.settings import load
from archiver.storage.objects import Bucket
from cli import jobs, servers, status
from cli.bars import Bars
from cli.dev import DevOptions, DevSystem
from cli.proof import check_bag, check_download
from cli.sample import MIB, Sample, created, make_files, publish
from workflows.visible import size

LOOK_SECONDS = 0.15
SWEEP_SECONDS = 5.0
"""How often the sweep looks, where the demo loses the webhook: nobody wants to watch it wait for a minute."""
LOST_SECONDS = 120.0
"""A sweep that found nothing for so long does not work."""


def run_demo(
    data_dir: Path | None,
    megabytes: int,
    say: Callable[[str], None],
    scicat: tuple[str, str, str] = ("", "", ""),
    *,
    lose_webhook: bool = False,
) -> int:
    """Run it; 0 only if every part of the proof held. ``scicat``: URL, user and password of one instead of the stand-in.

    ``lose_webhook``: nobody tells the archiver of the job, and the sweep must find it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="archiver-demo-")
        if data_dir is None
        else nullcontext(str(data_dir)) as folder
    ):
        target = max(8, megabytes // 2) * MIB
        url, user, password = scicat if scicat[0] else ("", "", "")
        wanted = DevOptions(
            Path(folder) / "dev",
            scicat_url=url,
            scicat_user=user,
            scicat_password=password,
            datablock_bytes=target,
            lose_webhook=lose_webhook,
            sweep_seconds=SWEEP_SECONDS if lose_webhook else 0,
        )
        system = DevSystem(wanted, say)
        started = time.monotonic()
        system.start()
        servers.forget_callers_settings()
        try:
            info = system.info
            _row("ready", f"Temporal {info['temporal_address']} (UI {info['temporal_ui']})   S3 {info['s3_endpoint']}")
            which = "SciCat" if url else "SciCat stand-in"
            took = time.monotonic() - started
            _row("", f"{which} {info['scicat_url']}   bridge {info['bridge_url']}   {took:.1f} s")
            held = asyncio.run(_Demo(system, Path(folder), megabytes, lose_webhook=lose_webhook).run())
        finally:
            system.stop()
    _row("result", "everything held" if held else "SOMETHING DID NOT HOLD: see above")
    return 0 if held else 1


class _Demo:
    def __init__(self, system: DevSystem, folder: Path, megabytes: int, *, lose_webhook: bool = False) -> None:
        self.info: dict[str, Any] = system.info
        self.settings = load(system.config)
        self.folder = folder
        self.megabytes = megabytes
        self.lose_webhook = lose_webhook
        self.held = True

    async def run(self) -> bool:
        """Make, archive, prove, archive again, bring back."""
        sample = make_files(self.folder / f"source-{int(time.time())}", self.megabytes * MIB)
        async with httpx.AsyncClient(base_url=self.info["scicat_url"], timeout=60, trust_env=False) as scicat:
            await self._catalogue(scicat, sample)
            client = await connect(self.settings)
            job_id, seconds = await self._archive(client, scicat, sample)
            await self._prove(scicat, sample, job_id)
            rate = sample.size_bytes / seconds / 1e6
            _row("time", f"{seconds:.1f} s from the job's start to its final status, {rate:.0f} MB/s")
            before = _fingerprint(self.lts(sample))
            job_id, seconds = await self._archive(client, scicat, sample, quiet=True)
            same = before == _fingerprint(self.lts(sample))
            job = (await scicat.get(f"/api/v4/jobs/{job_id}")).json()
            self._check("again", f"same dataset once more: {job['statusMessage']} ({seconds:.1f} s)", same)
            await self._bring_back(client, scicat, sample, [])
            await self._bring_back(client, scicat, sample, [sample.files[len(sample.files) // 2][0]])
        shutil.rmtree(sample.folder, ignore_errors=True)
        return self.held

    def lts(self, sample: Sample) -> Path:
        """The dataset's directory on the LTS."""
        return Path(self.info["lts_root"]) / sample.pid

    async def _catalogue(self, scicat: httpx.AsyncClient, sample: Sample) -> None:
        await publish(sample, self.info, self.settings, scicat)
        _row(
            "dataset",
            f"{sample.pid}   {len(sample.files)} files, {size(sample.size_bytes)}, names with spaces and umlauts",
        )

    async def _archive(
        self, client: Client, scicat: httpx.AsyncClient, sample: Sample, *, quiet: bool = False
    ) -> tuple[str, float]:
        listed = [{"pid": sample.pid, "files": []}]
        job = {"type": "archive", "ownerGroup": "demo", "jobParams": {"datasetList": listed}}
        started = time.monotonic()
        job_id = str(created(await scicat.post("/api/v4/jobs", json=job))["id"])
        if self.lose_webhook and not quiet:
            way, handle = await self._swept(client, job_id)
        else:
            way, handle = await self._entered(client, job_id)
        if not quiet:
            page = f"{self.info['temporal_ui']}/namespaces/default/workflows/{quote(handle.id, safe='')}"
            _row("job", f"archive {job_id}   {way}   open: {page}")
        result = asyncio.ensure_future(jobs.finish(handle, lambda _: None))
        if not quiet:
            await self._bars(client, sample.pid, result)
        ended, problem = await result
        if ended is None or ended.status_code != "finishedSuccessful":
            self._check("job", problem or (ended.message if ended else "failed"), False)
        return job_id, time.monotonic() - started

    async def _bring_back(self, client: Client, scicat: httpx.AsyncClient, sample: Sample, files: list[str]) -> None:
        """A retrieve job, and its download script run by ``sh`` as its requester would; nothing of ours compares."""
        listed = [{"pid": sample.pid, "files": files}]
        job = {"type": "retrieve", "ownerGroup": "demo", "jobParams": {"datasetList": listed}}
        started = time.monotonic()
        job_id = str(created(await scicat.post("/api/v4/jobs", json=job))["id"])
        _, handle = await self._entered(client, job_id, retrieve=True)
        ended, problem = await jobs.finish(handle, lambda _: None)
        seconds = time.monotonic() - started
        what = f"1 file, {files[0]}" if files else f"{len(sample.files)} files"
        if ended is None or ended.status_code != "finishedSuccessful":
            self._check("retrieve", f"{what}: {problem or (ended.message if ended else 'failed')}", False)
            return
        told = (await scicat.get(f"/api/v4/jobs/{job_id}")).json()["jobResultObject"]
        folder = Path(tempfile.mkdtemp(prefix="retrieved-", dir=self.folder))
        wanted = files or [path for path, _ in sample.files]
        text, held = await asyncio.to_thread(
            check_download, told.get("downloadScript", ""), folder, sample.folder, sample.pid, wanted
        )
        self._check("retrieve", f"{what} in {seconds:.1f} s; {text}", held)
        shutil.rmtree(folder, ignore_errors=True)

    async def _entered(
        self, client: Client, job_id: str, *, retrieve: bool = False
    ) -> tuple[str, WorkflowHandle[Any, m.ArchiveJobResult]]:
        """The job's workflow, started by SciCat's webhook; where SciCat has none, the demo posts to the bridge itself."""
        own_id = job_workflow_id(job_id, retrieve=retrieve)
        handle = client.get_workflow_handle(own_id, result_type=m.ArchiveJobResult)
        try:
            await handle.describe()
            return "POST /jobs -> webhook -> bridge", handle
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
        headers = {"Authorization": f"Bearer {self.info['bridge_token']}"}
        async with httpx.AsyncClient(base_url=self.info["bridge_url"], timeout=60, trust_env=False) as bridge:
            created(
                await bridge.post(
                    "/api/v1/jobs", json={"id": job_id, "type": "retrieve" if retrieve else "archive"}, headers=headers
                )
            )
        return "no webhook of this SciCat came: posted to the bridge by the demo itself", handle

    async def _swept(self, client: Client, job_id: str) -> tuple[str, WorkflowHandle[Any, m.ArchiveJobResult]]:
        """The job's workflow, once the sweep has found a job that nobody was told of."""
        _row(
            "webhook",
            f"lost on purpose: the archiver was not told of job {job_id}; its sweep looks every {SWEEP_SECONDS:.0f} s",
        )
        handle = client.get_workflow_handle(job_workflow_id(job_id), result_type=m.ArchiveJobResult)
        started = time.monotonic()
        while True:
            seconds = time.monotonic() - started
            try:
                await handle.describe()
                return f"no webhook -> found by the sweep after {seconds:.1f} s", handle
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
            if seconds > LOST_SECONDS:
                raise OwnFault(
                    "the sweep did not find a job whose webhook was lost",
                    expected=f"its workflow within {LOST_SECONDS:.0f} s",
                    found="no workflow",
                    next_step="archiver doctor, and the log of the catalogue worker",
                    retryable=False,
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def _bars(self, client: Client, pid: str, result: asyncio.Future[Any]) -> None:
        """Show the datablocks until the job ends, and once more after it."""
        while not (count := await status.datablocks_of(client, pid)):
            if result.done():
                return
            await asyncio.wait([result], timeout=LOOK_SECONDS)
        with Bars(count, _row) as bars:
            ended = False
            while not ended:
                ended = result.done()
                for n in range(1, count + 1):
                    bars.show(await status.describe_datablock(client, pid, n))
                await asyncio.wait([result], timeout=LOOK_SECONDS)

    async def _prove(self, scicat: httpx.AsyncClient, sample: Sample, job_id: str) -> None:
        dataset = (await scicat.get(f"/api/v4/datasets/{quote(sample.pid, safe='')}")).json()
        lifecycle, job = dataset["datasetlifecycle"], (await scicat.get(f"/api/v4/jobs/{job_id}")).json()
        blocks = (await scicat.get(f"/api/v3/datasets/{quote(sample.pid, safe='')}/datablocks")).json()
        held = (
            lifecycle["archiveStatusMessage"] == ARCHIVED and lifecycle["retrievable"] and not lifecycle["archivable"]
        )
        held = held and job["statusCode"] == "finishedSuccessful"
        held = held and dataset["numberOfFilesArchived"] == len(sample.files) and len(blocks) > 0
        text = f"{len(blocks)} datablocks registered, {lifecycle['archiveStatusMessage']}, job {job['statusCode']}"
        self._check("scicat", text, held)
        for text, held in await asyncio.to_thread(check_bag, self.lts(sample), sample.folder, self.folder):
            self._check("proof", text, held)
        staged = list(Bucket(self.settings.staging.bucket, self.settings.s3, StagingFault).list(""))
        self._check("", f"left in staging: {len(staged)} objects", not staged)

    def _check(self, label: str, text: str, held: bool) -> None:
        _row(label, text if held else f"{text}   DOES NOT HOLD")
        self.held = self.held and held


def _fingerprint(folder: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    )


def _row(label: str, text: str) -> None:
    print(f" {label:<8} {text}", flush=True)
