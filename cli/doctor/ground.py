"""What the checks of one run share: settings, the run's own name, and the connections that a first check made."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from temporalio.api.workflowservice.v1 import DescribeNamespaceResponse
from temporalio.client import Client

from archiver.catalogue.session import Session
from archiver.errors import SourceFault, StagingFault
from archiver.settings import Settings
from archiver.storage.objects import Bucket

OWN = ".archiver-doctor/"
"""Prefix of all that is put into buckets."""
DEAD_SECONDS = 600.0
"""What another machine's run left is removed when it is older; one of this machine's, when its process is gone."""


@dataclass
class Clock:
    """A server's Date header, and when it was asked for and received by this machine's clock."""

    date: datetime
    asked: datetime
    received: datetime


@dataclass
class Ground:
    """One run."""

    settings: Settings
    dataset: str | None = None
    deep: bool = False
    run: str = field(default_factory=lambda: f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}")
    client: Client | None = None
    namespace: DescribeNamespaceResponse | None = None
    session: Session | None = None
    groups: frozenset[str] = frozenset()
    """Of our account in SciCat."""
    reads_all: bool = False
    """Our account was seen to read the origdatablocks of a group that is not its own: SciCat lets only admins do so."""
    s3_knows_us: bool = False
    clocks: dict[str, Clock] = field(default_factory=dict)
    bins: dict[str, Bucket] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long one check may take."""
        return self.settings.doctor.check_seconds

    @property
    def scratch(self) -> Path:
        """The run's own directory on the LTS."""
        return self.settings.lts.root / ".archiver" / "doctor" / self.run

    def bucket(self, which: str) -> Bucket:
        """``staging``, ``retrieval`` or ``landing``: the same client for all checks, and an impatient one."""
        if which not in self.bins:
            settings = self.settings
            seconds = self.seconds / 2
            if which == "landing":
                s3 = settings.landing.s3 or settings.s3
                self.bins[which] = Bucket(self.landing_bucket, s3, SourceFault, seconds=seconds)
            else:
                name = settings.staging.bucket if which == "staging" else settings.retrieval.bucket
                self.bins[which] = Bucket(name, settings.s3, StagingFault, seconds=seconds)
        return self.bins[which]

    @property
    def landing_bucket(self) -> str:
        """Name of the landing zone's bucket; empty where it is a directory."""
        template = self.settings.landing.url_template
        return "" if template.startswith("file://") else template.removeprefix("s3://").split("/")[0]

    def own(self, which: str) -> str:
        """Where in a bucket runs of the doctor put things; ends with a slash."""
        return (self.settings.staging.prefix if which == "staging" else "") + OWN

    def gone(self, name: str, age_seconds: float) -> bool:
        """Whether what lies under the name of a run was left by one that is gone."""
        run = name.split("/")[0]
        if run == self.run:
            return False
        host, _, rest = run.rpartition(".")[0].rpartition(".")
        ended = host == socket.gethostname() and rest.isdecimal() and not Path(f"/proc/{rest}").exists()
        return ended or age_seconds > DEAD_SECONDS

    async def close(self) -> None:
        """The connections to SciCat."""
        if self.session is not None:
            await self.session.close()

    def sweep_scratch(self) -> None:
        """Remove the run's directory on the LTS. In a thread: a mount may hang."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.scratch)
        with contextlib.suppress(OSError):
            self.scratch.parent.rmdir()


def now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


Say = Callable[[str], None]
