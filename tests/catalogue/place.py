"""A stand-in SciCat without a port, its users, our client of it, and a line that breaks where a test wants it."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from archiver.catalogue.client import SciCat
from archiver.catalogue.standin.app import Account, StandIn, StandInSettings, create_app
from archiver.settings import SciCatSettings

PASSWORD = 'canary-pa55"word\\ü'
ADMIN, MANAGER, USER = "archiver", "manager", "someone"
ACCOUNTS = (
    Account(ADMIN, PASSWORD, admin=True),
    Account(MANAGER, PASSWORD, archivemanager=True),
    Account(USER, PASSWORD, groups=("p1",)),
)
BAD_LIST = {"4.27": 400, "5.2": 422, "master": 422}
"""What each version answers to a job whose dataset list is wrong."""
TIME = "2026-01-01T12:00:00.000Z"


@dataclass
class Break:
    """The next matching call fails on the line: before it reaches SciCat, or after SciCat did it."""

    method: str
    path: str
    error: type[httpx.TransportError] = httpx.ReadError
    done: bool = True


class Line(httpx.AsyncBaseTransport):
    """The way to an ASGI application, with its breaks; ``sent`` counts what was asked."""

    def __init__(self, app: Any) -> None:
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.breaks: list[Break] = []
        self.sent: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append((request.method, request.url.path))
        for one in self.breaks:
            if one.method == request.method and re.search(one.path, request.url.path):
                self.breaks.remove(one)
                if one.done:
                    await self._inner.handle_async_request(request)
                raise one.error("the line broke")
        return await self._inner.handle_async_request(request)

    def count(self, method: str, path: str) -> int:
        """How often it was asked for."""
        return sum(1 for what, where in self.sent if what == method and re.search(path, where))


class Place:
    """A stand-in SciCat with accounts for three kinds of people."""

    def __init__(self, **settings: Any) -> None:
        self.app = create_app(StandInSettings(**{"accounts": list(ACCOUNTS), **settings}))
        self.standin: StandIn = self.app.state.standin
        self.line = Line(self.app)

    def scicat(self, **settings: Any) -> SciCat:
        """Our client, as the admin unless told otherwise."""
        return SciCat(scicat_settings(**settings), transport=self.line)

    def token(self, name: str = ADMIN) -> str:
        """A token of this account."""
        _, answer = self.standin.login({"username": name, "password": PASSWORD})
        return str(answer["access_token"])

    def http(self, name: str | None = ADMIN) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        """Plain HTTP as this account, or as nobody."""
        headers = {"Authorization": f"Bearer {self.token(name)}"} if name else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(base_url="http://scicat", transport=transport, headers=headers)

    async def ask(self, method: str, path: str, body: Any = None, *, name: str | None = ADMIN, **how: Any) -> Any:
        """One call in plain HTTP; returns the response."""
        async with self.http(name) as http:
            return await http.request(method, path, **({} if body is None else {"json": body}), **how)

    async def dataset(self, *, blocks: int = 0, files: int = 2, **more: Any) -> str:
        """A dataset of group p1 with so many origdatablocks of so many files; its pid."""
        answer = await self.ask("POST", "/api/v3/datasets", record(**more))
        assert answer.status_code == 201, answer.text
        pid = str(answer.json()["pid"])
        async with self.http() as http:
            for n in range(blocks):
                answer = await http.post("/api/v3/origdatablocks", json=origdatablock(pid, n, files))
                assert answer.status_code == 201, answer.text
        return pid

    async def job(self, *pids: str) -> str:
        """An archive job; its id."""
        answer = await self.ask("POST", "/api/v4/jobs", job(*pids))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def datablocks(self, pid: str, count: int) -> None:
        """So many registered datablocks, one after another."""
        async with self.http() as http:
            for n in range(count):
                answer = await http.post("/api/v3/datablocks", json=datablock(pid, n))
                assert answer.status_code == 201, answer.text


def scicat_settings(**settings: Any) -> SciCatSettings:
    """Settings with the admin's account, unless a token or an account is given."""
    account = {} if "token" in settings or "username" in settings else {"username": ADMIN, "password": PASSWORD}
    bounded: dict[str, Any] = {
        key: settings.pop(key) for key in ("read_timeout_seconds", "max_answer_bytes") if key in settings
    }
    made = SciCatSettings.model_validate({"url": "http://scicat:3000", **account, **settings})
    return made.model_copy(update=bounded)


def record(**more: Any) -> dict[str, Any]:
    """A dataset as a v3 ingester makes it."""
    return {
        "type": "raw",
        "ownerGroup": "p1",
        "owner": "A Person",
        "contactEmail": "person@example.org",
        "sourceFolder": "/data/p1",
        "creationTime": TIME,
        "creationLocation": "here",
        "principalInvestigator": "A Person",
        "datasetName": "test",
        **more,
    }


def file_entries(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Files as an origdatablock lists them."""
    return [{"path": f"run/{n:06}.tif", "size": 10, "time": TIME} for n in range(start, start + count)]


def origdatablock(pid: str, n: int, files: int = 2) -> dict[str, Any]:
    """The n-th origdatablock."""
    return {"datasetId": pid, "size": 10 * files, "dataFileList": file_entries(files, n * files)}


def datablock(pid: str, n: int = 1, **more: Any) -> dict[str, Any]:
    """The n-th datablock of two files."""
    files = [{**entry, "chk": hashlib.sha256(entry["path"].encode()).hexdigest()} for entry in file_entries(2, 2 * n)]
    sizes = {"size": 20, "packedSize": 12}
    made = {"datasetId": pid, "archiveId": f"{pid}/data/{n}.tar.gz", **sizes, "version": "tar.gz/1"}
    return {**made, "chkAlg": "sha256", "dataFileList": files, **more}


def job(*pids: str, files: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """An archive job in v4 shape."""
    listed = [{"pid": pid, "files": list(files)} for pid in pids]
    return {"type": "archive", "ownerGroup": "p1", "jobParams": {"datasetList": listed}, **more}


def at(pid: str, *, version: str = "v4", more: str = "") -> str:
    """The address of a dataset."""
    return f"/api/{version}/datasets/{quote(pid, safe='')}{more}"


def answering(*answers: tuple[int, bytes] | httpx.Response, **settings: Any) -> SciCat:
    """Our client of something that gives these answers in turn, and then always the last."""
    left = [one if isinstance(one, httpx.Response) else httpx.Response(one[0], content=one[1]) for one in answers]

    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        one = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(one.status_code, content=one.content, headers=dict(one.headers))

    account = {} if "username" in settings else {"token": SecretStr("token")}
    return SciCat(scicat_settings(**account, **settings), transport=httpx.MockTransport(answer))
