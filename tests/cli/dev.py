"""An ``archiver dev`` as another process, and people who use it with plain HTTP and S3."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import httpx
import psutil
from botocore.config import Config

from tests.cli.running import archiver, command, environment
from tests.spawn import spawn

START_SECONDS = 300


class Dev:
    """``archiver dev`` with its directory. ``start``, then ``end``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.process: subprocess.Popen[str] | None = None

    def launch(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Begin to start it."""
        with (self.folder / "said.txt").open("a") as said:
            self.process = spawn(
                command("dev", "--data-dir", self.data, *arguments),
                cwd=self.folder,
                env=environment(**more),
                stdout=said,
                stderr=said,
                text=True,
            )
        return self.process

    def start(self, *arguments: str, **more: str) -> Dev:
        """Until dev.json is there."""
        process = self.launch(*arguments, **more)
        until = time.monotonic() + START_SECONDS
        while not (self.data / "dev.json").exists():
            assert process.poll() is None, self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.05)
        return self

    def said(self) -> str:
        """What it said, on either output."""
        return (self.folder / "said.txt").read_text()

    @property
    def info(self) -> dict[str, Any]:
        """dev.json."""
        data: dict[str, Any] = json.loads((self.data / "dev.json").read_text())
        return data

    def running(self) -> list[psutil.Process]:
        """Its children."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()

    def children(self) -> dict[str, psutil.Process]:
        """Its running children by a word of their command line."""
        words = {
            "temporal": "start-dev",
            "s3": "posix",
            "scicat": "SciCat stand-in",
            "pack": "worker workflows,catalogue,pack",
            "lts": "worker lts",
            "bridge": "bridge",
        }
        running = self.running()
        found = {}
        for name, word in words.items():
            found[name] = next(child for child in running if word in child.cmdline())
        return found

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal, if it runs; returns the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(60)

    def archiver(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """``archiver -c DATA_DIR/archiver.toml ARGUMENTS``."""
        flags = [argument for argument in arguments if argument == "--json"]
        rest = [argument for argument in arguments if argument != "--json"]
        return archiver(*flags, "-c", self.data / "archiver.toml", *rest, cwd=self.folder, **more)

    # --- as a user ------------------------------------------------------------------------------------------------------

    def scicat(self) -> httpx.Client:
        """Plain HTTP, logged in."""
        info = self.info
        account = {"username": info["scicat_user"], "password": info["scicat_password"]}
        login = httpx.post(f"{info['scicat_url']}/api/v3/auth/login", json=account, timeout=60, trust_env=False)
        headers = {"Authorization": f"Bearer {login.raise_for_status().json()['access_token']}"}
        # Connections are left before the server, which closes idle ones after 5 s, does.
        patience = httpx.Limits(keepalive_expiry=2)
        return httpx.Client(base_url=info["scicat_url"], headers=headers, timeout=60, trust_env=False, limits=patience)

    def logs_in(self) -> bool:
        """Whether SciCat answers."""
        try:
            self.scicat().close()
        except httpx.HTTPError:
            return False
        return True

    def dataset(self, files: dict[str, bytes], *, listed: dict[str, int] | None = None) -> str:
        """A dataset with these files in the landing zone; ``listed``: what the catalogue says of them instead."""
        info = self.info
        s3 = boto3.session.Session().client(
            "s3",
            endpoint_url=info["s3_endpoint"],
            aws_access_key_id=info["s3_access_key"],
            aws_secret_access_key=info["s3_secret_key"],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        with self.scicat() as scicat:
            record = {
                "type": "raw",
                "ownerGroup": "g1",
                "owner": "A Person",
                "contactEmail": "person@example.org",
                "sourceFolder": "/data",
                "creationTime": "2026-01-01T12:00:00.000Z",
                "creationLocation": "here",
                "principalInvestigator": "A Person",
                "datasetName": "test",
            }
            pid = str(scicat.post("/api/v3/datasets", json=record).raise_for_status().json()["pid"])
            for path, data in files.items():
                s3.put_object(Bucket=info["buckets"]["landing"], Key=f"{pid}/{path}", Body=data)
            sizes = {path: len(data) for path, data in files.items()} if listed is None else listed
            listing = [{"path": path, "size": size, "time": "2026-01-01T00:00:00.000Z"} for path, size in sizes.items()]
            block = {"datasetId": pid, "size": sum(sizes.values()), "dataFileList": listing}
            scicat.post("/api/v3/origdatablocks", json=block).raise_for_status()
        return pid

    def lifecycle(self, pid: str) -> dict[str, Any]:
        """What SciCat says of the dataset."""
        with self.scicat() as scicat:
            record = scicat.get(f"/api/v4/datasets/{quote(pid, safe='')}").raise_for_status().json()
        lifecycle: dict[str, Any] = record["datasetlifecycle"]
        return lifecycle
