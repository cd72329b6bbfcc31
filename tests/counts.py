"""How often random tests repeat: a quarter of the full count in ``make test``, the full one in ``make test-full``."""

from __future__ import annotations

import os

FULL = bool(os.environ.get("TEST_FULL"))


def often(full: int) -> int:
    """The number of repetitions now, of a test whose kinds of fault a quarter of ``full`` covers."""
    return full if FULL else full // 4
