"""In CI a test that did not run is a failure; elsewhere the last line tells what was not run, and why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import environment

PASSES = "def test_passes():\n    assert True\n"
SKIPS = """
from tests.needs import need

def test_needs_a_tool():
    need("sh", "strace-that-nobody-has")

def test_needs_it_too():
    need("strace-that-nobody-has")

def test_needs_another():
    import pytest
    pytest.skip("no RabbitMQ")
"""
LINE = "NOT RUN: 3 tests: no strace-that-nobody-has (2), no RabbitMQ (1)"


@pytest.mark.parametrize("side_by_side", [[], ["-n", "2"]], ids=["one process", "two"])
@pytest.mark.parametrize(
    ("flags", "text", "code"), [([], SKIPS, 0), (["--no-skips"], SKIPS, 1), (["--no-skips"], PASSES, 0)]
)
def test_the_last_line_tells_what_was_not_run_and_ci_is_red(
    tmp_path: Path, flags: list[str], text: str, code: int, side_by_side: list[str]
) -> None:
    (tmp_path / "test_it.py").write_text(PASSES + text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
    ]
    ended = subprocess.run(
        [*command, *flags, *side_by_side, tmp_path], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == code, ended.stdout
    last = ended.stdout.rstrip().splitlines()[-1]
    if text == SKIPS:
        assert last == (f"{LINE} (a failure here)" if code else LINE)
    else:
        assert "NOT RUN" not in ended.stdout
