"""A step that stood still (SIGSTOP, a paused machine) sends no request that was prepared before: others may have its work.

Temporal gives a step to another worker once it has heard nothing of it for the heartbeat's limit. Then a second job may
come and end, and a late ``started`` or ``inProgress`` would stand over its result. So whoever is about to write the bytes
of a request asks ``may_write`` first. The time since the step was last heard of counts, on a clock that goes on while the
process, or the machine, stands still.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archiver.errors import Stopped


def boot_time() -> float:
    """Seconds on a clock that goes on while the process is stopped and while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WriteDeadline:
    """Until when a step may write: ``seconds`` after it was last heard of. Once over, it stays over."""

    def __init__(self, seconds: float, clock: Callable[[], float] = boot_time) -> None:
        self._seconds = seconds
        self._clock = clock
        self._heard = clock()
        self._silent = 0.0

    def renew(self) -> None:
        """The step is heard of now. Too late after a silence: another attempt may have begun meanwhile."""
        if not self._is_over():
            self._heard = self._clock()

    def check(self) -> None:
        """Raises ``Stopped`` if it is over."""
        if self._is_over():
            raise Stopped(
                f"stood still for {self._silent:.0f} s: another attempt may have taken over, so nothing more is written"
            )

    def _is_over(self) -> bool:
        if not self._silent and (silent := self._clock() - self._heard) > self._seconds:
            self._silent = silent
        return self._silent > 0


_current: contextvars.ContextVar[WriteDeadline | None] = contextvars.ContextVar("write_deadline", default=None)


@contextmanager
def writing_until(deadline: WriteDeadline) -> Iterator[WriteDeadline]:
    """``deadline`` holds for every write within the context, also in the threads and tasks that are started there."""
    before = _current.set(deadline)
    try:
        yield deadline
    finally:
        _current.reset(before)


def may_write() -> None:
    """Raises ``Stopped`` if the deadline of the step that calls is over. Outside of steps there is none."""
    if (deadline := _current.get()) is not None:
        deadline.check()
