"""A system for each test module: its own namespace on the shared Temporal server, its own buckets, LTS and SciCat."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from archiver.catalogue.standin.state import Version
from archiver.settings import S3Settings
from tests.pipeline.system import Overrides, System

MakeSystem = Callable[..., Awaitable[System]]


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings, scicat_version: Version
) -> AsyncIterator[System]:
    """One system, without workers: a test serves the queues as it needs (``async with system.workers()``)."""
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, version=scicat_version)
    try:
        yield await made.start()
    finally:
        await made.stop()


@pytest.fixture(scope="module")
async def served(system: System) -> AsyncIterator[System]:
    """The same system with all queues served in this process, for tests that need no worker of their own."""
    async with system.workers():
        yield system


@pytest.fixture
async def make_system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings, scicat_version: Version
) -> AsyncIterator[MakeSystem]:
    """Makes systems of a test's own, with other settings; stopped with the test."""
    async with AsyncExitStack() as stack:

        async def make(overrides: Overrides | None = None) -> System:
            made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, overrides, scicat_version)
            stack.push_async_callback(made.stop)
            return await made.start()

        yield make
