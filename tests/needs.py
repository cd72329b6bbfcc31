"""What a test needs of the machine, and the one line that tells what was not run for want of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable

import pytest

NO_RIGHT = re.compile(r"permission denied|not permitted|superuser|only root", re.IGNORECASE)


def need(*programs: str) -> None:
    """Skip the test, by name of the first program that is not there."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")


def run(*command: str) -> str:
    """Run a tool to its good end; skip the test where the tool is not there, or where we may not mount."""
    need(command[0])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and command[0] == "mount" and NO_RIGHT.search(done.stderr):
        pytest.skip("no right to mount")
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def not_run(skipped: Iterable[pytest.TestReport]) -> str:
    """In one line, which tests were not run and why; empty if all were."""
    reasons: Counter[str] = Counter()
    for report in skipped:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    told = ", ".join(f"{why} ({count})" for why, count in reasons.most_common())
    return f"NOT RUN: {reasons.total()} tests: {told}" if told else ""
