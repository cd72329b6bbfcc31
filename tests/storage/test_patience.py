"""A source that stands still is waited for, said to be waited for, and left when told to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from archiver.errors import Stopped
from archiver.patience import patiently


def never(seconds: float) -> None:
    raise AssertionError(f"waited for {seconds} s")


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 3, 7, 100])
def test_items_come_as_they_are(batch: int, count: int) -> None:
    assert list(patiently(range(count), never, batch=batch, look_seconds=60)) == list(range(count))


def test_nothing_is_asked_for_ahead() -> None:
    asked: list[int] = []

    def source() -> Iterator[int]:
        for n in range(5):
            asked.append(n)
            yield n

    for n in patiently(source(), never, look_seconds=60):
        assert asked == list(range(n + 1))


def test_what_the_source_raises_is_raised() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError(5, "lost")

    items = patiently(source(), never, look_seconds=60)
    assert next(items) == 1
    with pytest.raises(OSError, match="lost"):
        next(items)


def test_whoever_leaves_early_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.set()

    items = patiently(source(), never, look_seconds=60)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert closed.is_set()


def test_a_source_that_stands_still_is_said_to_and_left_when_told_to_stop() -> None:
    moves, closed, said = threading.Event(), threading.Event(), []

    def source() -> Iterator[int]:
        try:
            moves.wait()
            yield 1
        finally:
            closed.set()

    def waiting(seconds: float) -> None:
        said.append(seconds)
        if len(said) == 3:
            raise Stopped("told to stop")

    with pytest.raises(Stopped):
        next(patiently(source(), waiting, look_seconds=0.01))
    assert said == sorted(said)
    assert not closed.is_set()
    moves.set()
    assert closed.wait(60)
