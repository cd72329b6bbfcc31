"""Live progress of datablocks: a bar per datablock and stage on a terminal, a plain line per finished stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from workflows.visible import size

STAGES = {"pack": "pack", "copy to LTS": "copy", "verify in LTS": "verify"}
"""The stages of a datablock that move bytes, in their order, and how they are called here."""
ORDER = ["queued", "pack", "wait for LTS space", "copy to LTS", "verify in LTS", "verified"]
LEAST_SECONDS = 0.3
"""What ended sooner was looked at too seldom to tell its speed."""


class Bars:
    """Enter it; ``show`` what ``describe_datablock`` says of a datablock, as often as it changes."""

    def __init__(self, of: int, row: Callable[[str, str], None], console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (TextColumn(" {task.description:<11}"), BarColumn(), TextColumn("{task.fields[said]}"))
        self._live = Progress(*columns, console=console, disable=not console.is_terminal)
        self._plain = None if console.is_terminal else row
        self._of = of
        self._tasks: dict[tuple[int, str], TaskID] = {}
        self._since: dict[tuple[int, str], float] = {}
        self._ended: set[tuple[int, str]] = set()

    def __enter__(self) -> Bars:
        self._live.start()
        for n in range(1, self._of + 1):
            for stage, name in STAGES.items():
                self._tasks[n, stage] = self._live.add_task(f"{name:<6} {n}/{self._of}", total=1, said="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, block: dict[str, Any]) -> None:
        """Bring the bars of one datablock to what is known: the stages before its stage are done."""
        n, now = block["n"], ORDER.index(block["stage"]) if block["stage"] in ORDER else 0
        for stage in STAGES:
            key, at = (n, stage), ORDER.index(stage)
            if at == now:
                if block["working"]:  # not: it waits for a slot
                    self._since.setdefault(key, time.monotonic())
                if block["done_bytes"]:
                    self._update(key, block["done_bytes"], max(block["total_bytes"], block["done_bytes"]))
            elif at < now and key not in self._ended:
                self._ended.add(key)
                moved = block["size_bytes"] if stage == "pack" else block["packed_bytes"]
                self._update(key, moved, moved)
                if self._plain and moved:
                    self._plain(STAGES[stage], f"{n}/{self._of}  {size(moved)}")

    def _update(self, key: tuple[int, str], done: int, total: int) -> None:
        seconds = time.monotonic() - self._since.get(key, time.monotonic())
        said = size(done) + (f"  {size(int(done / seconds))}/s" if seconds > LEAST_SECONDS else "")
        self._live.update(self._tasks[key], completed=done, total=max(1, total), said=said)
