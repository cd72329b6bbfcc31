"""Systems on real parts, as the pipeline's tests have them, and the ``archiver`` command beside them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.cli.running import archiver
from tests.operators.inside import inside
from tests.pipeline.conftest import make_system, served, system
from tests.pipeline.system import System

__all__ = ["make_system", "served", "system"]

Run = Callable[..., Coroutine[Any, Any, subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="session")
def run() -> Run:
    """``archiver ARGUMENTS`` against a system, while its workers serve in this process.

    Another process where ``more`` is to be in its environment; else in this one, for a start of Python costs more than most
    commands do.
    """

    async def one(system: System, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        if not more:
            ended = await inside(system.config, *arguments)
            return subprocess.CompletedProcess(arguments, ended.code, ended.out, ended.err)
        flags = [argument for argument in arguments if argument == "--json"]
        rest = [argument for argument in arguments if argument != "--json"]
        return await asyncio.to_thread(archiver, *flags, "-c", system.config, *rest, cwd=system.folder, **more)

    return one
