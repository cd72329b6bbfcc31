"""An LTS of an archive class through the whole path: archived, restored, retrieved, verified; waits are timers, not slots.

Everything but the LTS is as in the other systems; the LTS is a bucket at moto, whose restores last until a test ends them.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from temporalio.client import WorkflowExecutionStatus

from activities.queues import Service
from archiver import model as m
from archiver.errors import SettingsInvalid
from archiver.pids import workflow_id
from archiver.settings import S3Settings
from cli.doctor import examine
from cli.doctor.check import Outcome
from cli.ls import ls as listed
from cli.verify import verify
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import MIB, noise, until
from tests.pipeline.oracle import nothing_runs
from tests.pipeline.retrieving import delivered, ended, fetched, start_retrieve
from tests.pipeline.system import System
from tests.storage.glacier import Restores, restores

FILES = {"a.bin": noise(MIB, 1), "b/c.bin": noise(MIB, 2), "d.txt": b"small"}


class Glacier:
    """A system whose LTS is a bucket of an archive class."""

    def __init__(self, system: System, s3: S3Settings, restoring: Restores) -> None:
        self.system = system
        self.restoring = restoring
        self.bucket = system.settings.lts.bucket.name if system.settings.lts.bucket else ""
        self.boto: Any = boto3.client(
            "s3",
            endpoint_url=str(s3.endpoint),
            aws_access_key_id="moto",
            aws_secret_access_key="moto-secret",
            region_name="us-east-1",
        )

    def classes(self, pid: str) -> dict[str, str]:
        """Storage class of every object of a dataset on the LTS, by name."""
        listed = self.boto.list_objects_v2(Bucket=self.bucket, Prefix=f"lts/{pid}/").get("Contents", [])
        return {entry["Key"].removeprefix(f"lts/{pid}/"): entry["StorageClass"] for entry in listed}

    def asked(self, pid: str) -> list[str]:
        """The datablocks of a dataset that a restore was asked for, in order."""
        return [key.rpartition("/")[2] for key, _ in self.restoring.asked if f"/{pid}/" in key]

    async def archived(self, files: dict[str, bytes] = FILES) -> str:
        """A dataset that was archived, whose source is gone."""
        pid = await self.system.dataset(files)
        result = await self.system.archive(pid)
        assert result.status_code == "finishedSuccessful", result
        for name in files:
            self.system.boto.delete_object(Bucket=self.system.landing_bucket, Key=f"{pid}/{name}")
        return pid

    async def waiting(self, pid: str) -> None:
        """Until a datablock's workflow waits by a timer, with nothing at work."""

        async def waits() -> bool:
            async for one in self.system.client.list_workflows(
                f"WorkflowType = 'RetrieveDatablock' AND DatasetPid = '{pid}' AND ExecutionStatus = 'Running'"
            ):
                history = await self.system.client.get_workflow_handle(one.id).fetch_history()
                if any(event.HasField("timer_started_event_attributes") for event in history.events):
                    return True
            return False

        await until(waits, f"a datablock of {pid} waits for its restore")


@pytest.fixture(scope="module")
def restoring() -> Iterator[Restores]:
    """Restores that last until they are ended."""
    with restores() as found:
        yield found


@pytest.fixture(scope="module")
async def glacier(
    tmp_path_factory: pytest.TempPathFactory,
    temporal_address: str,
    s3: S3Settings,
    moto: S3Settings,
    restoring: Restores,
) -> AsyncIterator[Glacier]:
    """The system, without workers."""
    folder = tmp_path_factory.mktemp("glacier")
    keys = {"access_key": "moto", "secret_key": "moto-secret"}
    bucket = {
        "name": f"lts-{secrets.token_hex(4)}",
        "prefix": "lts/",
        "storage_class": "GLACIER",
        "s3": {"endpoint": str(moto.endpoint), **keys},
    }
    overrides: dict[str, dict[str, Any]] = {
        "lts": {"bucket": bucket},
        "worker": {"lock_dir": str(folder / "locks")},
        "datablock": {"target_bytes": MIB},
    }
    system = System(folder, temporal_address, s3, overrides)
    try:
        yield Glacier(await system.start(), moto, restoring)
    finally:
        await system.stop()


