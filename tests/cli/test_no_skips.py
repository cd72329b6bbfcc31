"""In CI a test that did not run is a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import environment

PASSES = "def test_passes():\n    assert True\n"
SKIPS = "import pytest\n\ndef test_skips():\n    pytest.skip('no such server here')\n"


@pytest.mark.parametrize(
    ("flags", "text", "code"), [([], SKIPS, 0), (["--no-skips"], SKIPS, 1), (["--no-skips"], PASSES, 0)]
)
def test_a_skipped_test_is_red_where_it_is_asked_for(tmp_path: Path, flags: list[str], text: str, code: int) -> None:
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
    ended = subprocess.run([*command, *flags, tmp_path], env=environment(), capture_output=True, text=True, timeout=60)
    assert ended.returncode == code, ended.stdout
    assert ("NOT RUN" in ended.stdout) == (code != 0)
