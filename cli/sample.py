"""Datasets made up to try things out: for ``archiver demo`` and ``archiver dev sample``. Mixed sizes, difficult names."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.errors import OwnFault, Refused
from cli.devdir import CONFIG, DEV_JSON

if TYPE_CHECKING:
    import httpx

    from archiver.settings import Settings

MIB = 2**20
SMALL_FILES = 300
FILES_PER_BLOCK = 150
TIME = "2026-01-01T12:00:00.000Z"
NAMES = (
    "\u00dcbersicht der Messung.txt",
    "Ubersicht\u0308 zerlegt.txt",
    'notes/it\'s "done".txt',
    "notes/two\nlines.txt",
)
HOSTILE_NAMES = (
    "-rf",
    "--checkpoint-action=exec=sh",
    " begins and ends with a blank ",
    "tab\there.txt",
    "back\\slash.txt",
    "percent %2F %00.txt",
    "question? hash# star*.txt",
    "$(touch pwned) `touch pwned`.txt",
    "\u202etxt.exe",
    "emoji \U0001f52c.txt",
    "...",
    "CON.txt",
    "n" * 251 + ".txt",
    "/".join("deep" for _ in range(60)) + "/file.txt",
    "A.txt",
    "a.txt",
    "folder.txt/not a folder.txt",
)
"""Names that files really have, and that programs stumble over."""


@dataclass
class Sample:
    """The made-up dataset: its files below ``folder`` with their sizes; ``pid`` is what SciCat gave it."""

    folder: Path
    pid: str = ""
    files: list[tuple[str, int]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(size_bytes for _, size_bytes in self.files)


def make_files(folder: Path, size_bytes: int, *, files: int = SMALL_FILES, hostile: bool = False) -> Sample:
    """About so many bytes below ``folder``: one large file, ten middle, so many small. Some compress, some do not."""
    rng = random.Random(size_bytes)  # noqa: S311  no secret
    sample = Sample(folder)
    tile = rng.randbytes(4096) + bytes(4096 * 7)
    large = size_bytes * 6 // 10
    small = max(200, min(60_000, size_bytes // (10 * files))) if files else 0
    wanted: list[tuple[str, int, bool]] = [("raw/scan_0001.h5", large, True)]
    wanted += [(f"raw/scan_{k:04}.h5", large // 20, k % 2 == 0) for k in range(2, 12)]
    wanted += [(f"frames/frame {k:04}.tif", rng.randrange(100, small + 101), False) for k in range(files)]
    wanted += [(name, 1234, True) for name in (*NAMES, *(HOSTILE_NAMES if hostile else ()))]
    wanted += [("empty.log", 0, True)]
    for path, count, compresses in wanted:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for start in range(0, count, MIB):
                piece = min(MIB, count - start)
                file.write((tile * (piece // len(tile) + 1))[:piece] if compresses else rng.randbytes(piece))
        sample.files.append((path, count))
    return sample


async def publish(sample: Sample, info: dict[str, Any], settings: Settings, scicat: httpx.AsyncClient) -> None:
    """Put the files into the landing zone of an ``archiver dev`` (``info``: its dev.json) and the dataset into its SciCat.

    Logs in first; ``sample.pid`` is set. Raises ``OwnFault``.
    """
    import boto3
    from botocore.config import Config

    account = {"username": info["scicat_user"], "password": info["scicat_password"]}
    answer = await scicat.post("/api/v3/auth/login", json=account)
    scicat.headers["Authorization"] = f"Bearer {created(answer)['access_token']}"
    record = {
        "type": "raw",
        "ownerGroup": "demo",
        "owner": "A Person",
        "contactEmail": "person@example.org",
        "sourceFolder": "/demo",
        "creationTime": TIME,
        "creationLocation": "here",
        "principalInvestigator": "A Person",
        "datasetName": "archiver demo",
    }
    sample.pid = created(await scicat.post("/api/v3/datasets", json=record))["pid"]
    s3 = settings.s3
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=str(s3.endpoint),
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key.get_secret_value() if s3.secret_key else None,
        region_name=s3.region,
        config=Config(s3={"addressing_style": "path"}),
    )

    def upload(path: str) -> None:
        client.upload_file(str(sample.folder / path), info["buckets"]["landing"], f"{sample.pid}/{path}")

    def upload_all() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(upload, (path for path, _ in sample.files)))

    await asyncio.to_thread(upload_all)
    for part in _batched(sample.files, FILES_PER_BLOCK):
        listed = [
            {"path": path, "size": count, "time": TIME, "chk": sha256(sample.folder / path)} for path, count in part
        ]
        block = {
            "datasetId": sample.pid,
            "size": sum(count for _, count in part),
            "chkAlg": "sha256",
            "dataFileList": listed,
        }
        created(await scicat.post("/api/v3/origdatablocks", json=block))


def make_sample(data_dir: Path, size_bytes: int, *, files: int, hostile: bool, say: Callable[[str], None]) -> Sample:
    """Make a dataset to play with in the ``archiver dev`` that runs on ``data_dir``. Raises ``Refused`` if none does."""
    import httpx

    from archiver.settings import load

    try:
        info = json.loads((data_dir / DEV_JSON).read_text())
    except (OSError, ValueError):
        raise Refused(
            f"no archiver dev runs in {data_dir}",
            expected=f"its {DEV_JSON}, which is there while it is ready",
            found="none",
            next_step="archiver dev  in another terminal, or --data-dir of the one that runs",
        ) from None
    folder = Path(tempfile.mkdtemp(prefix="sample-", dir=data_dir))

    async def run(sample: Sample) -> None:
        async with httpx.AsyncClient(base_url=info["scicat_url"], timeout=60, trust_env=False) as scicat:
            await publish(sample, info, load(data_dir / CONFIG), scicat)

    try:
        say("making files")
        sample = make_files(folder, size_bytes, files=files, hostile=hostile)
        say(f"putting {len(sample.files)} files into the landing zone, and the dataset into SciCat")
        asyncio.run(run(sample))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return sample


def created(answer: httpx.Response) -> dict[str, Any]:
    """The body of a 201. Raises ``OwnFault`` for any other answer."""
    if answer.status_code != 201:
        raise OwnFault(
            "SciCat or the bridge did not take what was made up",
            expected="201",
            found=f"{answer.status_code} {answer.text[:200]}",
        )
    data: dict[str, Any] = answer.json()
    return data


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _batched(items: list[tuple[str, int]], count: int) -> Iterator[list[tuple[str, int]]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]
