"""Quick tries without their pauses: how often is what matters here, not how long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stamina

from archiver.catalogue import client
from archiver.catalogue.session import QUICK_TRIES
from archiver.catalogue.standin.state import VERSIONS
from tests.catalogue.place import Place


@pytest.fixture(autouse=True, scope="package")
def no_pauses() -> Iterator[None]:
    before = client.PAUSE_SECONDS
    client.PAUSE_SECONDS = 0
    with stamina.set_testing(True, attempts=QUICK_TRIES, cap=True):
        yield
    client.PAUSE_SECONDS = before


@pytest.fixture(params=VERSIONS)
def place(request: pytest.FixtureRequest) -> Place:
    """A stand-in SciCat of one's own, in each of its versions."""
    return Place(version=request.param)