@pytest.fixture(autouse=True)
def again(restoring: Restores) -> None:
    """Every test begins with restores that last."""
    restoring.ended = False


async def test_p1_archived_in_glacier_restored_and_retrieved_byte_for_byte(glacier: Glacier) -> None:
    async with glacier.system.workers():
        pid = await glacier.archived()
        classes = glacier.classes(pid)
        assert {name for name, found in classes.items() if found == "GLACIER"} == {
            f"data/{n}.tar.gz" for n in (1, 2, 3)
        }
        assert {"bagit.txt", "tagmanifest-sha256.txt", "events.jsonl", "data/1.manifest.jsonl.gz"} <= {
            name for name, found in classes.items() if found == "STANDARD"
        }
        life = await glacier.system.lifecycle(pid)
        assert (life["archiveStatusMessage"], life["retrievable"]) == ("datasetOnArchiveDisk", True)

        job, handle = await start_retrieve(glacier.system, pid)
        await glacier.waiting(pid)
        # Hours may pass so: no slot is held, SciCat says that it is under way, nothing is half there.
        described = await glacier.system.client.get_workflow_handle(
            workflow_id("retrieve-dataset", pid, await selection(glacier.system, pid))
        ).query("progress", result_type=m.DatasetProgress)
        assert described.stage == "restoring"
        assert (await glacier.system.job_record(job))["statusCode"] == "inProgress"
        assert delivered(glacier.system, pid) == {}
        glacier.restoring.ended = True
        assert (await ended(handle)).status_code == "finishedSuccessful"
        assert await fetched(glacier.system, job) == FILES
        # All of them were asked for at once, each once, and no restored copy was asked for again.
        assert sorted(glacier.asked(pid)) == ["1.tar.gz", "2.tar.gz", "3.tar.gz"]


async def test_what_lies_in_the_bucket_intact_is_not_restored_again(glacier: Glacier) -> None:
    system = glacier.system
    async with system.workers():
        pid = await glacier.archived()
        glacier.restoring.ended = True
        _, handle = await start_retrieve(system, pid)
        assert (await ended(handle)).status_code == "finishedSuccessful"
        asked = len(glacier.asked(pid))

        glacier.restoring.ended = False
        job, handle = await start_retrieve(system, pid)
        assert (await ended(handle)).status_code == "finishedSuccessful"
        assert await fetched(system, job) == FILES
        assert len(glacier.asked(pid)) == asked

        # A stranger's object of the same name and size proves nothing: its datablock is read again, and no other.
        name = "b/c.bin"
        system.boto.put_object(
            Bucket=system.settings.retrieval.bucket, Key=f"{pid}/{name}", Body=bytes(len(FILES[name]))
        )
        job, handle = await start_retrieve(system, pid)
        await glacier.waiting(pid)
        glacier.restoring.ended = True
        assert (await ended(handle)).status_code == "finishedSuccessful"
        assert await fetched(system, job) == FILES
        assert delivered(system, pid) == FILES


async def test_a_worker_that_dies_while_glacier_restores_loses_nothing(glacier: Glacier) -> None:
    async with glacier.system.workers():
        pid = await glacier.archived()
    worker = glacier.system.worker()
    job, handle = await start_retrieve(glacier.system, pid, files=["b/c.bin"])
    await glacier.waiting(pid)
    worker.kill()
    glacier.system.standin.expire_tokens()
    await glacier.system.log_in()
    glacier.restoring.ended = True
    async with glacier.system.workers():
        assert (await ended(handle)).status_code == "finishedSuccessful"
    assert await fetched(glacier.system, job) == {"b/c.bin": FILES["b/c.bin"]}
    # Only the datablock that holds the wanted file was asked for.
    assert len(glacier.asked(pid)) == 1


