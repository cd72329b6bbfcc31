"""Waiting for a source that may stand still for hours (a tape recall) or for good: heard of every second, and stoppable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")

LOOK_SECONDS = 1.0


def patiently(
    items: Iterable[T], waiting: Callable[[float], None], *, batch: int = 1, look_seconds: float = LOOK_SECONDS
) -> Iterator[T]:
    """The same items in the same order, asked for in a thread beside, ``batch`` of them at a time and never ahead.

    While none comes, ``waiting`` is told every ``look_seconds`` for how many seconds; what it raises (``Stopped``) is raised
    here at once. A source that still stands then is left to its thread, which closes it when it moves again: it must only
    read. What the source raises is raised here.
    """
    asked: SimpleQueue[bool] = SimpleQueue()
    told: SimpleQueue[list[T] | BaseException] = SimpleQueue()

    def ask() -> None:
        source = iter(items)
        try:
            while asked.get():
                told.put(list(islice(source, batch)))
        except BaseException as error:  # noqa: BLE001  carried to the thread that asks
            told.put(error)
        finally:
            if (close := getattr(source, "close", None)) is not None:
                close()

    thread = threading.Thread(target=ask, name="patiently", daemon=True)
    thread.start()
    stands = False
    try:
        while True:
            asked.put(True)
            stands = True
            some = _answer(told, waiting, look_seconds)
            stands = False
            if isinstance(some, BaseException):
                raise some
            yield from some
            if len(some) < batch:
                return
    finally:
        asked.put(False)
        if not stands:
            thread.join()


def _answer(
    told: SimpleQueue[list[T] | BaseException], waiting: Callable[[float], None], look_seconds: float
) -> list[T] | BaseException:
    since = time.monotonic()
    while True:
        try:
            return told.get(timeout=look_seconds)
        except Empty:
            waiting(time.monotonic() - since)
