"""A SciCat backend as the live suite sees it: plain HTTP in several roles, what was made, and what could not be tried."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from typing import Any, NoReturn
from urllib.parse import quote

import httpx
import pytest

from archiver.catalogue.client import SciCat
from archiver.catalogue.queries import Query
from archiver.catalogue.standin.app import Account, StandInSettings
from archiver.catalogue.standin.state import VERSIONS, StandIn
from archiver.settings import SciCatSettings
from cli.servers import free_port
from tests.pipeline.system import StandInServer

ADMIN, USER, MANAGER = "admin", "user", "manager"
ROLES = {ADMIN: "SCICAT", USER: "SCICAT_USER", MANAGER: "SCICAT_MANAGER"}
"""Role, and how the variables of its account begin: ``..._USERNAME``, ``..._PASSWORD``, ``..._TOKEN``."""
TIME = "2026-01-01T12:00:00.000Z"
JOB_PARAMS = {"username": "live-test"}


def not_run(why: str) -> NoReturn:
    """What this backend or account does not let us try is no success."""
    pytest.skip(why)


class Backend:
    """One backend. All that is made through it carries ``prefix``, and is removed by ``close`` as far as the account may."""

    def __init__(self, url: str, accounts: dict[str, dict[str, str]], standin: StandIn | None = None) -> None:
        self.url = url
        self.standin = standin
        self.prefix = f"archiver-live-{secrets.token_hex(4)}"
        self.version = standin.settings.version if standin else os.environ.get("SCICAT_VERSION", "")
        self.group = ""
        self._accounts = accounts
        self._tokens: dict[str, str] = {}
        self._http = httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)
        self._made: list[str] = []

    async def open(self) -> Backend:
        """Log in, and find out the version if nobody gave it. Raises ``AssertionError`` if the account cannot be used."""
        account = await self.ask("GET", "/api/v3/auth/whoami")
        assert account.status_code == 200, account.text
        assert account.content, "SciCat does not know the account: see SCICAT_USERNAME, SCICAT_PASSWORD or SCICAT_TOKEN"
        self.group = str((account.json().get("currentGroups") or ["p1"])[0])
        if not self.version:
            self.version = await self._detected()
        assert self.version in VERSIONS, f"SCICAT_VERSION is one of {', '.join(VERSIONS)}"
        return self

    async def _detected(self) -> str:
        """By what two answers that change nothing tell; ``SCICAT_VERSION`` says it better."""
        empty = {"type": "archive", "ownerGroup": self.group, "jobParams": {"datasetList": []}}
        if (await self.ask("POST", "/api/v4/jobs", empty)).status_code == 400:
            return "4.27"
        anonymous = await self.ask("GET", "/api/v3/datablocks", role=None)
        return "master" if anonymous.status_code == 200 else "5.2"

    async def close(self) -> None:
        """Remove what was made, the last first; what may not be removed stays."""
        for path in reversed(self._made):
            with contextlib.suppress(httpx.HTTPError):
                await self.ask("DELETE", path)
        await self._http.aclose()

    # --- calls --------------------------------------------------------------------------------------------------------

    async def ask(
        self, method: str, path: str, body: Any = None, *, role: str | None = ADMIN, **how: Any
    ) -> httpx.Response:
        """One call in this role, or as nobody."""
        headers = {**(await self.header(role) if role else {}), **how.pop("headers", {})}
        content = {} if body is None else {"json": body}
        return await self._http.request(method, path, headers=headers, **content, **how)

    async def header(self, role: str) -> dict[str, str]:
        """The account's token, logged in once; not run without one."""
        if role not in self._tokens:
            account = self._accounts.get(role, {})
            if account.get("token"):
                self._tokens[role] = account["token"]
            elif account.get("username"):
                login = {"username": account["username"], "password": account.get("password", "")}
                answer = await self._http.post("/api/v3/auth/login", json=login)
                assert answer.status_code == 201, f"login of {account['username']}: {answer.status_code}"
                self._tokens[role] = str(answer.json()["access_token"])
            else:
                not_run(f"no account for a {role}: {ROLES[role]}_USERNAME and {ROLES[role]}_PASSWORD, or _TOKEN")
        return {"Authorization": f"Bearer {self._tokens[role]}"}

    async def listed(self, path: str, filter: dict[str, Any], *, role: str | None = ADMIN) -> httpx.Response:
        """A list with this filter."""
        return await self.ask("GET", path, role=role, params={"filter": json.dumps(filter)})

    async def found(self, query: Query) -> list[dict[str, Any]]:
        """What one of our own queries shows."""
        answer = await self.ask("GET", query.path, params=query.params)
        assert answer.status_code == 200, f"{query}: {answer.status_code} {answer.text}"
        found: list[dict[str, Any]] = answer.json()
        return found

    def client(self) -> SciCat:
        """The product's client with the admin's account."""
        account = self._accounts[ADMIN]
        given = {key: value for key, value in account.items() if value}
        return SciCat(SciCatSettings.model_validate({"url": self.url, **given}))

    @property
    def account(self) -> dict[str, str]:
        """The admin's account, as settings have it."""
        return {key: value for key, value in self._accounts[ADMIN].items() if value}

    async def expired_token(self) -> str:
        """A token of ours that is past its life; not run where none can be had."""
        if self.standin is not None:
            name = self._accounts[ADMIN]["username"]
            token = f"expired-{secrets.token_hex(8)}"
            self.standin.tokens[token] = (name, 0.0)
            return token
        if token := os.environ.get("SCICAT_EXPIRED_TOKEN", ""):
            return token
        account = (await self.ask("GET", "/api/v3/auth/whoami")).json()
        user = account.get("id") or account.get("_id")
        answer = await self.ask("POST", f"/api/v3/users/{user}/jwt", {"expiresIn": "1s"})
        token = str(answer.json().get("jwt", "")) if answer.status_code == 201 else ""
        if not token:
            not_run("no expired token: SCICAT_EXPIRED_TOKEN, or an account that may make tokens")
        time.sleep(2)
        return token

    # --- making -------------------------------------------------------------------------------------------------------

    async def dataset(self, *, blocks: int = 0, **more: Any) -> str:
        """A dataset of two files in each of its origdatablocks; its pid."""
        record = {
            "type": "raw",
            "ownerGroup": self.group,
            "owner": "A Person",
            "contactEmail": "person@example.org",
            "sourceFolder": "/none",
            "creationTime": TIME,
            "creationLocation": "here",
            "principalInvestigator": "A Person",
            "datasetName": self.prefix,
            **more,
        }
        answer = await self.ask("POST", "/api/v3/datasets", record)
        if answer.status_code == 403:
            not_run("the account may not make datasets")
        pid = str(self.created(answer)["pid"])
        self._made.append(at(pid))
        for number in range(blocks):
            body = {"datasetId": pid, "size": 20, "dataFileList": files(number)}
            made = self.created(await self.ask("POST", "/api/v3/origdatablocks", body))
            self._made.append(f"/api/v3/origdatablocks/{made['_id']}")
        return pid

    async def datablock(self, pid: str, number: int = 1, *, role: str = ADMIN, **change: Any) -> httpx.Response:
        """Register a datablock of two files."""
        body = {
            "datasetId": pid,
            "archiveId": f"{self.prefix}/{pid}/{number}",
            "size": 20,
            "packedSize": 12,
            "chkAlg": "sha256",
            "version": "tar.gz/1",
            "dataFileList": files(number - 1),
            **change,
        }
        answer = await self.ask("POST", "/api/v3/datablocks", body, role=role)
        if answer.status_code == 201:
            self._made.append(f"/api/v3/datablocks/{answer.json()['_id']}")
        return answer

    def job_body(self, *pids: str, wanted: list[str] | None = None, **more: Any) -> dict[str, Any]:
        """An archive job in v4 shape."""
        listed = [{"pid": pid, "files": wanted or []} for pid in pids]
        params = {"datasetList": listed, **JOB_PARAMS}
        return {"type": "archive", "ownerGroup": self.group, "jobParams": params, **more}

    async def job(self, *pids: str, **more: Any) -> str:
        """An archive job; its id."""
        job_id = str(self.created(await self.post_job(self.job_body(*pids, **more)))["id"])
        return job_id

    async def post_job(self, body: dict[str, Any], *, role: str = ADMIN) -> httpx.Response:
        """Submit this job; what was made is removed in the end."""
        answer = await self.ask("POST", "/api/v4/jobs", body, role=role)
        if answer.status_code == 201:
            self.keep_job(answer.json()["id"])
        return answer

    def keep_job(self, job_id: str) -> None:
        """To be removed in the end."""
        self._made.append(f"/api/v4/jobs/{job_id}")

    def keep_dataset(self, pid: str) -> None:
        """To be removed in the end."""
        self._made.append(at(pid))

    async def delete_dataset(self, pid: str) -> None:
        """Not run where the account may not."""
        answer = await self.ask("DELETE", at(pid))
        if answer.status_code == 403:
            not_run("the account may not delete datasets (DELETE_GROUPS)")
        assert answer.status_code == 200, answer.text

    @staticmethod
    def created(answer: httpx.Response) -> dict[str, Any]:
        """The body of a 201."""
        assert answer.status_code == 201, f"{answer.status_code} {answer.text}"
        body: dict[str, Any] = answer.json()
        return body


def files(number: int) -> list[dict[str, Any]]:
    """Two files as a block lists them."""
    return [{"path": f"run/{2 * number + n:04}.tif", "size": 10, "time": TIME} for n in range(2)]


def at(pid: str, more: str = "", *, version: str = "v4") -> str:
    """The address of a dataset."""
    return f"/api/{version}/datasets/{quote(pid, safe='')}{more}"


def real(url: str) -> Backend:
    """The backend of ``--scicat``, with the accounts of the environment."""
    accounts = {
        role: {key: os.environ.get(f"{name}_{key.upper()}", "") for key in ("username", "password", "token")}
        for role, name in ROLES.items()
    }
    return Backend(url, accounts)


def standin(version: Any) -> tuple[Backend, StandInServer]:
    """The stand-in in this version, with an account for each role; the server is to be stopped."""
    password = secrets.token_hex(8)
    settings = StandInSettings(
        version=version,
        accounts=[
            Account(ADMIN, password, admin=True),
            Account(USER, password, groups=("p1",)),
            Account(MANAGER, password, archivemanager=True),
        ],
    )
    server = StandInServer(free_port(), settings).start()
    accounts = {role: {"username": role, "password": password} for role in ROLES}
    return Backend(server.url, accounts, server.standin), server
