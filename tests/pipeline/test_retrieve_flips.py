"""A flipped bit anywhere in an archived dataset is found, and not one byte that is not the dataset's is delivered."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.groups import parse_queues
from activities.queues import Service
from archiver import model as m
from archiver.retrieval import wire as w
from archiver.retrieval.keys import RetrievalKeys, selection_of
from archiver.settings import S3Settings
from tests.counts import often
from tests.pipeline.moments import noise
from tests.pipeline.retrieving import assert_not_retrieved, fetched_of_all, retrieve, still_archived
from tests.pipeline.system import System

SEED = int(os.environ.get("FLIPS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
"""Another at each run, and told by a test that fails: ``FLIPS_SEED=... make test``."""
FLIPS = often(200)
FILES = {
    "a.txt": b"text " * 5_000,
    "empty": b"",
    "raw/b.bin": noise(700_000, 1),
    "raw/c.bin": noise(300_000, 2),
    "zeros": bytes(200_000),
}
FEW = ("a.txt", "raw/c.bin")
FOUND = ("IntegrityMismatch", "LtsFault")
TAGS = "tagmanifest-sha256.txt"
SAID = (b"bagit.txt", b"bag-info.txt", b"dataset.json", b"manifest-sha256.txt")
"""Of which a bag says the digests there."""
SELF_DESCRIPTION = {"bagit.txt", "bag-info.txt", "dataset.json", "events.jsonl", TAGS}
"""What a bag says beside its payload: a retrieval compares of it only what the payload's list is checked by."""


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """Small datablocks of many members."""
    overrides: dict[str, Mapping[str, Any]] = {
        "datablock": {"target_bytes": 2**20, "member_bytes": 2**16},
        "retrieval": {"roots": [str(tmp_path_factory.mktemp("shared"))]},
    }
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, overrides)
    try:
        yield await made.start()
    finally:
        await made.stop()


@contextmanager
def flipped(path: Path, at: int, bit: int) -> Iterator[None]:
    """One bit of the file is another while the context lasts."""
    path.chmod(0o644)
    with path.open("r+b") as file:

        def flip() -> None:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ bit]))
            file.flush()

        flip()
        try:
            yield
        finally:
            flip()


