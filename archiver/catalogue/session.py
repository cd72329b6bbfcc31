"""Calls to SciCat's HTTP edge: account, quick retries, bounded answers, and errors that say what to do.

SciCat takes the bearer of a bad token for anonymous, and says 403; an expired one it refuses with 401 from 5.2 on, and takes
for a bad one before. So both log in once more. Errors have four shapes, and a proxy may say anything at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import ssl
import time
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import stamina

from archiver.errors import CatalogueFault, SettingsInvalid
from archiver.log import SIGNATURE
from archiver.progress import uncut
from archiver.settings import SciCatSettings
from archiver.write_deadline import may_write

RENEW_SHARE = 0.8
"""A token is renewed after this share of its life."""
QUICK_TRIES = 3
FIRST_PAUSE_SECONDS = 0.3
CONNECTIONS = 40
IDLE_SECONDS = 3.0
"""An idle connection is closed before the server closes it: Node and uvicorn do so after 5 s, in the middle of a write."""
HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate", "User-Agent": "scicat-archiver"}
TOO_LARGE = "let SciCat (MAX_FILE_UPLOAD_SIZE) and every proxy before it take bodies of 16 MB (docs/scicat.md)"
PASSING = frozenset({408, 425, 429})
"""Statuses below 500 that may be gone in a second; from 500 on all may."""
DEFAULT_LIFE = 600.0
"""Seconds that a token is trusted whose login names no lifetime."""
ADMIN = "ADMIN_GROUPS"
RIGHTS = (
    (r"POST .*/datablocks$", "ADMIN_GROUPS (or CREATE_DATASET_PRIVILEGED_GROUPS)"),
    (r"PATCH .*/jobs/", "ADMIN_GROUPS (or UPDATE_JOB_PRIVILEGED_GROUPS)"),
    (r"POST .*/jobs$", "ADMIN_GROUPS (or CREATE_JOB_PRIVILEGED_GROUPS)"),
    (r"PATCH .*/datasetlifecycle$", "ADMIN_GROUPS (or UPDATE_DATASET_LIFECYCLE_GROUPS)"),
    (r".*", ADMIN),
)
"""Which of SciCat's settings must name a group of our account for which call."""


class _Passing(Exception):
    """A fault that may be gone in a second."""

    def __init__(self, fault: CatalogueFault) -> None:
        super().__init__(fault.what)
        self.fault = fault


