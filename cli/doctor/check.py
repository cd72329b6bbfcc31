"""What a check is, and how all of them run: side by side, each with a time limit, after those that it stands on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from archiver.errors import ArchiverError
from cli.doctor.ground import Ground

T = TypeVar("T")


class Outcome(StrEnum):
    """How a check ended; what was not tried is no success."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Finding:
    """What one check saw. Without a ``remedy`` its check's own is told."""

    outcome: Outcome
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    """It is as it must be."""
    return Finding(Outcome.OK, found)


def warn(found: str, remedy: str = "") -> Finding:
    """It works, and somebody should see to it."""
    return Finding(Outcome.WARN, found, remedy)


def fail(found: str, remedy: str = "") -> Finding:
    """It does not work, or must not be so."""
    return Finding(Outcome.FAIL, found, remedy)


def not_checked(found: str, remedy: str = "") -> Finding:
    """It could not be tried, or must not be."""
    return Finding(Outcome.NOT_CHECKED, found, remedy)


@dataclass(frozen=True)
class Check:
    """One line of the report. ``tries`` and ``remedy`` stand in docs/doctor.md too."""

    name: str
    tries: str
    remedy: str
    run: Callable[[Ground], Awaitable[Finding]]
    needs: tuple[str, ...] = ()
    """Checks without whose success this one would only repeat their failure."""
    after: tuple[str, ...] = ()
    """Checks whose finding it uses, whatever that is."""
    patience: float = 1.0
    """How many times the usual limit it may take."""
    wanted: Callable[[Ground], bool] = lambda ground: True
    """Whether this system needs it; without, there is no line."""


@dataclass(frozen=True)
class Result:
    """A check and what it saw."""

    check: Check
    finding: Finding
    seconds: float = 0.0

    @property
    def remedy(self) -> str:
        """What mends it; nothing where nothing is to be mended."""
        outcome = self.finding.outcome
        return self.finding.remedy or (self.check.remedy if outcome in (Outcome.FAIL, Outcome.WARN) else "")

    @property
    def stands(self) -> bool:
        """Whether others can stand on it."""
        return self.finding.outcome in (Outcome.OK, Outcome.WARN)


async def look(checks: Sequence[Check], ground: Ground, seconds: float) -> list[Result]:
    """Run them; results in their order. Nothing that a check raises ends another."""
    tasks: dict[str, asyncio.Task[Result]] = {}

    async def one(check: Check) -> Result:
        for name in (*check.after, *check.needs):
            other = await tasks[name]
            if name in check.needs and not other.stands:
                return Result(check, not_checked(f"needs: {name}"))
        began = time.monotonic()
        finding = await _within(check, ground, seconds)
        return Result(check, finding, time.monotonic() - began)

    for check in checks:
        if check.wanted(ground):
            tasks[check.name] = asyncio.create_task(one(check))
    return list(await asyncio.gather(*tasks.values()))


async def _within(check: Check, ground: Ground, seconds: float) -> Finding:
    try:
        return await asyncio.wait_for(check.run(ground), seconds * check.patience)
    except TimeoutError:
        return fail(f"no answer within {seconds * check.patience:g} s")
    except ArchiverError as error:
        found = f"; found {error.found}" if error.found else ""
        return fail(f"{error.what}{found}", (error.next_step or "").removeprefix("retried; "))
    except Exception as error:  # noqa: BLE001  a check that breaks must not hide what the others see
        return fail(f"unexpected {type(error).__name__}: {error}"[:300])


async def in_thread(work: Callable[[], T]) -> T:
    """``work`` in a daemon thread: one that hangs with a server or a mount does not keep the command from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  carried to whoever waits
            problem = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return await done
