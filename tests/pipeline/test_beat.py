"""Heartbeats of a step that runs in a thread."""

from __future__ import annotations

import time

from temporalio.testing import ActivityEnvironment

from activities.running import BEAT_SECONDS, Beat


def test_p5_a_beat_that_is_not_taken_in_time_is_no_error_of_the_step() -> None:
    asked = []

    def too_busy(*details: object) -> None:
        asked.append(details)
        raise TimeoutError

    def step() -> str:
        beat = Beat()
        time.sleep(BEAT_SECONDS * 1.1)
        beat.advance(1)
        return "went on"

    environment = ActivityEnvironment()
    environment.on_heartbeat = too_busy
    assert environment.run(step) == "went on"
    assert len(asked) == 1
