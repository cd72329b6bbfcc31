"""Real servers for all tests: a Temporal dev server, an S3 server over HTTP. Started once a session, on free ports."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError

from archiver.catalogue.standin.state import Version
from archiver.settings import S3Settings
from cli import servers
from tests.needs import not_run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scicat", default="", help="URL of a SciCat for tests/live, instead of the stand-in")
    parser.addoption("--no-skips", action="store_true", help="a test that did not run is a failure (CI)")


LONGEST = (
    "cli/test_dev.py",
    "sweep/test_jobs.py",
    "pipeline/test_late_writes.py",
    "pipeline/test_crashes.py",
    "pipeline/test_bad_servers.py",
    "pipeline/test_retrieve_crashes.py",
    "sweep/test_leftovers.py",
    "pipeline/test_cancel.py",
    "doctor/test_faults.py",
    "workflows/test_orchestration.py",
    "pipeline/test_retrieve.py",
    "pipeline/test_late_staging.py",
    "pipeline/test_retrieve_cancel.py",
    "bridge/test_outages.py",
    "workflows/test_fairness.py",
    "storage/test_late.py",
    "pipeline/test_retrieve_secrets.py",
    "pipeline/test_retrieve_waits.py",
    "pipeline/test_retrieve_flips.py",
    "operators/test_status.py",
    "pipeline/test_twice.py",
    "rabbitmq/test_rabbitmq.py",
    "pipeline/test_sources_last.py",
    "operators/test_hand.py",
    "cli/test_demo.py",
    "pipeline/test_bad_input.py",
)
"""Files by the time they take. They come first, so that side by side none of them is left for the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--no-skips") and skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line: what was not run, and why."""
    if line := not_run(skipped(config)):
        print(line, "(a failure here)" if config.getoption("--no-skips") else "")


def skipped(config: pytest.Config) -> list[pytest.TestReport]:
    """The reports of tests that did not run; none in a process that pytest-xdist started."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [] if reporter is None else list(reporter.stats.get("skipped", ()))


async def until_answers(address: str) -> Client:
    """A client of a Temporal server that may only just have begun to listen, once its namespace answers."""
    for _ in range(900):
        try:
            client = await Client.connect(address, data_converter=pydantic_data_converter)
            await client.count_workflows()
            return client
        except (RuntimeError, RPCError):
            await asyncio.sleep(0.1)
    raise AssertionError(f"the Temporal server at {address} has no namespace after 90 s")


@pytest.fixture(scope="session")
async def temporal_address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A real Temporal dev server, in memory."""
    port = servers.free_port()
    child = servers.temporal_dev_server(tmp_path_factory.mktemp("temporal"), port=port, in_memory=True).start()
    try:
        child.wait_for_port(port)
        await until_answers(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        child.stop()


@pytest.fixture(scope="session")
async def temporal_client(temporal_address: str) -> Client:
    """A client of it."""
    return await until_answers(temporal_address)


@pytest.fixture(scope="module")
def scicat_version() -> Version:
    """Of the stand-in SciCat; a package's tests may ask for others."""
    return "5.2"


@pytest.fixture(scope="session")
def s3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the S3 server keeps its buckets."""
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="session")
def s3(s3_folder: Path) -> Iterator[S3Settings]:
    """A real S3 server over HTTP (versitygw)."""
    port, access, secret = servers.free_port(), "test" + secrets.token_hex(4), secrets.token_urlsafe(16)
    child = servers.s3_server(s3_folder, port=port, access_key=access, secret_key=secret).start()
    try:
        child.wait_for_port(port)
        yield S3Settings.model_validate(
            {"endpoint": f"http://127.0.0.1:{port}", "access_key": access, "secret_key": SecretStr(secret)}
        )
    finally:
        child.stop()


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Settings]:
    """An S3 server in this process: it takes every key, as S3 does and a server on directories does not."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Settings.model_validate(
        {"endpoint": f"http://{host}:{port}", "access_key": "moto", "secret_key": SecretStr("moto-secret")}
    )
    server.stop()