class Retrieval:
    """The steps that read the LTS and deliver, without a workflow: ``plan-retrieve``, and ``retrieve-datablock`` of each."""

    def __init__(self, system: System, service: Service, pid: str, bucket: Path) -> None:
        self.system = system
        self.pid = pid
        self._bucket = bucket
        steps = [one for queue in service.activity_queues for one in queue.activities]
        self._steps: dict[str, Callable[..., Any]] = {
            str(activity._Definition.must_from_callable(one).name): one for one in steps
        }

    def selection(self, kind: w.Kind, few: tuple[str, ...] = ()) -> w.Selection:
        """What is wanted, with what ``begin-retrieve-dataset`` stores of it."""
        (root,) = self.system.settings.retrieval.roots
        to = w.Destination(kind=kind, root=str(root), path="mine") if kind == "directory" else w.Destination(kind=kind)
        made = w.Selection(pid=self.pid, selection=selection_of(to, few), job_id="1", destination=to)
        keys = RetrievalKeys(self.system.settings.staging.prefix, self.pid, made.selection)
        records = {block["archiveId"]: block["packedSize"] for block in self.system.datablocks(self.pid)}
        stored = {"records": self._put(keys, json.dumps(records).encode())}
        if few:
            stored["wanted"] = self._put(keys, gzip.compress(json.dumps(few).encode()))
        return made.model_copy(update=stored)

    def _put(self, keys: RetrievalKeys, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.system.boto.put_object(Bucket=self.system.staging_bucket, Key=keys.staged(sha256), Body=data)
        return sha256

    async def run(self, selection: w.Selection) -> str:
        """Into an empty target; the type of the error that ended it for good and names the dataset; or nothing."""
        shutil.rmtree(self.folder(selection), ignore_errors=True)
        try:
            plan = await self._run("plan-retrieve", selection)
            for n in plan.datablocks:
                fields = {"n": n, "of": 2, "largest_bytes": plan.largest_bytes}
                request = w.RetrieveDatablockRequest(**selection.model_dump(), **fields)
                await self._run("retrieve-datablock", request)
        except ApplicationError as error:
            return str(error.type) if error.non_retryable and self.pid in error.message else repr(error)
        return ""

    async def _run(self, step: str, request: w.Selection) -> Any:
        return ActivityEnvironment().run(self._steps[step], request)

    def folder(self, selection: w.Selection) -> Path:
        """Where the target keeps the dataset: also a bucket's objects are files here."""
        to = selection.destination
        return (Path(to.root) / to.path if to.root else self._bucket) / self.pid

    def there(self, selection: w.Selection) -> dict[str, bytes]:
        """What was delivered, temporary files too."""
        folder = self.folder(selection)
        found = {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
        return {name: data for name, data in found.items() if not name.startswith(".scicat-archiver/")}


def places(bag: Path, rng: random.Random) -> Iterator[tuple[Path, int, int]]:
    """Half of them anywhere in the dataset's bytes; half in each of its files alike, often at its beginning or end."""
    files = sorted(path for path in bag.rglob("*") if path.is_file())
    for n in range(FLIPS):
        if n % 2:
            (path,) = rng.choices(files, [one.stat().st_size for one in files])
            at = rng.randrange(path.stat().st_size)
        else:
            path = rng.choice(files)
            size = path.stat().st_size
            at = rng.choice(
                [rng.randrange(size), rng.randrange(min(size, 64)), size - 1 - rng.randrange(min(size, 64))]
            )
        yield path, at, 1 << rng.randrange(8)


async def test_p2_many_flipped_bits_are_found_and_none_is_delivered(system: System, s3_folder: Path) -> None:
    async with system.workers():
        pid = await system.dataset(FILES)
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
    bag = system.lts / pid
    blocks = {path.name: path.read_bytes() for path in bag.glob("data/*.tar.gz")}
    assert blocks.keys() == {"1.tar.gz", "2.tar.gz"}
    intact, tags = {**FILES, **blocks}, (bag / TAGS).read_bytes()
    async with Service(system.settings, parse_queues("lts-bag,lts-read")) as service:
        retrieval = Retrieval(system, service, pid, s3_folder / "s3" / system.settings.retrieval.bucket)
        whole = retrieval.selection("files")
        few = retrieval.selection("files", FEW)
        others = (retrieval.selection("datablocks"), retrieval.selection("directory"), few)
        wanted = dict.fromkeys((one.selection for one in (whole, *others)), FILES)
        wanted |= {others[0].selection: blocks, few.selection: {name: FILES[name] for name in FEW}}
        for selection in (whole, *others):
            assert await retrieval.run(selection) == ""
            assert retrieval.there(selection) == wanted[selection.selection]
        ends: Counter[tuple[str, str]] = Counter()
        for n, (path, at, bit) in enumerate(places(bag, random.Random(SEED))):
            name = str(path.relative_to(bag))
            where = f"seed {SEED}, flip {n}: bit {bit} of byte {at} of {name}"
            with flipped(path, at, bit):
                # The lists that a bag has beside its payload are read alike, whatever is wanted.
                for selection in (whole, others[n % 3])[: 2 if name.startswith("data/") else 1]:
                    error = await retrieval.run(selection)
                    there = retrieval.there(selection)
                    assert {key for key, data in there.items() if intact.get(key) != data} == set(), where
                    if error:
                        assert error in FOUND, where
                    else:
                        assert there == wanted[selection.selection], where
                        # What is not read is not judged: other members than those of the wanted files, and what a bag
                        # says of itself, which any bag validator compares.
                        assert selection is few or name in SELF_DESCRIPTION, where
                        same = name == TAGS and path.read_bytes().lower() == tags.lower()
                        assert name.startswith("data/") or name == "events.jsonl" or same or not _agree(bag), where
                    ends[name.rpartition("/")[2], error] += 1
        print(f"seed {SEED}: {sorted(ends.items())}")
        assert sum(count for (_, error), count in ends.items() if error) > FLIPS / 2
        assert await retrieval.run(whole) == "", "every bit is back in its place"


def _agree(bag: Path) -> bool:
    """What the bag says of its own files, in its last file, and what they are; a digest in capital letters is the same."""
    lines = (bag / TAGS).read_bytes().split(b"\n")
    said = {name: digest.lower() for digest, _, name in (line.partition(b"  ") for line in lines if line)}
    are = {name: hashlib.sha256((bag / name.decode()).read_bytes()).hexdigest().encode() for name in SAID}
    return said == are


SMALL = {"a.txt": b"text " * 5_000, "raw/b.bin": noise(300_000, 3)}
DAMAGE: dict[str, tuple[str, Callable[[bytes], int], tuple[str, ...]]] = {
    "data": ("data/1.tar.gz", lambda data: len(data) // 2, ("datablock 1", "does not match its manifest")),
    "a time stamp that no decoder looks at": ("data/1.tar.gz", lambda data: 5, ("datablock 1", "SHA-256")),
    "a length at the datablock's end": ("data/1.tar.gz", lambda data: len(data) - 1, ("datablock 1",)),
    "the manifest": ("data/1.manifest.jsonl.gz", lambda data: len(data) // 2, ("manifest of datablock 1", "SHA-256")),
    "the index at the manifest's end": (
        "data/1.manifest.jsonl.gz",
        lambda data: len(data) - 12,
        ("manifest of datablock 1",),
    ),
    "the bag's list": ("manifest-sha256.txt", lambda data: 3, ("manifest-sha256.txt", "what its bag says")),
    "the digest of that list": (
        "tagmanifest-sha256.txt",
        lambda data: data.index(b"  manifest-sha256.txt") - 1,
        ("manifest-sha256.txt", "what its bag says"),
    ),
}


async def test_p7_each_damaged_dataset_of_a_job_is_told_and_the_intact_one_is_delivered(system: System) -> None:
    async with system.workers():
        damaged = {place: await system.dataset(SMALL) for place in DAMAGE}
        intact = await system.dataset(SMALL)
        pids = [*damaged.values(), intact]
        assert (await system.archive(*pids)).counts == m.Counts(archived=len(pids))
        for place, (name, at, _) in DAMAGE.items():
            path = system.lts / damaged[place] / name
            data = path.read_bytes()
            # The least bit of a hexadecimal digit makes another one of it.
            spoiled = bytearray(data)
            spoiled[at(data)] ^= 1
            path.chmod(0o644)
            path.write_bytes(spoiled)
        for files in (None, ["raw/b.bin"]):
            job, result = await retrieve(system, *pids, files=files)
            # Of so many datasets the job's result object names only some.
            outcomes = {pid: (await system.record(pid))["datasetlifecycle"]["retrieveStatusMessage"] for pid in pids}
            found = dict(DAMAGE)
            if files:
                # Behind the last member of a file that is wanted, and in what gzip says of nothing, nobody looked.
                found = {
                    place: DAMAGE[place] for place in DAMAGE if outcomes[damaged[place]] == "scheduleRetrieveJobFailed"
                }
                assert {"data", "the manifest", "the index at the manifest's end", "the bag's list"} <= found.keys()
            counts = m.Counts(retrieved=len(pids) - len(found), system_errors=len(found))
            assert (result.status_code, result.counts) == ("finishedWithDatasetErrors", counts)
            for place, (_, _, words) in found.items():
                pid = damaged[place]
                await assert_not_retrieved(system, job, pid, pid, *words, files=SMALL, error="IntegrityMismatch")
                assert outcomes[pid] == "scheduleRetrieveJobFailed"
            good = [pid for pid in pids if outcomes[pid] == "datasetRetrieved"]
            assert intact in good
            wanted = {name: SMALL[name] for name in files or SMALL}
            assert await fetched_of_all(system, job) == {(pid, name): wanted[name] for pid in good for name in wanted}
            life = await still_archived(system, intact)
            assert (life["retrieveStatusMessage"], life["retrieveIntegrityCheck"]) == ("datasetRetrieved", True)
