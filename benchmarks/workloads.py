"""The data of the benchmark: deterministic, made file by file, put into the landing zone and into SciCat as users do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import httpx

from archiver.errors import SourceFault
from archiver.settings import S3Settings
from archiver.storage.objects import Bucket

KIB, MIB, GIB = 2**10, 2**20, 2**30
TILE_COUNTS = 8 * MIB
FILES_PER_BLOCK = 1000
TIME = "2026-01-01T12:00:00.000Z"


@dataclass(frozen=True)
class Workload:
    """``files`` files of ``size`` bytes. ``kind``: ``detector`` (sparse 16-bit counts) or ``random``."""

    name: str
    files: int
    size: int
    kind: str

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return self.files * self.size

    def paths(self) -> list[str]:
        """The files' paths, in the order of their bytes."""
        return [f"raw/run_{k // 1000:04}/frame_{k:06}.bin" for k in range(self.files)]

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Path and bytes of each file; the same every time."""
        for k, path in enumerate(self.paths()):
            yield path, content(self.kind, self.size, k)

    def smaller(self, by: int) -> Workload:
        """The same kind with fewer bytes, for trying out."""
        if self.files > 100:
            return replace(self, name=self.name.replace("5,000", str(self.files // by)), files=self.files // by)
        return replace(self, name=self.name.replace("256", str(self.size // by // MIB)), size=self.size // by)


DETECTOR = Workload("4 x 256 MiB detector counts", 4, 256 * MIB, "detector")
RANDOM = Workload("4 x 256 MiB random", 4, 256 * MIB, "random")
SMALL_FILES = Workload("5,000 x 10 KiB random", 5000, 10 * KIB, "random")


def content(kind: str, size: int, k: int) -> bytes:
    """The bytes of file ``k``."""
    if kind == "random":
        made = random.Random(k)
        return b"".join(made.randbytes(min(16 * MIB, size - start)) for start in range(0, size, 16 * MIB))
    tile = _counts()
    start = k * 1_000_003 * 2 % len(tile)
    piece = tile[start : start + size]
    while len(piece) < size:
        piece += tile[: size - len(piece)]
    return piece


@cache
def _counts() -> bytes:
    """16 MiB of photon counts, Poisson with a mean of 0.12 and a few bright pixels; gzip -1 makes a tenth of it."""
    values = range(9)
    weights = [0.88692, 0.10643, 0.00639, 0.00026, 0.00001, 0.00001, 0.00001, 0.00001, 0.00001]
    drawn = random.Random(16).choices(values, weights, k=TILE_COUNTS)
    counts = bytearray(2 * TILE_COUNTS)
    counts[::2] = bytes(drawn)
    return bytes(counts)


class Facility:
    """What a facility does before it asks for an archive: files into the landing zone, records into SciCat."""

    def __init__(self, s3: S3Settings, landing: str, scicat_url: str, user: str, password: str) -> None:
        self._bucket = Bucket(landing, s3, SourceFault)
        # Connections are left before the server, which closes idle ones after 5 s, does.
        patience = httpx.Limits(keepalive_expiry=2)
        self.http = httpx.AsyncClient(base_url=scicat_url, timeout=60, trust_env=False, limits=patience)
        self._account = {"username": user, "password": password}

    async def log_in(self) -> None:
        """A token for ``http``; again before it expires."""
        answer = await self.http.post("/api/v3/auth/login", json=self._account)
        self.http.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access_token']}"

    async def dataset(self, workload: Workload) -> str:
        """A dataset of this workload; returns its pid. The catalogue gives no checksums, as most do."""
        record = {
            "type": "raw",
            "ownerGroup": "bench",
            "owner": "A Person",
            "contactEmail": "person@example.org",
            "sourceFolder": "/bench",
            "creationTime": TIME,
            "creationLocation": "here",
            "principalInvestigator": "A Person",
            "datasetName": workload.name,
        }
        pid = str((await self.http.post("/api/v3/datasets", json=record)).raise_for_status().json()["pid"])
        paths = workload.paths()
        for start in range(0, len(paths), FILES_PER_BLOCK):
            part = [{"path": path, "size": workload.size, "time": TIME} for path in paths[start : start + 1000]]
            block = {"datasetId": pid, "size": workload.size * len(part), "dataFileList": part}
            (await self.http.post("/api/v3/origdatablocks", json=block)).raise_for_status()
        return pid

    def upload(self, pid: str, workload: Workload) -> None:
        """Its files into the landing zone."""
        if workload.size >= 16 * MIB:
            for path, data in workload.contents():
                self._bucket.put(f"{pid}/{path}", data)
            return
        with ThreadPoolExecutor(16) as pool:
            todo = [pool.submit(self._bucket.put, f"{pid}/{path}", data) for path, data in workload.contents()]
            for done in todo:
                done.result()

    def remove(self, pid: str) -> None:
        """Its files out of the landing zone."""
        self._bucket.delete(entry.key for entry in list(self._bucket.list(f"{pid}/")))

    async def job(self, pids: list[str], kind: str = "archive") -> str:
        """Submit a job of this type; returns its id."""
        listed = [{"pid": pid, "files": []} for pid in pids]
        job = {"type": kind, "ownerGroup": "bench", "jobParams": {"datasetList": listed}}
        return str((await self.http.post("/api/v4/jobs", json=job)).raise_for_status().json()["id"])

    async def status(self, job_id: str) -> str:
        """The job's statusCode."""
        return str((await self.http.get(f"/api/v4/jobs/{job_id}")).raise_for_status().json()["statusCode"])
