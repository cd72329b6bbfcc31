"""The table of steps: retries last as long as the setting says."""

from __future__ import annotations

import pytest

from archiver import model as m
from workflows import steps


@pytest.mark.parametrize("seconds", [0.5, 1, 2, 3, 127, 128, 3600, 72 * 3600])
def test_system_errors_are_retried_for_as_long_as_the_setting_says_and_not_longer_than_one_pause_more(
    seconds: float,
) -> None:
    attempts = steps.PACK.retry(m.Policy(give_up_seconds=seconds)).maximum_attempts
    pauses = [
        min(steps.FIRST_PAUSE_SECONDS * 2 ** min(n, 20), steps.LONGEST_PAUSE_SECONDS) for n in range(attempts - 1)
    ]
    assert sum(pauses[:-1]) < seconds <= sum(pauses)


def test_what_must_be_told_is_retried_without_end() -> None:
    assert steps.FINISH_JOB.retry(m.Policy(give_up_seconds=1)).maximum_attempts == 0
