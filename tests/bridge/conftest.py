"""A system as the pipeline's tests have it, and the bridge as the process that ``archiver bridge`` is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.bridge.edge import Bridge
from tests.pipeline.conftest import make_system, served, system  # noqa: F401  fixtures
from tests.pipeline.system import System


@pytest.fixture(scope="module")
async def bridge(system: System) -> AsyncIterator[Bridge]:  # noqa: F811
    """One bridge for the tests that leave it as it is. No worker serves unless a test does so."""
    it = Bridge(system)
    try:
        yield it.start()
    finally:
        await it.stop()
