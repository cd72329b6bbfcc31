"""Jobs from a real RabbitMQ, published as SciCat publishes them, onto a real Temporal; the stand-in tells what SciCat knows."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from pydantic import SecretStr
from temporalio.service import RPCError, RPCStatusCode

from archiver.catalogue.client import SciCat
from archiver.errors import CatalogueFault, OwnFault, SettingsInvalid
from archiver.pids import workflow_id
from archiver.settings import BridgeSettings, Settings
from bridge.app import create_app
from bridge.intake import Intake
from bridge.rabbitmq import consume, job_id_of
from bridge.temporal import Connection
from cli.servers import free_port
from tests.pipeline.moments import until
from tests.pipeline.system import System
from tests.rabbitmq.broker import Broker, consuming

FILES = {"a.dat": b"a"}


@pytest.fixture(scope="module")
async def intake(system: System) -> AsyncIterator[Intake]:
    """The bridge's own, onto the system's SciCat and Temporal."""
    async with SciCat(system.settings.scicat) as scicat:
        yield Intake(system.settings, scicat, Connection(system.settings))


@pytest.fixture
def queue() -> str:
    """A queue of the test's own."""
    return f"jobs-{uuid4().hex[:8]}"


async def runs_of(system: System, job_id: str) -> int:
    """How many runs of the job's workflow there are. Nobody works on it here: what was started stays as it is."""
    try:
        await system.client.get_workflow_handle(workflow_id("archive-job", job_id)).describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return 0

    async def listed() -> int:
        return (await system.client.count_workflows(f"WorkflowId = '{workflow_id('archive-job', job_id)}'")).count

    return int(await until(listed, "the workflow in Temporal's list"))


async def started(system: System, job_id: str) -> None:
    await until(lambda: runs_of(system, job_id), f"the workflow of job {job_id}")


@pytest.mark.parametrize("version", ["v4", "v3"])
async def test_a_job_in_either_shape_starts_its_workflow(
    broker: Broker, system: System, intake: Intake, queue: str, version: str
) -> None:
    job_id = await system.job(await system.dataset(FILES))
    document = (await system.http.get(f"/api/{version}/jobs/{job_id}")).json()
    assert ("jobStatusMessage" in document) == (version == "v3")
    # Both queues of a site that moves from one shape to the other.
    settings = broker.settings(system.settings, f"{queue}.old", queue)
    async with consuming(settings, intake.take):
        await broker.publish(queue if version == "v4" else f"{queue}.old", document)
        await started(system, job_id)
    assert await broker.ready(queue) == await broker.ready(f"{queue}.old") == 0


async def test_the_bridge_takes_jobs_from_there_while_it_serves(broker: Broker, system: System, queue: str) -> None:
    job_id = await system.job(await system.dataset(FILES))
    await broker.publish(queue, {"id": job_id})
    credentials = system.settings.bridge.model_copy(update={"token": SecretStr("t" * 32)})
    settings = broker.settings(system.settings, queue).model_copy(update={"bridge": credentials})
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await started(system, job_id)
    await broker.publish(queue, {"id": job_id})
    assert await broker.ready(queue) == 1, "nobody takes it any more"


async def test_only_the_id_of_a_message_is_believed(broker: Broker, system: System, intake: Intake, queue: str) -> None:
    job_id = await system.job(await system.dataset(FILES))
    lies = {"id": job_id, "type": "retrieve", "statusCode": "finishedSuccessful", "jobParams": {"datasetList": []}}
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await broker.publish(queue, lies)
        await started(system, job_id)


async def test_a_job_that_comes_ten_times_is_started_once(
    broker: Broker, system: System, intake: Intake, queue: str
) -> None:
    job_id = await system.job(await system.dataset(FILES))
    await broker.publish(queue, {"id": job_id}, times=10)
    taken: list[str] = []

    async def take(one: str) -> None:
        await intake.take(one)
        taken.append(one)

    async with consuming(broker.settings(system.settings, queue), take):
        await until(lambda: len(taken) == 10)
    assert await broker.ready(queue) == 0
    assert await runs_of(system, job_id) == 1


