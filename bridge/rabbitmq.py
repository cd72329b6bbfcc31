"""SciCat's jobs from RabbitMQ, the third way in: a message is acknowledged after its job's workflow was started, not before.

SciCat publishes the whole job, persistent, to a durable queue without arguments, and never again. Of a message
only the job's id is believed. What can never become a job of ours goes to a dead-letter queue and says why; what time may mend
stays unacknowledged and is tried again, so that a message outlives every process that had it in hand. A queue of other
arguments than SciCat's would be an error to SciCat's own declaration: so ours is done by hand, not by the queue's policy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from archiver.errors import ArchiverError, Refused, SettingsInvalid, SystemFault
from archiver.log import scrub
from archiver.settings import Settings
from bridge.body import PostedJob

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
HELD_SECONDS = 600.0
"""So long a message is tried again in hand, then given back: RabbitMQ takes who holds one for 30 minutes for dead."""
CONNECT_SECONDS = 20.0
STEADY_SECONDS = 5.0
"""A connection that served so long was a good one: the next is made without a long pause."""
MAX_DEAD = 10_000
"""Messages that a dead-letter queue of our making keeps; the oldest go first."""
MAX_REASON = 1000

Take = Callable[[str], Awaitable[object]]
"""Starts the job of this id, at most once. A ``SystemFault`` may be mended by time, any other ``ArchiverError`` may not."""

logger = logging.getLogger("archiver.rabbitmq")


class NoJob(Refused):
    """A message that names no job."""


async def consume(settings: Settings, take: Take) -> None:
    """Take jobs from RabbitMQ until cancelled; a broker that is gone is waited for.

    Raises ``SettingsInvalid`` at once if ``rabbitmq.url`` is not set or the extra is not installed.
    """
    if settings.rabbitmq.url is None:
        raise SettingsInvalid(
            "rabbitmq.url is not set",
            expected="amqp://user:password@host:5672/vhost",
            found="nothing",
            next_step="set ARCHIVER_RABBITMQ__URL, or ARCHIVER_RABBITMQ__URL_FILE",
        )
    require_client()
    consumer = _Consumer(settings, take)
    pauses = _pauses()
    while True:
        try:
            await consumer.until_it_ends()
        except Exception as error:
            # Whatever it was: a bridge that takes no jobs any more, unseen, would be worse.
            found = scrub(f"{type(error).__name__}: {error}")[:300]
            if not isinstance(error, consumer.gone):
                logger.exception("unexpected")
        if consumer.served_seconds() > STEADY_SECONDS:
            pauses = _pauses()
        pause = next(pauses)
        logger.warning("RabbitMQ does not serve us (%s): connecting again in %.1f s", found, pause)
        await asyncio.sleep(pause)


def require_client() -> None:
    """Raises ``SettingsInvalid`` where the client library is not installed."""
    try:
        import aio_pika  # noqa: F401
    except ImportError:
        raise SettingsInvalid(
            "rabbitmq.url is set, but the client for RabbitMQ is not installed",
            expected="the optional extra 'rabbitmq' (aio-pika)",
            found="no module of that name",
            next_step="pip install 'scicat-archiver[rabbitmq]', or leave rabbitmq.url out",
        ) from None


def job_id_of(body: bytes, limit: int) -> str:
    """The id of the job that a message holds, in v4 or v3 shape. Raises ``NoJob``."""
    expected = "the JSON of a SciCat job, or {id, type}"
    if len(body) > limit:
        raise NoJob("the message is too large", expected=f"at most {limit} B", found=f"{len(body)} B")
    try:
        return PostedJob.model_validate_json(body).id
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise NoJob("the message is not JSON", expected=expected, found=first["msg"][:200]) from None
        where = ".".join(str(part) for part in first["loc"])[:100] or "message"
        raise NoJob("the message names no job", expected=expected, found=f"{where}: {first['msg']}"[:200]) from None


class _Consumer:
    """One connection at a time, with a consumer of each queue."""

    def __init__(self, settings: Settings, take: Take) -> None:
        import aio_pika

        self._pika = aio_pika
        self.gone: tuple[type[BaseException], ...] = (*aio_pika.exceptions.CONNECTION_EXCEPTIONS, TimeoutError, _Ended)
        self._settings = settings.rabbitmq
        self._max_bytes = settings.bridge.max_body_bytes
        self._take = take
        self._serving_since: float | None = None

    def served_seconds(self) -> float:
        """How long the last connection was consumed from."""
        return 0.0 if self._serving_since is None else time.monotonic() - self._serving_since

    async def until_it_ends(self) -> None:
        """Consume until connection, channel or queue is gone; raises what ended it, or one of ``gone`` if there was nothing."""
        assert self._settings.url is not None  # noqa: S101  seen by consume
        url = self._settings.url.get_secret_value().strip()
        self._serving_since = None
        # Not its robust connection: each connection goes the way of the first, so what is declared and waited for is the same.
        connection = await self._pika.connect(url, timeout=CONNECT_SECONDS)
        async with connection:
            await self._declare(connection, self._settings.dead_letter_queue, {"x-max-length": MAX_DEAD})
            for name in self._settings.queues:
                await self._declare(connection, name, None)
            try:
                async with asyncio.TaskGroup() as group:
                    for name in self._settings.queues:
                        group.create_task(self._consume(connection, name, group))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _declare(self, connection: AbstractConnection, name: str, arguments: dict[str, Any] | None) -> None:
        """Make the queue as SciCat would, unless it is there: one that a site made otherwise is taken as it is."""
        channel = await connection.channel()
        try:
            await channel.get_queue(name, ensure=True)
        except self._pika.exceptions.ChannelNotFoundEntity:
            again = await connection.channel()  # the broker closed the other one
            await again.declare_queue(name, durable=True, arguments=arguments)
            await again.close()
        else:
            await channel.close()

    async def _consume(self, connection: AbstractConnection, name: str, group: asyncio.TaskGroup) -> None:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.set_qos(prefetch_count=self._settings.prefetch)
        queue: AbstractQueue = await channel.get_queue(name)
        cancelled = asyncio.Event()
        # Of a deleted queue its iterator hears nothing.
        (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(lambda _: cancelled.set())
        async with queue.iterator() as messages:
            group.create_task(_end_when(cancelled, name))
            logger.info("taking jobs from RabbitMQ's queue %s", name)
            self._serving_since = time.monotonic()
            async for message in messages:
                group.create_task(self._one(channel, name, message))
            raise _Ended(f"the connection that served queue {name} is closed")

    async def _one(self, channel: AbstractChannel, name: str, message: AbstractIncomingMessage) -> None:
        """Bring one message to its end: acknowledged, dead-lettered, or given back."""
        until = time.monotonic() + HELD_SECONDS
        for pause in _pauses():
            fault = await self._try(channel, name, message)
            if fault is None:
                return
            logger.warning("message of queue %s is tried again in %.1f s: %s", name, pause, fault)
            await asyncio.sleep(pause)
            if time.monotonic() > until:
                break
        await message.nack(requeue=True)

    async def _try(self, channel: AbstractChannel, name: str, message: AbstractIncomingMessage) -> str | None:
        """None if the message is done with; else what kept it from that."""
        refusal: ArchiverError | None = None
        try:
            job_id = job_id_of(message.body, self._max_bytes)
            await self._take(job_id)
            logger.info("job %s of queue %s is taken", job_id, name)
        except SystemFault as fault:
            return scrub(fault.one_line())
        except ArchiverError as error:
            refusal = error
        except Exception as error:
            # A fault of our own must not lose the message.
            logger.exception("message of queue %s", name)
            return f"unexpected {type(error).__name__}"
        if refusal is not None:
            try:
                await self._bury(channel, name, message, refusal)
            except self._pika.exceptions.DeliveryError as error:
                return f"{self._settings.dead_letter_queue} does not take it: {error}"[:300]
        await message.ack()
        return None

    async def _bury(
        self, channel: AbstractChannel, name: str, message: AbstractIncomingMessage, error: ArchiverError
    ) -> None:
        """Publish it to the dead-letter queue with the reason; the broker confirms before the caller acknowledges."""
        headers = {
            **message.headers,
            "x-archiver-reason": scrub(error.one_line())[:MAX_REASON],
            "x-archiver-error": error.type_name,
            "x-archiver-queue": name,
            "x-archiver-time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        copy = self._pika.Message(
            message.body,
            headers=headers,
            content_type=message.content_type,
            delivery_mode=self._pika.DeliveryMode.PERSISTENT,
        )
        dead = self._settings.dead_letter_queue
        await channel.default_exchange.publish(copy, routing_key=dead)
        logger.warning("message of queue %s went to %s: %s", name, dead, headers["x-archiver-reason"])


class _Ended(Exception):
    """The broker ended a consumer."""


async def _end_when(cancelled: asyncio.Event, name: str) -> None:
    await cancelled.wait()
    raise _Ended(f"the broker no longer serves queue {name}; was it deleted?")


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
