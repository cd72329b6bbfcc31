"""Restores at moto, which by itself ends them at once: here they last until a test ends them, as Glacier's last for hours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.s3.models import FakeKey


class Restores:
    """``asked``: key and days of every request; ``ended``: whether what was asked for can be read."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.ended = False


@contextmanager
def restores() -> Iterator[Restores]:
    """Take over the restores of every moto server of this process."""
    found = Restores()
    asked = FakeKey.restore

    def restore(key: FakeKey, days: int) -> None:
        found.asked.append((key.name, days))
        asked(key, days)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeKey, "restore", restore)
        patch.setattr(FakeKey, "status", property(lambda key: "RESTORED" if found.ended else "IN_PROGRESS"))
        yield found
