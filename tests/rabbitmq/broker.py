"""A real RabbitMQ as a process of our own: free ports, a directory of its own, stopped by pid. Debian's package runs nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from archiver.settings import RabbitMQSettings, Settings
from bridge.rabbitmq import Take, consume
from cli.servers import Child, clean_environment, free_port

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The program itself: the one on the PATH turns to a service's account and directories."""


def missing() -> str:
    """Why it cannot run here; empty if it can."""
    if not SERVER.is_file() or shutil.which("epmd") is None:
        return "no RabbitMQ"
    return ""


class Broker:
    """``start``, ``kill``, ``start`` again with all that was durable; ``stop``."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        distribution, names = free_port(), free_port()
        (folder / "plugins").write_text("[].")
        (folder / "rabbitmq.conf").write_text("loopback_users.guest = true\n")
        environment = clean_environment(
            HOME=str(folder),  # its cookie
            ERL_EPMD_PORT=str(names),
            ERL_EPMD_ADDRESS="127.0.0.1",
            RABBITMQ_NODENAME=f"t{self.port}@localhost",
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_DIST_PORT=str(distribution),
            RABBITMQ_MNESIA_BASE=str(folder / "mnesia"),
            RABBITMQ_LOG_BASE=str(folder / "log"),
            RABBITMQ_LOGS="-",
            RABBITMQ_PID_FILE=str(folder / "pid"),
            RABBITMQ_CONF_ENV_FILE=str(folder / "none"),
            RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq.conf"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "plugins"),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 1:1",
            RUNNING_UNDER_SYSTEMD="true",  # the server itself is the process, with no shell around it
        )
        # Ours, so that the server starts none that would outlive it.
        epmd = shutil.which("epmd") or "epmd"
        self._names = Child("epmd", [epmd, "-port", str(names)], folder / "epmd.log", environment)
        self._names_port = names
        self._server = Child("RabbitMQ", [str(SERVER)], folder / "rabbitmq.log", environment)

    @property
    def url(self) -> str:
        """With its only account, which no other machine may use."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> Broker:
        """Until it listens."""
        if self._names.exit_code is not None or self._names.started == 0.0:
            self._names.start().wait_for_port(self._names_port)
        self._server.start().wait_for_port(self.port, seconds=120)
        return self

    def kill(self) -> None:
        """As a crash; what is durable stays."""
        self._server.kill()

    def stop(self) -> None:
        """Both processes."""
        self._server.stop()
        self._names.stop()

    def settings(self, of: Settings, *queues: str, **more: Any) -> Settings:
        """``of`` with this broker and these queues; the dead letters of the first lie in ``<queue>.dead``."""
        rabbitmq = RabbitMQSettings.model_validate(
            {"url": self.url, "queues": queues, "dead_letter_queue": f"{queues[0]}.dead", **more}
        )
        return of.model_copy(update={"rabbitmq": rabbitmq})

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """Of a plain connection, nothing of ours."""
        async with await aio_pika.connect(self.url) as connection:
            yield await connection.channel()

    async def publish(self, queue: str, document: Any, *, times: int = 1) -> None:
        """As SciCat does: queue and topic exchange durable, bound, persistent. ``bytes`` go as they are."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        async with self.channel() as channel:
            declared = await channel.declare_queue(queue, durable=True)
            exchange = await channel.declare_exchange("jobs.write", aio_pika.ExchangeType.TOPIC, durable=True)
            await declared.bind(exchange, f"key.{queue}")
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            for _ in range(times):
                await exchange.publish(message, f"key.{queue}")

    async def ready(self, queue: str) -> int:
        """Messages that lie in the queue and are in nobody's hand."""
        async with self.channel() as channel:
            found = await channel.get_queue(queue, ensure=True)
            return found.declaration_result.message_count or 0

    async def there(self, queue: str) -> bool:
        """Whether there is such a queue."""
        try:
            await self.ready(queue)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return True

    async def seen(self, look: Callable[[], Awaitable[Any]], what: str) -> Any:
        """What ``look`` gives once it is true; not asked as often as a condition in this process."""
        for _ in range(1200):
            if found := await look():
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(f"not seen in two minutes: {what}")

    async def given_back(self, queue: str) -> None:
        """Until a message lies there and is in nobody's hand."""
        await self.seen(lambda: self.ready(queue), f"a message in {queue}")

    async def next_of(self, queue: str) -> AbstractIncomingMessage:
        """The next message of a queue, once there is one; it is taken out."""
        await self.seen(lambda: self.there(queue), queue)
        async with self.channel() as channel:
            found = await channel.get_queue(queue)
            message = await self.seen(lambda: found.get(fail=False), f"a message in {queue}")
            await message.ack()
            return message


@asynccontextmanager
async def consuming(settings: Settings, take: Take) -> AsyncIterator[asyncio.Task[None]]:
    """Our consumer while the context lasts; whether it has stopped is for the caller to see."""
    task = asyncio.create_task(consume(settings, take))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
