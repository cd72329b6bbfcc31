"""The stand-in's state, who may read what, and what all its calls share."""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from starlette.requests import Request

from archiver.catalogue.standin.schema import Problem
from archiver.catalogue.standin.store import Document, Store

Version = Literal["4.27", "5.2", "master"]
VERSIONS: tuple[Version, ...] = get_args(Version)
"""Backends that the stand-in can be: releases 4.27.0 and 5.2.1, and what was to come after them in August 2026."""


@dataclass
class Account:
    """A user. ``admin``: ADMIN_GROUPS, ``archivemanager``: SciCat's classic role for archives, ``deletes``: DELETE_GROUPS.

    All others may read what is of their ``groups``.
    """

    name: str
    password: str
    groups: tuple[str, ...] = ()
    admin: bool = False
    archivemanager: bool = False
    deletes: bool = True


@dataclass
class Fault:
    """What befalls the next ``times`` calls that match: an error instead, or the call done and its answer lost.

    With ``hang_seconds`` the call's own answer comes late; with ``raw`` any bytes come instead of it.
    """

    method: str
    path: str
    times: int = 1
    status: int = 500
    body: Any = None
    execute: bool = False
    hang_seconds: float = 0
    raw: bytes | None = None


@dataclass
class StandInSettings:
    """How the stand-in is set up."""

    version: Version = "5.2"
    db: str = ":memory:"
    accounts: list[Account] = field(default_factory=lambda: [Account("archiver", "archiver", admin=True)])
    token_seconds: float = 3600
    pid_prefix: str = "20.500.12345"
    job_types: tuple[str, ...] = ("archive", "retrieve", "public")
    only_retrievable: bool = False
    """Retrieve jobs are validated as by deploy/scicat/jobConfig.yaml: their datasets must be retrievable."""
    webhook_url: str = ""
    webhook_auth: str = ""


class StandIn:
    """State and behaviour; ``log``, ``faults`` and ``mails`` are for tests."""

    def __init__(self, settings: StandInSettings) -> None:
        self.settings = settings
        self.store = Store(settings.db)
        self.accounts = {account.name: account for account in settings.accounts}
        self.tokens: dict[str, tuple[str, float]] = {}
        self.log: list[tuple[str, str, int]] = []
        self.faults: list[Fault] = []
        self.mails: list[tuple[str, str]] = []
        """Job id and status code of every update: SciCat runs its update actions (mails) at each."""

    # --- who ------------------------------------------------------------------------------------------------------------

    def account(self, request: Request) -> Account | None:
        """A bad token is not refused: the request is anonymous. So is an expired one until 4.27; later it is a 401."""
        header = request.headers.get("authorization", "")
        token = header.removeprefix("Bearer ") if header.startswith("Bearer ") else ""
        name, until = self.tokens.get(token, ("", math.inf))
        if time.time() >= until:
            if self.settings.version != "4.27":
                raise Problem(401, {"message": "SESSION_EXPIRED", "error": "Unauthorized", "statusCode": 401})
            return None
        return self.accounts.get(name)

    def expire_tokens(self) -> None:
        """Every token given so far is past its life."""
        self.tokens = {token: (name, 0.0) for token, (name, _) in self.tokens.items()}

    def may_read(self, account: Account | None, document: Document, kind: str = "datasets") -> bool:
        """Admins read all, archive managers datasets but no blocks, others what is of their groups, the anonymous nothing."""
        if account is None:
            return False
        groups = {document.get("ownerGroup"), *(document.get("accessGroups") or [])}
        manages = account.archivemanager and kind == "datasets"
        return account.admin or manages or bool(groups & set(account.groups))

    def may_update(self, account: Account | None, dataset: Document | None, *, lifecycle: bool = False) -> bool:
        """Admins any dataset, archive managers any lifecycle, others theirs; one that is not there whoever has groups."""
        if account is None or account.admin or (lifecycle and account.archivemanager):
            return account is not None
        return bool(account.groups) if dataset is None else dataset.get("ownerGroup") in account.groups

    def may_read_job(self, account: Account, job: Document) -> bool:
        """Those who may update any, and who made it or is of its group."""
        mine = job.get("createdBy") == account.name or job.get("ownerGroup") in account.groups
        return account.admin or account.archivemanager or mine

    def login(self, body: Any) -> tuple[int, Any]:
        """A token and its life, with 201."""
        account = self.accounts.get(str(body.get("username"))) if isinstance(body, dict) else None
        given = str(body.get("password")) if isinstance(body, dict) else ""
        if account is None or not secrets.compare_digest(account.password.encode(), given.encode("utf-8", "replace")):
            return 401, {"message": "Unauthorized", "statusCode": 401}
        token = secrets.token_urlsafe(32)
        self.tokens[token] = (account.name, time.time() + self.settings.token_seconds)
        life = self.settings.token_seconds
        return 201, {
            "access_token": token,
            "id": token,
            "expires_in": life,
            "ttl": life,
            "created": now(),
            "userId": account.name,
            "user": {"username": account.name},
        }


def now() -> str:
    """ISO 8601 UTC with milliseconds and Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def object_id() -> str:
    """A 24-digit id like Mongo's: grows with time."""
    return f"{int(time.time()):08x}{secrets.token_hex(8)}"


def forbidden() -> Problem:
    """403, also for the anonymous."""
    return Problem(403, {"message": "Forbidden resource", "error": "Forbidden", "statusCode": 403})


def not_found(request: Request) -> Problem:
    """As the framework says it, also for an unencoded slash in a pid."""
    text = f"Cannot {request.method} {request.url.path}"
    return Problem(404, {"message": text, "error": "Not Found", "statusCode": 404})


def merges(request: Request) -> bool:
    """Whether the body is to be merged into what is there."""
    return request.headers.get("content-type", "").startswith("application/merge-patch+json")