class Session:
    """One account at one SciCat over a pool of connections. Safe for concurrent calls; ``close`` it."""

    def __init__(self, settings: SciCatSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        # A token read from a file ends with a newline, which no header can carry.
        self._token = settings.token.get_secret_value().strip() if settings.token else ""
        if settings.token and not _sendable(self._token):
            raise SettingsInvalid(
                "scicat.token cannot be a token",
                expected="printable ASCII without spaces",
                found="another text",
                next_step="give the token alone, without 'Bearer'",
            )
        self._old_tokens: deque[str] = deque(maxlen=4)
        self._renew_at = float("inf") if settings.token else 0.0
        self._login_lock = asyncio.Lock()
        self.where = f"{settings.url.scheme}://{settings.url.host}:{settings.url.port}"
        self._base = str(settings.url).rstrip("/")
        wait, connect = settings.read_timeout_seconds, settings.connect_timeout_seconds
        self._timeout = {"timeout": {"connect": connect, "read": wait, "write": wait, "pool": wait}}
        # The transport itself: what a client does around it (cookies, redirects, merging) is half of what a call costs.
        self._line = transport or httpx.AsyncHTTPTransport(
            verify=authorities(settings.ca_file),
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=20, keepalive_expiry=IDLE_SECONDS
            ),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._line.aclose()

    async def whoami(self) -> dict[str, Any]:
        """Our account as SciCat sees it. Raises ``CatalogueFault`` if it sees none even after another login.

        SciCat may not refuse a token that is bad or expired, but take the caller for anonymous.
        """
        for last in (False, True):
            _, answer = await self.read("GET", "/api/v3/auth/whoami", empty_ok=True)
            token = self._token
            if isinstance(answer, dict):
                return answer
            if last or self._settings.token is not None:
                break
            await self._login(but=token)
        raise self.fault(
            "SciCat does not know our account",
            "an account",
            "an empty answer: the token is bad or expired",
            next_step="renew scicat.token, or check scicat.username",
            retryable=False,
        )

    async def healthy(self) -> bool:
        """Whether SciCat says that it and its database are up."""
        try:
            status, _ = await self._send("GET", "/api/v3/health", "", None, None)
        except CatalogueFault:
            return False
        return status == 200

    # --- calls --------------------------------------------------------------------------------------------------------

    async def read(self, method: str, path: str, *, empty_ok: bool = False, **how: Any) -> tuple[int, Any]:
        """A call that may be repeated, with a few quick tries; Temporal makes the long ones. Returns status and body."""
        with contextlib.suppress(_Passing):
            # Most calls need no second try, and what makes tries costs as much as a call.
            return await self._once(method, path, empty_ok, how)
        await asyncio.sleep(FIRST_PAUSE_SECONDS)
        try:
            async for attempt in stamina.retry_context(
                on=_Passing, attempts=QUICK_TRIES - 1, wait_initial=2 * FIRST_PAUSE_SECONDS, wait_max=2.0, timeout=None
            ):
                with attempt:
                    return await self._once(method, path, empty_ok, how)
        except _Passing as passing:
            raise passing.fault from None
        raise AssertionError("unreachable")

    async def _once(self, method: str, path: str, empty_ok: bool, how: dict[str, Any]) -> tuple[int, Any]:
        try:
            status, body = await self.call(method, path, **how)
        except CatalogueFault as fault:
            if fault.retryable:
                raise _Passing(fault) from None
            raise
        if body is None and status < 300 and not empty_ok:
            raise _Passing(self.fault(f"SciCat's answer to {path} is empty", "JSON", "nothing"))
        return status, body

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        json_body: dict[str, Any] | None = None,
        allow: tuple[int, ...] = (),
    ) -> tuple[int, Any]:
        """One call; 401 and 403 log in once more and try again. Raises ``CatalogueFault``."""
        for last in (False, True):
            token = await self._valid_token()
            sent = self._send(method, path, token, params, json_body)
            # A write that is on its way is waited for: what is written after a cancel must be the last word.
            status, body = await (sent if method == "GET" else uncut(sent))
            if status not in (401, 403) or last or self._settings.token is not None:
                break
            await self._login(but=token)
        if 200 <= status < 300 or status in allow:
            return status, body
        what = f"{method} {path}"
        if status == 401:
            raise self.fault(
                f"SciCat does not accept our token for {what}",
                "a token that it gave and that has not expired",
                f"status {status}: {words(body)}",
                next_step="renew scicat.token; with scicat.username: see that the clocks of SciCat's machines agree",
                retryable=False,
            )
        if status == 403:
            right = next(right for pattern, right in RIGHTS if re.match(pattern, what))
            raise self.fault(
                f"SciCat refuses {what}",
                f"an account in {right}",
                f"status {status}: {words(body)}",
                next_step="give the archiver's account that right (docs/scicat.md), or renew scicat.token if it expired",
                retryable=False,
            )
        if status == 404 or 300 <= status < 400:
            raise self.wrong_address(f"SciCat has no {what}", status, body)
        retryable = status >= 500 or status in PASSING
        raise self.fault(
            f"SciCat refuses {what}",
            "success",
            f"status {status}: {words(body)}",
            next_step=TOO_LARGE if status == 413 else "retried; see SciCat's log" if retryable else "see SciCat's log",
            retryable=retryable,
        )

    def wrong_address(self, what: str, status: int, body: Any) -> CatalogueFault:
        """A redirect or a 404 that is not of a record. One that a proxy says (no JSON) may pass, a route will not."""
        return self.fault(
            what,
            "SciCat's own answer",
            f"status {status}: {words(body)}",
            next_step="check scicat.url, that SciCat is 4.27 or later, and that no proxy decodes %2F in paths",
            retryable=status >= 400 and not isinstance(body, dict),
        )

    async def _send(
        self, method: str, path: str, token: str, params: dict[str, str] | None, json_body: dict[str, Any] | None
    ) -> tuple[int, Any]:
        headers = {**HEADERS, "Authorization": f"Bearer {token}"} if token else HEADERS
        parts: list[bytes] = []
        size = 0
        extensions: dict[str, Any] = self._timeout
        if method != "GET":
            may_write()
            extensions = {**self._timeout, "trace": _before_bytes}
        try:
            request = httpx.Request(
                method, self._base + path, params=params, json=json_body, headers=headers, extensions=extensions
            )
            response = await self._line.handle_async_request(request)
            try:
                async for part in response.aiter_bytes():
                    size += len(part)
                    if size > self._settings.max_answer_bytes:
                        raise self.fault(
                            f"SciCat's answer to {method} {path} is too large",
                            f"at most {self._settings.max_answer_bytes} B",
                            f"more than {size} B",
                            next_step="raise scicat.max_answer_bytes",
                            retryable=False,
                        )
                    parts.append(part)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise self.fault(
                f"SciCat does not answer {method} {path}",
                f"an answer from {self.where}",
                f"{type(error).__name__}: {error}"[:200],
            ) from None
        data = b"".join(parts)
        if not data.strip():
            return response.status_code, None
        try:
            return response.status_code, json.loads(data)
        except (ValueError, RecursionError):
            text = data[:4096].decode("utf-8", "replace")
            if response.is_success:
                raise self.fault(
                    f"SciCat's answer to {method} {path} is no JSON", "JSON", repr(self.hidden(text))
                ) from None
            return response.status_code, text

    async def _valid_token(self) -> str:
        if self._settings.token is None and self._settings.username is not None and time.monotonic() >= self._renew_at:
            await self._login(but=self._token)
        return self._token

    async def _login(self, but: str) -> None:
        """Get a token other than ``but``; callers at the same time share one login."""
        settings = self._settings
        if settings.username is None or settings.password is None:
            raise SettingsInvalid(
                "SciCat needs an account",
                expected="scicat.token, or scicat.username and scicat.password",
                found="neither",
            )
        async with self._login_lock:
            if self._token != but:
                return
            credentials = {"username": settings.username, "password": settings.password.get_secret_value()}
            status, body = await self._send("POST", settings.login_path, "", None, credentials)
            if status in (400, 401, 403):
                raise self.fault(
                    f"SciCat refuses the login of {settings.username!r}",
                    "a token",
                    f"status {status}",
                    next_step="check scicat.username and scicat.password",
                    retryable=False,
                )
            token = body.get("access_token") if isinstance(body, dict) else None
            if not 200 <= status < 300 or not isinstance(token, str) or not _sendable(token):
                raise self.fault(
                    "SciCat's login gives no token",
                    "access_token",
                    f"status {status}: {words(body)}",
                    next_step="check scicat.url and scicat.login_path; retried",
                )
            life = body.get("expires_in")
            self._old_tokens.append(self._token)
            self._token = token
            known = isinstance(life, (int, float)) and not isinstance(life, bool) and math.isfinite(life) and life > 0
            self._renew_at = time.monotonic() + RENEW_SHARE * (life if known else DEFAULT_LIFE)

    def fault(
        self,
        what: str,
        expected: str,
        found: str,
        *,
        next_step: str = "retried; see SciCat's log",
        retryable: bool = True,
    ) -> CatalogueFault:
        """The error to raise, bounded and without our secrets: SciCat or a proxy may echo what it was sent."""
        return CatalogueFault(
            what, expected=expected, found=self.hidden(found)[:300], next_step=next_step, retryable=retryable
        )

    def hidden(self, text: str) -> str:
        """``text`` without our secrets, however they are quoted, without signatures of URLs, and what is no Unicode.

        Before it is cut: half a token would not be found any more.
        """
        password = self._settings.password
        for secret in (self._token, *self._old_tokens, password.get_secret_value() if password else ""):
            if secret:
                escaped = (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1])
                for said in (secret, *escaped, quote(secret, safe="")):
                    text = text.replace(said, "***")
        return SIGNATURE.sub(r"\1***", text).encode("utf-8", "replace").decode()