async def test_p5_a_message_stays_until_its_workflow_was_started(
    broker: Broker, system: System, intake: Intake, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = await system.job(await system.dataset(FILES))
    await broker.publish(queue, {"id": job_id})
    nobody = system.settings.temporal.model_copy(update={"address": f"127.0.0.1:{free_port()}"})
    down = system.settings.model_copy(update={"temporal": nobody})
    async with (
        SciCat(system.settings.scicat) as scicat,
        consuming(broker.settings(down, queue), Intake(down, scicat, Connection(down)).take),
    ):
        await until(lambda: "is tried again" in caplog.text, "an attempt without Temporal")
        assert await broker.ready(queue) == 0, "it is in hand"
    assert "Temporal does not answer" in caplog.text
    await broker.given_back(queue)
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await started(system, job_id)
    assert await broker.ready(queue) == 0


async def test_p5_while_scicat_is_down_the_job_is_tried_again_until_it_is_up(
    broker: Broker, system: System, intake: Intake, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = await system.job(await system.dataset(FILES))
    assert system.scicat is not None
    async with consuming(broker.settings(system.settings, queue), intake.take):
        system.scicat.stop()
        try:
            await broker.publish(queue, {"id": job_id})
            await until(lambda: "is tried again" in caplog.text, "an attempt without SciCat")
        finally:
            system.scicat.start()
        await started(system, job_id)
    assert await broker.ready(f"{queue}.dead") == 0


async def test_a_fault_that_stays_is_tried_with_growing_pauses(
    broker: Broker, system: System, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    times: list[float] = []

    async def take(job_id: str) -> None:
        times.append(asyncio.get_running_loop().time())
        raise CatalogueFault(
            "SciCat refuses the login", retryable=False
        )  # the operator mends it: no message goes for it

    await broker.publish(queue, {"id": str(uuid4())})
    async with consuming(broker.settings(system.settings, queue), take):
        await until(lambda: len(times) >= 4)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] >= 0.5
    assert gaps[1] >= 1.0
    assert gaps[2] >= 2.0
    await broker.given_back(queue)


POISON: dict[str, tuple[Any, str, str]] = {
    "no JSON": (b"\xff{'id'}", "NoJob", "is not JSON"),
    "nothing": (b"", "NoJob", "is not JSON"),
    "a list": ([{"id": "x"}], "NoJob", "names no job"),
    "no id": ({"type": "archive"}, "NoJob", "names no job"),
    "an id that is none": ({"id": "../../jobs"}, "NoJob", "is no UUID"),
    "nested without end": (b"[" * 100_000, "NoJob", "is not JSON"),
    "too large": (b" " * 5_000_000, "NoJob", "too large"),
    "a job that SciCat does not have": ({"id": str(uuid4())}, "UnknownJob", "knows no job"),
}


@pytest.mark.parametrize("kind", POISON)
async def test_poison_goes_to_the_dead_letter_queue_with_the_reason(
    broker: Broker, system: System, intake: Intake, queue: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    document, error, reason = POISON[kind]
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await broker.publish(queue, document)
        dead = await broker.next_of(f"{queue}.dead")
    assert dead.headers["x-archiver-error"] == error
    assert reason in str(dead.headers["x-archiver-reason"])
    assert dead.headers["x-archiver-queue"] == queue
    assert dead.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    if isinstance(document, bytes):
        assert dead.body == document
    assert await broker.ready(queue) == 0
    assert f"went to {queue}.dead" in caplog.text


async def test_a_foreign_job_is_dead_lettered_and_nothing_of_it_is_touched(
    broker: Broker, system: System, intake: Intake, queue: str
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid, type="public")
    before = await system.job_record(job_id)
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await broker.publish(queue, before)
        dead = await broker.next_of(f"{queue}.dead")
    assert dead.headers["x-archiver-error"] == "ForeignJob"
    assert await runs_of(system, job_id) == 0
    assert await system.job_record(job_id) == before


async def test_a_refused_job_is_dead_lettered_and_its_workflow_tells_its_users(
    broker: Broker, system: System, intake: Intake, queue: str
) -> None:
    pid = await system.dataset(FILES)
    listed = {"datasetList": [{"pid": pid, "files": list(FILES)}]}
    job_id = system.stored_job(jobParams=listed)
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await broker.publish(queue, {"id": job_id})
        dead = await broker.next_of(f"{queue}.dead")
    assert dead.headers["x-archiver-error"] == "Refused"
    assert "lists single files" in str(dead.headers["x-archiver-reason"])
    assert await runs_of(system, job_id) == 1


async def test_p5_poison_that_the_dead_letter_queue_does_not_take_stays(
    broker: Broker, system: System, intake: Intake, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    full = {"x-max-length": 0, "x-overflow": "reject-publish"}
    async with broker.channel() as channel:
        await channel.declare_queue(f"{queue}.dead", durable=True, arguments=full)
    await broker.publish(queue, b"poison")
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await until(lambda: f"{queue}.dead does not take it" in caplog.text, "an attempt to bury it")
    await broker.given_back(queue)


async def test_never_more_than_prefetch_messages_are_in_hand(broker: Broker, system: System, queue: str) -> None:
    at_once = most = done = 0
    everyone = asyncio.Event()

    async def take(job_id: str) -> None:
        nonlocal at_once, most, done
        at_once += 1
        most = max(most, at_once)
        if at_once == 3:
            everyone.set()
        await asyncio.wait_for(everyone.wait(), 120)
        await asyncio.sleep(0.02)
        at_once -= 1
        done += 1

    for _ in range(12):
        await broker.publish(queue, {"id": str(uuid4())})
    async with consuming(broker.settings(system.settings, queue, prefetch=3), take):
        await until(lambda: done == 12)
    assert most == 3


async def test_an_unexpected_error_loses_no_message(broker: Broker, system: System, queue: str) -> None:
    tries = 0

    async def take(job_id: str) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("a bug of ours")

    async with consuming(broker.settings(system.settings, queue), take):
        await broker.publish(queue, {"id": str(uuid4())})
        await until(lambda: tries == 2)


async def test_a_queue_that_we_made_first_is_the_one_that_scicat_declares(
    broker: Broker, system: System, intake: Intake, queue: str
) -> None:
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await broker.seen(lambda: broker.there(queue), queue)
        job_id = await system.job(await system.dataset(FILES))
        await broker.publish(queue, {"id": job_id})  # which declares it as SciCat does
        await started(system, job_id)


async def test_a_queue_that_a_site_made_otherwise_is_taken_as_it_is(
    broker: Broker, system: System, intake: Intake, queue: str
) -> None:
    job_id = await system.job(await system.dataset(FILES))
    async with broker.channel() as channel:
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(aio_pika.Message(b'{"id": "%s"}' % job_id.encode()), routing_key=queue)
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await started(system, job_id)


async def test_a_queue_that_is_deleted_is_made_again(
    broker: Broker, system: System, intake: Intake, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "archiver.rabbitmq")
    async with consuming(broker.settings(system.settings, queue), intake.take):
        await until(lambda: f"queue {queue}" in caplog.text, "the consumer")
        async with broker.channel() as channel:
            await channel.queue_delete(queue)
        await until(lambda: "connecting again" in caplog.text, "the consumer that sees it")
        job_id = await system.job(await system.dataset(FILES))
        await broker.publish(queue, {"id": job_id})
        await started(system, job_id)


async def test_p8_the_password_is_in_no_log_line(
    broker: Broker, system: System, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "canary-" + uuid4().hex
    url = broker.url.replace(":guest@", f":{secret}@")
    async with consuming(broker.settings(system.settings, queue, url=url), no_take):
        await until(lambda: "connecting again" in caplog.text, "a refused login")
    assert secret not in caplog.text


@pytest.mark.parametrize("url", ["http://host", "amqp://", "amqp://host:nan/"])
def test_an_address_that_is_none_is_refused_when_settings_are_read(url: str) -> None:
    with pytest.raises(ValueError, match=r"rabbitmq.url"):
        Settings.model_validate({"rabbitmq": {"url": url}})


async def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aio_pika", None)
    settings = Settings.model_validate({"rabbitmq": {"url": "amqp://localhost/"}})
    with pytest.raises(SettingsInvalid) as refused:
        await consume(settings, no_take)
    with pytest.raises(SettingsInvalid, match="not installed"):
        create_app(settings.model_copy(update={"bridge": BridgeSettings(token=SecretStr("t" * 32))}))
    lines = refused.value.lines().splitlines()
    assert [line.split()[0] for line in lines] == ["error", "expected", "found", "next"]
    assert "pip install 'scicat-archiver[rabbitmq]'" in lines[-1]


async def test_without_an_address_it_is_said_which_setting_is_missing() -> None:
    with pytest.raises(SettingsInvalid, match=r"rabbitmq\.url"):
        await consume(Settings(), no_take)


@pytest.mark.parametrize("key", ["id", "_id"])
def test_the_id_is_found_in_every_shape(key: str) -> None:
    job_id = str(uuid4())
    assert job_id_of(b'{"%s": "%s"}' % (key.encode(), job_id.upper().encode()), 1000) == job_id


async def test_p5_a_broker_that_is_killed_and_comes_back_loses_no_job(
    broker: Broker, system: System, intake: Intake, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    waiting, held = await system.job(await system.dataset(FILES)), asyncio.Event()

    async def take(job_id: str) -> None:
        if not held.is_set():
            held.set()
            raise OwnFault("not now")
        await intake.take(job_id)

    async with consuming(broker.settings(system.settings, queue), take):
        await broker.publish(queue, {"id": waiting})  # confirmed: it is on the broker's disk
        await asyncio.wait_for(held.wait(), 120)
        broker.kill()
        await until(lambda: "connecting again" in caplog.text, "the consumer that sees it")
        broker.start()
        await started(system, waiting)
        later = await system.job(await system.dataset(FILES))
        await broker.publish(queue, {"id": later})
        await started(system, later)
    assert await broker.ready(queue) == 0
    assert await runs_of(system, waiting) == 1


async def no_take(job_id: str) -> None:
    raise AssertionError("nothing is to be taken here")
