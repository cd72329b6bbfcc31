"""What the demo shows of a datablock's way."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from cli.bars import Bars

MIB = 2**20


def block(n: int, stage: str, **known: Any) -> dict[str, Any]:
    sizes = dict.fromkeys(("done_bytes", "total_bytes", "size_bytes", "packed_bytes"), 0)
    return {"n": n, "stage": stage, "working": True, "note": "", **sizes, **known}


def plain(*shown: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    console = Console(file=io.StringIO(), force_terminal=False)
    with Bars(2, lambda label, text: rows.append((label, text)), console) as bars:
        for each in shown:
            bars.show(each)
    return rows


PACKED = {"size_bytes": 100 * MIB, "packed_bytes": 40 * MIB}


def test_each_finished_stage_is_one_plain_line_with_the_bytes_it_moved() -> None:
    rows = plain(
        block(1, "queued"),
        block(1, "pack", done_bytes=3 * MIB),
        block(1, "copy to LTS", **PACKED),
        block(1, "copy to LTS", **PACKED, done_bytes=MIB),
        block(1, "verified", **PACKED),
        block(1, "verified", **PACKED),
    )
    assert rows == [("pack", "1/2  100.0 MiB"), ("copy", "1/2  40.0 MiB"), ("verify", "1/2  40.0 MiB")]


def test_stages_that_were_never_seen_are_told_once_they_are_past() -> None:
    assert [label for label, _ in plain(block(2, "verified", **PACKED))] == ["pack", "copy", "verify"]


def test_a_stage_that_is_not_known_here_is_no_error() -> None:
    assert plain(block(1, "something new")) == []


def test_on_a_terminal_there_is_a_bar_per_datablock_and_stage() -> None:
    screen = io.StringIO()
    with Bars(2, lambda label, text: None, Console(file=screen, force_terminal=True, width=100)) as bars:
        bars.show(block(1, "copy to LTS", **PACKED, done_bytes=10 * MIB, total_bytes=40 * MIB))
    shown = screen.getvalue()
    for name in ("pack   1/2", "copy   1/2", "verify 1/2", "pack   2/2", "copy   2/2", "verify 2/2"):
        assert name in shown
    assert "100.0 MiB" in shown
    assert "10.0 MiB" in shown