async def test_a_restored_copy_that_ends_before_it_is_read_is_asked_for_again(glacier: Glacier) -> None:
    async with glacier.system.workers():
        pid = await glacier.archived({"one": noise(MIB, 3)})
    reading = "pack,catalogue,workflows,lts-space,lts-copy,lts-verify,lts-bag"
    async with glacier.system.workers(reading):
        job, handle = await start_retrieve(glacier.system, pid)
        await glacier.waiting(pid)
        glacier.restoring.ended = True
        sel = await selection(glacier.system, pid)
        await glacier.system.pending("retrieve-datablock", "retrieve-datablock", pid, sel, "1")
        glacier.restoring.ended = False
        async with glacier.system.workers("lts-read"):
            timers = await timers_of(glacier.system, pid, sel)

            async def waits_again() -> bool:
                return await timers_of(glacier.system, pid, sel) > timers

            await until(waits_again, "the datablock is waited for again")
            assert delivered(glacier.system, pid) == {}
            glacier.restoring.ended = True
            assert (await ended(handle)).status_code == "finishedSuccessful"
    assert await fetched(glacier.system, job) == {"one": noise(MIB, 3)}


async def test_a_job_that_is_cancelled_while_glacier_restores_ends_so(glacier: Glacier) -> None:
    async with glacier.system.workers():
        pid = await glacier.archived()
        job, handle = await start_retrieve(glacier.system, pid)
        await glacier.waiting(pid)
        await handle.signal("cancel", m.StopRequest(reason="not needed", who="a test"))
        assert (await ended(handle)).status_code == "finishedUnsuccessful"
        await nothing_runs(glacier.system, pid)
    life = await glacier.system.lifecycle(pid)
    assert life["retrieveStatusMessage"] == ""
    assert "not needed" in life["retrieveReturnMessage"]["summary"]
    assert life["archiveStatusMessage"] == "datasetOnArchiveDisk"
    assert delivered(glacier.system, pid) == {}
    assert (await glacier.system.job_record(job))["statusCode"] == "finishedUnsuccessful"


