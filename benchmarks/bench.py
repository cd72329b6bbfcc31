"""One bench for all parts: datasets, jobs through Temporal, meters, and the two references on the same servers and disk."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from temporalio.client import Client

from activities.connection import connect
from archiver.errors import TargetFault
from archiver.settings import Settings, load
from archiver.storage.objects import Bucket
from benchmarks import machine
from benchmarks.measure import Cost, Meter, Served, run_command
from benchmarks.system import System
from benchmarks.workloads import Facility, Workload
from cli import devdir, jobs
from cli.programs import ROOT
from cli.servers import clean_environment

B_NEEDS = ("rclone", "tar", "igzip", "openssl")
TINY = Workload("one tiny dataset", 3, 1024, "random")


class Bench:
    """A running system with a facility that fills it."""

    def __init__(
        self, system: System, facility: Facility, client: Client, settings: Settings, say: Callable[[str], None]
    ) -> None:
        self.system = system
        self.facility = facility
        self.client = client
        self.say = say
        self.settings = settings
        self.retrieval = Bucket(settings.retrieval.bucket, settings.s3, TargetFault)
        self.servers = {name: child.pid for name, child in system.servers.items()}
        self.b_lacks = machine.missing(B_NEEDS)
        info = system.info
        self._environment = {
            "AWS_ACCESS_KEY_ID": info["s3_access_key"],
            "AWS_SECRET_ACCESS_KEY": info["s3_secret_key"],
            "AWS_ENDPOINT_URL": info["s3_endpoint"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_S3_TYPE": "s3",
            "RCLONE_CONFIG_S3_PROVIDER": "Other",
            "RCLONE_CONFIG_S3_ENDPOINT": info["s3_endpoint"],
            "RCLONE_CONFIG_S3_ACCESS_KEY_ID": info["s3_access_key"],
            "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": info["s3_secret_key"],
        }

    @classmethod
    async def start(cls, system: System, say: Callable[[str], None]) -> Bench:
        """On a system whose servers run."""
        settings, info = load(system.folder / devdir.CONFIG), system.info
        facility = Facility(
            settings.s3, info["buckets"]["landing"], info["scicat_url"], info["scicat_user"], info["scicat_password"]
        )
        await facility.log_in()
        return cls(system, facility, await connect(settings), settings, say)

    async def dataset(self, workload: Workload) -> str:
        """A new dataset with its files; returns its pid."""
        await self.facility.log_in()
        pid = await self.facility.dataset(workload)
        self.facility.upload(pid, workload)
        return pid

    async def one_file_many_times(self, workload: Workload) -> str:
        """A new dataset of which all files have the same bytes, on the disk once: the S3 server keeps objects as files."""
        await self.facility.log_in()
        pid = await self.facility.dataset(workload)
        self.facility.upload(pid, replace(workload, files=1))
        folder = self.objects("landing") / pid
        first, *others = workload.paths()
        for path in others:
            (folder / path).hardlink_to(folder / first)
        return pid

    def objects(self, bucket: str) -> Path:
        """Where the S3 server keeps the objects of this bucket."""
        return self.system.folder / "s3" / str(self.system.info["buckets"][bucket])

    async def warm_up(self) -> None:
        """A worker serves for weeks: what it does once is not measured."""
        await self.archive([await self.dataset(TINY)])

    async def archive(self, pids: list[str]) -> Cost:
        """A job over ``pids``, from its start to its final status in SciCat. Raises ``RuntimeError`` if it went wrong."""
        job_id = await self.facility.job(pids)
        with Meter([child.pid for child in self.system.workers], self.servers) as meter:
            handle = await jobs.start(self.client, job_id, None)
            result = await handle.result()
        status = await self.facility.status(job_id)
        if status != "finishedSuccessful":
            raise RuntimeError(f"job {job_id} ended {status}: {result.message}")
        return meter.cost

    async def retrieve(self, pid: str) -> Cost:
        """A retrieve job for all of ``pid``, from its submission to its final status in SciCat. Raises ``RuntimeError``."""
        with Meter([child.pid for child in self.system.workers], self.servers) as meter:
            job_id = await self.facility.job([pid], "retrieve")
            handle = await jobs.start(self.client, job_id, None, retrieve=True)
            result = await handle.result()
        status = await self.facility.status(job_id)
        if status != "finishedSuccessful":
            raise RuntimeError(f"job {job_id} ended {status}: {result.message}")
        return meter.cost

    def reading(self) -> Served:
        """The process that reads the LTS, with one slot, apart from the workers'."""
        tables = {"worker": {"lock_dir": str(self.system.folder / "reading-locks")}, "slots": {"lts_read": 1}}
        config = self.system.write_settings("reading.toml", tables)
        return self._served("benchmarks.reading", [str(config)], {})

    def reference_back(self) -> Served:
        """Reference A's way back."""
        return self._served("benchmarks.reference_back", [], self._environment)

    def _served(self, module: str, arguments: list[str], environment: dict[str, str]) -> Served:
        log = self.system.folder / "logs" / f"{module}.log"
        clean = clean_environment(**environment, PYTHONPATH=str(ROOT), TMPDIR=str(self.system.temporary))
        return Served([sys.executable, "-m", module, *arguments], clean, log, self.servers)

    def forget(self, pid: str, *, archived: bool = True) -> None:
        """Free the disk."""
        self.facility.remove(pid)
        if archived:
            shutil.rmtree(self.system.lts / pid)

    def reference_a(self, pid: str) -> Cost:
        """The many-pass way over the files of ``pid``."""
        bucket = self.system.info["buckets"]["landing"]
        return self._reference([sys.executable, "-m", "benchmarks.reference_a", bucket, f"{pid}/"])

    def reference_b(self, pid: str) -> Cost | None:
        """The careful admin's way, or None where a program is missing."""
        if self.b_lacks:
            return None
        bucket = self.system.info["buckets"]["landing"]
        return self._reference([str(ROOT / "benchmarks" / "reference_b.sh"), f"{bucket}/{pid}"])

    def _reference(self, command: list[str]) -> Cost:
        scratch, lts = self.system.folder / "scratch", self.system.folder / "reference-lts"
        scratch.mkdir()
        lts.mkdir()
        try:
            environment = {**self._environment, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
            return run_command([*command, str(scratch), str(lts)], environment, self.servers)
        finally:
            shutil.rmtree(scratch)
            shutil.rmtree(lts)


def on_path(path: Path) -> str:
    """A path as the shell needs it."""
    return os.fspath(path)
