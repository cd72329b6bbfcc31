"""Run the ``archiver`` command as people do: another process, an environment of its own, no settings file around."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cli.programs import ROOT
from cli.servers import clean_environment
from tests.forking import run

SECONDS = 300
AT_START = ("PYTHON", "LC_", "LANG")
"""Variables that an interpreter heeds when it starts, and a forked one never."""


def environment(**more: str) -> dict[str, str]:
    """Ours without anything that steers the archiver, but for the cache that holds the built servers."""
    kept = {key: os.environ[key] for key in ("ARCHIVER_CACHE_DIR",) if key in os.environ}
    clean = clean_environment(PYTHONPATH=str(ROOT))
    clean.pop("PYTHONUNBUFFERED", None)  # people have buffered output; what is lost in a buffer must be seen here
    return {**clean, **kept, **more}


def command(*arguments: object) -> list[str]:
    """The command line of ``archiver ARGUMENTS``."""
    return [sys.executable, "-m", "cli.main", *map(str, arguments)]


def archiver(*arguments: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """``archiver ARGUMENTS`` in ``cwd`` with ``more`` in its environment, run to its end."""
    words = [str(argument) for argument in arguments]
    forked = None
    if not any(name.startswith(AT_START) for name in more):
        forked = run("cli.main:run", words, cwd=cwd, env=environment(**more), seconds=SECONDS)
    return forked or subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=SECONDS
    )
