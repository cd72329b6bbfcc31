"""Systems on real parts, as the pipeline's tests have them, and the ``archiver`` command as another process beside them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.cli.running import archiver
from tests.pipeline.conftest import make_system, served, system
from tests.pipeline.system import System

__all__ = ["make_system", "served", "system"]

Run = Callable[..., Coroutine[Any, Any, subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="session")
def run() -> Run:
    """``archiver ARGUMENTS`` against a system, while its workers serve in this process."""

    async def one(system: System, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        flags = [argument for argument in arguments if argument == "--json"]
        rest = [argument for argument in arguments if argument != "--json"]
        return await asyncio.to_thread(archiver, *flags, "-c", system.config, *rest, cwd=system.folder, **more)

    return one