async def _before_bytes(event: str, info: Any) -> None:
    """Right before head and body of a request that writes: a connection may have been waited for until now."""
    if event.endswith((".send_request_headers.started", ".send_request_body.started")):
        may_write()


def _sendable(token: str) -> bool:
    """Whether a header can carry it."""
    return re.fullmatch(r"[!-~]+", token) is not None


def authorities(ca_file: Path | None) -> ssl.SSLContext:
    """Whose certificates are believed: the public authorities', and those of ``ca_file``. Raises ``SettingsInvalid``."""
    context = httpx.create_ssl_context(trust_env=False)
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsInvalid(
                f"scicat.ca_file {ca_file} cannot be used",
                expected="certificates in PEM",
                found=error.strerror or type(error).__name__,
                next_step="give the file of the authority's certificate, readable by the worker's user",
            ) from None
    return context


def no_route(body: dict[str, Any]) -> bool:
    """Whether a 404 is of the address and not of the record."""
    return str(body.get("message")).startswith("Cannot ")


def words(body: Any) -> str:
    """What an error body says, whichever of its four shapes it has."""
    if isinstance(body, dict):
        message = body.get("message") or body.get("error") or ""
        body = "; ".join(str(part) for part in message) if isinstance(message, list) else message
    return str(body or "")
