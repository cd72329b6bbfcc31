"""Whose clock differs from this machine's, and by how much, as far as an answer can tell."""

from __future__ import annotations

from datetime import timedelta
from email.utils import parsedate_to_datetime

import httpx

from cli.doctor.check import Finding, fail, not_checked, ok, warn
from cli.doctor.ground import Clock, Ground, now

WARN_SECONDS = 5.0
FAIL_SECONDS = 60.0
"""S3 refuses signatures from 15 minutes on; long before, times in logs, receipts and links are not true."""


async def ask(http: httpx.AsyncClient, url: str, ground: Ground, server: str) -> httpx.Response:
    """GET ``url``, and note the Date of the answer as ``server``'s clock. Raises ``httpx.HTTPError``."""
    asked = now()
    answer = await http.get(url)
    received = now()
    try:
        ground.clocks[server] = Clock(parsedate_to_datetime(answer.headers.get("date", "")), asked, received)
    except (TypeError, ValueError):
        ground.clocks.pop(server, None)
    return answer


async def date_of(server: str, ground: Ground) -> Finding:
    """What ``ask`` noted."""
    clock = ground.clocks.get(server)
    if clock is None or clock.date.tzinfo is None:
        return not_checked("its answers carry no Date")
    # The header has whole seconds, cut.
    return judged(clock.date - clock.received, clock.date + timedelta(seconds=1) - clock.asked)


def judged(least: timedelta, most: timedelta) -> Finding:
    """What to think of a clock that is ahead of ours by something between these two."""
    low, high = least.total_seconds(), most.total_seconds()
    off = 0.0 if low <= 0 <= high else min(low, high, key=abs)
    middle = (low + high) / 2
    if abs(off) <= WARN_SECONDS:
        return ok(f"{middle:+.1f} s")
    text = f"{middle:+.1f} s against this machine"
    return fail(text) if abs(off) > FAIL_SECONDS else warn(text)
