"""Tests that send SIGINT hold also where the suite was started with SIGINT ignored."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from tests.spawn import spawn

WAITS = "import sys, time; print('ready', flush=True); time.sleep(60)"


@pytest.fixture
def ignored() -> Iterator[None]:
    """As ``make test &`` in a script starts the suite."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_process_of_a_test_can_be_interrupted_where_the_suite_cannot(ignored: None) -> None:
    process = spawn([sys.executable, "-c", WAITS], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
