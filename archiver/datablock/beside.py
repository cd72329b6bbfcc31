"""Work on a stream in a thread beside: bounded, in order, the first error wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Left(Exception):
    """What is fed no longer has a taker: the context was left. Nobody sees it who waits for an outcome."""


class Beside:
    """Gives pieces to ``work`` in a thread of its own, at most ``ahead`` of them unfinished. A context manager.

    ``feed`` returns once fewer than ``ahead`` earlier pieces are unfinished. An error of ``work`` ends the thread and is
    raised by every later ``feed`` and by ``finish``. Leaving the context ends the thread, whatever is unfinished; a
    ``feed`` from another thread then raises. ``end`` is the last thing that the thread does, however it ends.
    """

    def __init__(
        self, name: str, work: Callable[[memoryview], None], *, ahead: int, end: Callable[[], None] = lambda: None
    ) -> None:
        self._work = work
        self._end = end
        self._todo: SimpleQueue[memoryview | None] = SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._error: BaseException | None = None
        self._left = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left = True
        self._todo.put(None)
        # Whoever waits to feed this thread must not wait for a thread that has ended.
        self._room.release()
        self._thread.join()

    def feed(self, piece: memoryview) -> None:
        """Hand over the next piece. Raises the error of an earlier one."""
        self._room.acquire()
        if self._error is not None or self._left:
            self._room.release()
            raise self._error or Left
        self._todo.put(piece)

    def finish(self) -> None:
        """Wait until every piece is worked on. Raises the error of the first that failed."""
        self._todo.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (piece := self._todo.get()) is not None and not self._left:
                self._work(piece)
                self._room.release()
        except BaseException as error:  # noqa: BLE001  carried to the thread that feeds
            self._error = error
            self._room.release()
        finally:
            self._end()
