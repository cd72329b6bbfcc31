"""The healthy system, once a session, and the proof after every test that the doctor left nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from archiver.catalogue.standin.app import Account, StandInSettings
from cli.servers import free_port
from tests.cli.dev import Dev
from tests.doctor.ward import Ward
from tests.pipeline.faulty_s3 import FaultyS3
from tests.pipeline.system import PASSWORD, USER, StandInServer

Catalogue = Callable[..., StandInServer]


@pytest.fixture(scope="session")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """``archiver dev`` with one dataset."""
    dev = Dev(tmp_path_factory.mktemp("dev"))
    try:
        dev.start()
        yield Ward(dev, tmp_path_factory.mktemp("settings"))
    finally:
        dev.end()


@pytest.fixture(autouse=True)
def nothing_left_behind(ward: Ward) -> Iterator[None]:
    """Whatever a test does with the doctor: buckets, LTS and SciCat are afterwards as they were before the first."""
    yield
    assert ward.state() == ward.healthy


@pytest.fixture
def s3_proxy(ward: Ward) -> Iterator[FaultyS3]:
    """Before the S3 server; faults may be added."""
    proxy = FaultyS3(ward.dev.info["s3_endpoint"]).start()
    yield proxy
    proxy.stop()


@pytest.fixture
def scicat_proxy(ward: Ward) -> Iterator[FaultyS3]:
    """Before SciCat; faults may be added."""
    proxy = FaultyS3(ward.dev.info["scicat_url"]).start()
    yield proxy
    proxy.stop()


@pytest.fixture
def catalogue() -> Iterator[Catalogue]:
    """Makes stand-ins of SciCat in this process, with accounts of their own beside an admin."""
    made: list[StandInServer] = []

    def make(*accounts: Account) -> StandInServer:
        settings = StandInSettings(accounts=[Account(USER, PASSWORD, admin=True), *accounts])
        made.append(StandInServer(free_port(), settings).start())
        return made[-1]

    yield make
    for one in made:
        one.stop()
