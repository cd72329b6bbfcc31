"""What storage is tested on: two S3 servers, and small real file systems on loop devices."""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archiver.errors import StagingFault
from archiver.settings import LtsSettings, S3Settings
from archiver.storage.lts_directory import FileSystemLts
from archiver.storage.objects import Bucket
from tests.needs import run

SHUTDOWN = 0x8004587D
"""``FS_IOC_SHUTDOWN``; with flag 2 nothing more reaches the disk, not even the journal: a power cut."""


@pytest.fixture(params=["versitygw", "moto"])
def server(request: pytest.FixtureRequest) -> S3Settings:
    """Each of the S3 servers in turn."""
    found: S3Settings = request.getfixturevalue({"versitygw": "s3", "moto": "moto"}[request.param])
    return found


def new_bucket(s3: S3Settings) -> Bucket:
    """An empty bucket of its own."""
    bucket = Bucket(f"test-{secrets.token_hex(6)}", s3, StagingFault)
    bucket.ensure()
    return bucket


@pytest.fixture
def bucket(server: S3Settings) -> Bucket:
    """An empty bucket on each server."""
    return new_bucket(server)


class Disk:
    """An ext4 file system in an image file, mounted."""

    def __init__(self, image: Path, folder: Path, size: int, *options: str) -> None:
        self.image, self.folder = image, folder
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        run("mkfs.ext4", "-q", "-m", "0", *options, str(image))
        self.mount()

    def mount(self, *options: str) -> None:
        """Mount it (again)."""
        run("mount", "-o", ",".join(("loop", *options)), str(self.image), str(self.folder))

    def unmount(self) -> None:
        """Take it away; an empty directory stays."""
        run("umount", str(self.folder))

    def shut_down(self) -> None:
        """From now on nothing reaches the disk, not even what the journal holds: the instant when power goes."""
        root = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(root, SHUTDOWN, struct.pack("I", 2))
        finally:
            os.close(root)

    def remount(self) -> None:
        """Power is back."""
        self.unmount()
        self.mount()

    def cut_power(self) -> None:
        """Off and on."""
        self.shut_down()
        self.remount()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """Makes small disks; they are gone after the test."""
    made: list[Disk] = []

    def make(mib: int = 32) -> Disk:
        made.append(Disk(tmp_path / f"image{len(made)}", tmp_path / f"disk{len(made)}", mib * 2**20))
        return made[-1]

    yield make
    for one in made:
        subprocess.run(["umount", "-l", str(one.folder)], capture_output=True)


def new_lts(root: Path, **settings: object) -> FileSystemLts:
    """An LTS set up in ``root``, which keeps nothing free unless told so."""
    given = {"root": root, "reserve": "0B", "space_poll_seconds": 0.05, **settings}
    lts = FileSystemLts(LtsSettings.model_validate(given))
    lts.setup()
    return lts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of an LTS in a directory."""
    path = tmp_path / "lts"
    path.mkdir()
    return path


@pytest.fixture
def lts(root: Path) -> FileSystemLts:
    """An LTS in a directory."""
    return new_lts(root)
