"""How an activity runs: heartbeats on progress, stopping between chunks, and errors that name their side.

Data-moving activities are synchronous and run in threads; they are never interrupted by an exception thrown into the
thread (``no_thread_cancel_exception``), because that may land in a clean-up. Instead every chunk passes ``Beat``,
which says what has moved and raises ``Stopped`` when the activity is cancelled or its worker leaves.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import ParamSpec, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory, CancelledError

from archiver import model as m
from archiver.datablock.events import agent
from archiver.errors import ArchiverError, ContentError, NotRecalled, OwnFault, Refused, StagedLost, Stopped
from archiver.log import scrub
from archiver.progress import uncut
from archiver.write_deadline import WriteDeadline, boot_time, writing_until

P = ParamSpec("P")
R = TypeVar("R")

BEAT_SECONDS = 0.25
"""At most so often the SDK is told; it throttles further what goes to the server."""

CALL_BEAT_SECONDS = 10.0
"""Beat of asynchronous activities, whose every wait has a time limit of its own."""
BENIGN = ApplicationErrorCategory.BENIGN
"""Of what ends an attempt and is no failure: a stop, or something that is to come later."""
BEATS_PER_LIMIT = 5
WRITES_END = 0.5
"""Of the heartbeat's limit, the part after which a step that was not heard of writes nothing more. What is left covers the
last heartbeat that the SDK held back, and the way of the request."""

_said: contextvars.ContextVar[list[m.Heartbeat]] = contextvars.ContextVar("said")
"""What an asynchronous activity said last, to be said again until there is more."""

logger = logging.getLogger("archiver.activities")


def failure(error: Exception, request: object = None) -> Exception:
    """The failure that Temporal records for ``error``: message, type and kind; no stack of ours, no secret.

    It names the dataset and the datablock of the ``request``, where the domain did not know them.
    """
    if isinstance(error, (ApplicationError, CancelledError)):
        return error
    if isinstance(error, Stopped):
        details = activity.cancellation_details()
        if details is not None and details.cancel_requested:
            return CancelledError(scrub(error.one_line()))
        return stopped(scrub(error.one_line()))
    known = error
    if not isinstance(known, ArchiverError):
        logger.exception("unexpected error in %s", activity.info().activity_type)
        known = OwnFault(
            f"unexpected {type(error).__name__}: {error}"[:800],
            next_step="see the worker's log",
            retryable=isinstance(error, OSError) or _never_gives_up(),
        )
    known.dataset = known.dataset or getattr(request, "pid", None)
    known.datablock = known.datablock or getattr(request, "n", None)
    kind = "content" if isinstance(known, ContentError) else "refused" if isinstance(known, Refused) else "system"
    message = scrub(known.one_line())
    info = m.ErrorInfo(
        type=known.type_name,
        kind=kind,
        message=message,
        where=activity.info().activity_type,
        lost=known.lost if isinstance(known, StagedLost) else "",
        datablock=known.datablock or 0,
    )
    return ApplicationError(
        message,
        info.model_dump(),
        type=known.type_name,
        non_retryable=not known.retryable,
        category=BENIGN if isinstance(known, NotRecalled) else ApplicationErrorCategory.UNSPECIFIED,
    )


def stopped(why: str) -> ApplicationError:
    """The failure of an attempt that ended because it had to, to be taken up again. Metrics count it as no failure."""
    logger.info("%s stopped, to be taken up again: %s", activity.info().activity_type, why)
    return ApplicationError(f"stopped, to be taken up again: {why}", type="Stopped", category=BENIGN)


def _never_gives_up() -> bool:
    """Whether this step is tried without end, as those are that must tell SciCat the truth: also a fault of ours may be mended
    by the next version of the worker, and a job that was given up would stay in progress for ever."""
    policy = activity.info().retry_policy
    return policy is not None and policy.maximum_attempts == 0


def told(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of synchronous activities: errors become ``failure``."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return _signed(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  the one place where the domain's errors meet Temporal
            raise failure(error, args[-1] if args else None) from None

    return run


def told_async(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Decorator of asynchronous activities: errors become ``failure``."""

    @functools.wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            async with _heard():
                return _signed(await function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  the one place where the domain's errors meet Temporal
            raise failure(error, args[-1] if args else None) from None
        except asyncio.CancelledError:
            details = activity.cancellation_details()
            if details is None or details.cancel_requested:
                raise
            # The SDK would call it cancelled, and the workflow would take that for somebody's wish.
            gone = details.not_found or details.timed_out
            why = (
                "it stood still, or was cut off, and was given to another attempt" if gone else "the worker shuts down"
            )
            raise stopped(why) from None

    return run


def _signed(result: R) -> R:
    """A result that tells by whom it was made (``Event.agent``) says so."""
    if isinstance(result, m.Wire) and "agent" in type(result).model_fields:
        return result.model_copy(update={"agent": agent()})
    return result


@asynccontextmanager
async def _heard() -> AsyncIterator[None]:
    """Heartbeats of a call that lasts, so that its worker's death is seen at once; a short call sends none.

    What it writes meanwhile is bounded by the same heartbeats (``write_deadline``).
    """

    said: list[m.Heartbeat] = []
    _said.set(said)
    timeout = activity.info().heartbeat_timeout
    limit = timeout.total_seconds() if timeout else math.inf
    pause = min(CALL_BEAT_SECONDS, limit / BEATS_PER_LIMIT)

    async def beat(deadline: WriteDeadline) -> None:
        while True:
            await asyncio.sleep(pause)
            deadline.renew()
            activity.heartbeat(*said)

    with writing_until(WriteDeadline(limit * WRITES_END)) as deadline:
        task = asyncio.create_task(beat(deadline))
        try:
            yield
        finally:
            task.cancel()


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run in a thread, and wait for its end also when cancelled: what it writes must not come after the clean-up."""
    return await uncut(asyncio.to_thread(function, *args, **kwargs))


class Beat:
    """The ``Progress`` of an activity; may be called from any of its threads.

    A synchronous activity makes it in its thread; an asynchronous one gives its ``loop``, where heartbeats must be sent.
    """

    def __init__(self, total_bytes: int = 0, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._done = 0
        self._files = 0
        self._note = ""
        self._total = total_bytes
        limit = activity.info().heartbeat_timeout
        self._limit = limit.total_seconds() if limit else None
        self._heard = boot_time()
        # What ends before its first beat is due costs the server no call.
        self._due = time.monotonic() + BEAT_SECONDS

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        """Count; tell the server when due. Raises ``Stopped`` if the activity is to end."""
        with self._lock:
            self._done += size_bytes
            self._files += files
            now = time.monotonic()
            self._stood_still()
            if now >= self._due:
                self._send(now)

    def note(self, text: str) -> None:
        """Say what is being done or waited for. Raises ``Stopped`` if the activity is to end."""
        with self._lock:
            self._note = text
            now = time.monotonic()
            self._stood_still()
            if now >= self._due:
                self._send(now)

    def _stood_still(self) -> None:
        """Stop an attempt that said nothing for so long that another has taken its place: it may change nothing more."""
        now = boot_time()
        silent, self._heard = now - self._heard, now
        if self._limit is not None and silent > self._limit:
            self._limit = 0.0
            raise Stopped(f"stood still for {silent:.0f} s: another attempt has taken over")

    def _send(self, now: float) -> None:
        self._due = now + BEAT_SECONDS
        beat = m.Heartbeat(done_bytes=self._done, total_bytes=self._total, files=self._files, note=self._note)
        if self._loop is None:
            # The SDK waits 10 s for its event loop: on a machine that is so busy the next beat says it.
            with suppress(TimeoutError):
                self._context.run(activity.heartbeat, beat)
        else:
            self._context[_said][:] = [beat]
            self._loop.call_soon_threadsafe(activity.heartbeat, beat, context=self._context.copy())
        if self._context.run(activity.is_cancelled):
            raise Stopped("told to stop by a cancel or by the worker's shutdown")


@asynccontextmanager
async def beating(note: str = "") -> AsyncIterator[Callable[..., None]]:
    """What an asynchronous activity of many calls does: said when due, and again until there is more; yields how."""
    said = _said.get()
    due = time.monotonic() + BEAT_SECONDS

    def say(**fields: object) -> None:
        nonlocal due
        said[:] = [said[0].model_copy(update=fields)]
        if (now := time.monotonic()) >= due:
            due = now + BEAT_SECONDS
            activity.heartbeat(*said)

    said[:] = [m.Heartbeat(note=note)]
    yield say
