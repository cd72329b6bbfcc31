"""A SciCat behind the certificate of a private authority: believed only by who was told to."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from archiver.catalogue.client import SciCat
from archiver.catalogue.line import Line
from archiver.errors import CatalogueFault, SettingsInvalid
from cli.servers import free_port
from tests.catalogue.place import Place, scicat_settings
from tests.needs import need


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed one for 127.0.0.1; its key lies beside it."""
    need("openssl")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=scicat"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "scicat.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "scicat.pem"


@pytest.fixture
def url(certificate: Path) -> Iterator[str]:
    """The stand-in over TLS."""
    port = free_port()
    files = {"ssl_certfile": str(certificate), "ssl_keyfile": str(certificate.with_name("key.pem"))}
    server = uvicorn.Server(uvicorn.Config(Place().app, host="127.0.0.1", port=port, log_level="error", **files))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"https://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


BOTH_WAYS = pytest.mark.parametrize("line", [lambda settings: None, Line], ids=["workers", "bridge"])
"""The transport of the workers' client, and that of the bridge's."""


@BOTH_WAYS
async def test_the_authority_that_the_settings_name_is_believed(url: str, certificate: Path, line: Any) -> None:
    settings = scicat_settings(url=url, ca_file=certificate)
    async with SciCat(settings, transport=line(settings)) as scicat:
        assert (await scicat.whoami())["username"] == "archiver"


@BOTH_WAYS
async def test_another_is_not(url: str, line: Any) -> None:
    settings = scicat_settings(url=url)
    async with SciCat(settings, transport=line(settings)) as scicat:
        with pytest.raises(CatalogueFault, match="CERTIFICATE_VERIFY_FAILED"):
            await scicat.whoami()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_holds_none_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "authority.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsInvalid, match=r"scicat\.ca_file .*authority\.pem cannot be used"):
        SciCat(scicat_settings(ca_file=path))
