"""One RabbitMQ for all tests here, beside a system as the pipeline's tests have it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipeline.conftest import system
from tests.rabbitmq.broker import Broker, missing

__all__ = ["system"]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """It starts in about 8 s. Where there is none, the tests are skipped."""
    if why := missing():
        pytest.skip(why)
    made = Broker(tmp_path_factory.mktemp("rabbitmq"))
    try:
        yield made.start()
    finally:
        made.stop()
