"""The live suite runs against ``--scicat URL``, or against the stand-in in each of its versions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from archiver.catalogue.standin.state import VERSIONS
from tests.live.backend import Backend, real, standin


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        url = metafunc.config.getoption("--scicat")
        metafunc.parametrize("backend", [url] if url else VERSIONS, indirect=True, scope="module")


@pytest.fixture(scope="module")
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """One backend for a module's tests."""
    url = request.config.getoption("--scicat")
    made, server = (real(url), None) if url else standin(request.param)
    try:
        yield await made.open()
    finally:
        await made.close()
        if server is not None:
            server.stop()