async def test_verify_restores_reads_and_compares(glacier: Glacier) -> None:
    system = glacier.system
    async with system.workers():
        pid = await glacier.archived()
        glacier.restoring.ended = True
        done = await verify(system.client, system.settings, pid)
        assert (done.outcome, done.datablocks, done.level) == ("good", 3, "host")
        key = f"lts/{pid}/data/2.tar.gz"
        data = bytearray(glacier.boto.get_object(Bucket=glacier.bucket, Key=key)["Body"].read())
        data[len(data) // 2] ^= 1
        head = glacier.boto.head_object(Bucket=glacier.bucket, Key=key)
        glacier.boto.put_object(
            Bucket=glacier.bucket, Key=key, Body=bytes(data), Metadata=head["Metadata"], StorageClass="GLACIER"
        )
        done = await verify(system.client, system.settings, pid)
        assert (done.outcome, done.bad) == ("bad", [2])
        job, handle = await start_retrieve(system, pid)
        assert (await ended(handle)).status_code == "finishedUnsuccessful"
        assert [data for name, data in delivered(system, pid).items() if FILES[name] != data] == []
        assert (await system.job_record(job))["jobResultObject"].get("result", []) == []


async def test_p6_what_was_proved_is_used_by_the_next_run_without_a_restore(glacier: Glacier) -> None:
    system = glacier.system
    pid = await system.dataset(FILES)
    job = await system.job(pid)
    async with system.workers("pack,catalogue,workflows,lts-space,lts-copy,lts-verify"):
        # Verified, and no bag: whoever publishes it is not there.
        async with system.workers("lts-bag"):
            handle = await system.start_job(job)
            await until(lambda: [name for name, found in glacier.classes(pid).items() if found == "GLACIER"])
        await system.client.get_workflow_handle(workflow_id("archive-dataset", pid)).terminate("a test")
        await handle.terminate("a test")
        for n in (1, 2, 3):
            child = system.client.get_workflow_handle(workflow_id("archive-datablock", pid, str(n)))
            try:
                if (await child.describe()).status == WorkflowExecutionStatus.RUNNING:
                    await child.terminate("a test")
            except Exception:
                pass
    proved = {name for name in glacier.classes(pid) if name.endswith(".manifest.jsonl.gz")}
    assert proved
    async with system.workers():
        result = await system.archive(pid)
    assert result.status_code == "finishedSuccessful", result
    assert {name for name, found in glacier.classes(pid).items() if found == "GLACIER"} == {
        f"data/{n}.tar.gz" for n in (1, 2, 3)
    }
    assert glacier.asked(pid) == []
    assert proved <= set(glacier.classes(pid))


async def test_the_doctor_tries_what_a_bucket_must_do(glacier: Glacier, tmp_path: Path) -> None:
    async def found(**settings: object) -> dict[str, tuple[str, str]]:
        bucket = glacier.system.settings.lts.bucket
        assert bucket is not None
        lts = glacier.system.settings.lts.model_copy(update={"bucket": bucket.model_copy(update=settings)})
        results = await examine(glacier.system.settings.model_copy(update={"lts": lts}))
        return {one.check.name: (one.finding.outcome, one.finding.found) for one in results if "lts" in one.check.name}

    before = list(glacier.boto.list_objects_v2(Bucket=glacier.bucket)["Contents"])
    good = await found()
    ours = {name: outcome for name, (outcome, _) in good.items() if "pollers" not in name}
    assert ours == dict.fromkeys(("lts bucket", "lts store", "lts restore", "lts bucket lock"), Outcome.OK), good
    outcome, text = (await found(storage_class="NO_SUCH_CLASS"))["lts store"]
    assert (outcome, "InvalidStorageClass" in text) == (Outcome.FAIL, True), text
    outcome, text = (await found(prefix="elsewhere/"))["lts bucket"]
    assert (outcome, "no marker" in text) == (Outcome.FAIL, True), text
    assert (await found(prefix="elsewhere/"))["lts store"][0] == Outcome.NOT_CHECKED
    assert glacier.boto.list_objects_v2(Bucket=glacier.bucket)["Contents"] == before


async def test_a_bucket_of_the_usual_class_on_a_real_server(
    make_system: MakeSystem, tmp_path: Path, s3: S3Settings
) -> None:
    bucket = {"name": f"lts-{secrets.token_hex(4)}"}
    system = await make_system({"lts": {"bucket": bucket}, "worker": {"lock_dir": str(tmp_path)}})
    async with system.workers():
        pid = await system.dataset(FILES)
        assert (await system.archive(pid)).status_code == "finishedSuccessful"
        job, handle = await start_retrieve(system, pid)
        assert (await ended(handle)).status_code == "finishedSuccessful"
        assert await fetched(system, job) == FILES
        assert (await verify(system.client, system.settings, pid)).outcome == "good"
    text, told, code = await listed(system.settings, pid, files=False)
    assert (told["lts"], code, told["problems"]) == (f"s3://{bucket['name']}/{pid}", 0, []), text
    assert list(system.lts.iterdir()) == []


async def test_an_lts_worker_of_a_bucket_says_where_it_locks_or_does_not_start(glacier: Glacier) -> None:
    settings = glacier.system.settings
    worker = settings.worker.model_copy(update={"lock_dir": None})
    with pytest.raises(SettingsInvalid, match=r"worker\.lock_dir is not set"):
        async with Service(settings.model_copy(update={"worker": worker}), ["lts-read"]):
            pass


async def selection(system: System, pid: str) -> str:
    """The selection of the one retrieval of a dataset that runs."""

    async def found() -> str:
        query = f"WorkflowType = 'RetrieveDataset' AND DatasetPid = '{pid}' AND ExecutionStatus = 'Running'"
        return "".join([one.id.rpartition("/")[2] async for one in system.client.list_workflows(query)])

    return str(await until(found, f"a retrieval of {pid} runs"))


async def timers_of(system: System, pid: str, selection: str) -> int:
    """How often the datablock's workflow has begun to wait."""
    handle = system.client.get_workflow_handle(workflow_id("retrieve-datablock", pid, selection, "1"))
    events = (await handle.fetch_history()).events
    return sum(event.HasField("timer_started_event_attributes") for event in events)
