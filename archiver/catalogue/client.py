"""The SciCat client: about fifteen calls over ``httpx.AsyncClient``, with all that scicat-contract.md warns of.

A 403 may mean an expired token, an empty list may mean no rights, a 500 may mean a body too large, and an answer that did
not come may hide a write that was done: so 403 logs in once more, lists are compared with counts, and writes are read back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import stamina

from archiver.catalogue import payloads
from archiver.catalogue.records import Datablock, Dataset, Job, OrigDatablock
from archiver.errors import CatalogueFault, CatalogueRecordInvalid, SettingsInvalid, UnknownJob
from archiver.settings import SciCatSettings

RENEW_SHARE = 0.8
"""A token is renewed after this share of its life (contract 4)."""
PAGE = 100
BLOCKS_AT_ONCE = 2
"""Origdatablocks read per call: each may be a few MB of JSON (contract 3.3)."""
MAX_BODY_BYTES = 15_000_000
"""SciCat answers a body over 16 MB with a 500 (contract 3.4)."""
QUICK_TRIES = 3
PASSING = (429, 500, 502, 503, 504)
TERMINAL = "finished"


class _Passing(Exception):
    """A fault that may be gone in a second."""

    def __init__(self, fault: CatalogueFault) -> None:
        super().__init__(fault.what)
        self.fault = fault


class SciCat:
    """One account at one SciCat. Enter it; safe for concurrent calls."""

    def __init__(self, settings: SciCatSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        self._token = settings.token.get_secret_value() if settings.token else ""
        self._renew_at = float("inf") if settings.token else 0.0
        self._login_lock = asyncio.Lock()
        self._http = httpx.AsyncClient(
            base_url=str(settings.url).rstrip("/"),
            timeout=httpx.Timeout(settings.read_timeout_seconds, connect=settings.connect_timeout_seconds),
            limits=httpx.Limits(max_connections=40, max_keepalive_connections=20),
            follow_redirects=False,
            transport=transport,
            trust_env=False,
        )

    async def __aenter__(self) -> SciCat:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    # --- account ------------------------------------------------------------------------------------------------------

    async def whoami(self) -> dict[str, Any]:
        """Our account as SciCat sees it. Raises ``CatalogueFault`` if the token is none."""
        answer = await self._read("GET", "/api/v3/auth/whoami", empty_ok=True)
        if not isinstance(answer, dict):
            raise self._fault("SciCat does not know our account", "an account", "an empty answer", retryable=False)
        return answer

    async def healthy(self) -> bool:
        """Whether SciCat says that it and its database are up."""
        try:
            response = await self._http.get("/api/v3/health")
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def job(self, job_id: str) -> Job:
        """A job by its id. Raises ``UnknownJob`` if SciCat knows none (it says 400, contract 1.2)."""
        status, body = await self._call("GET", f"/api/v4/jobs/{quote(job_id, safe='')}", allow=(400, 404))
        if status != 200 or not isinstance(body, dict):
            raise UnknownJob(
                f"SciCat knows no job {job_id}",
                expected="a job of that id that our account may read",
                found=_words(body) or f"status {status}",
                next_step="check the id, and the rights of the archiver's account",
            )
        return Job.read(body)

    async def create_job(self, job_type: str, pids: list[str], *, owner_group: str | None = None) -> Job:
        """Submit a job as a user would. An answer that is an error may come from SciCat's own webhook (contract 1.8)."""
        _, body = await self._call("POST", "/api/v4/jobs", json_body=payloads.create_job(job_type, pids, owner_group))
        return Job.read(self._object(body, "a job"))

    async def update_job(self, job_id: str, payload: dict[str, Any]) -> bool:
        """Bring the job to ``payload``: read, compare, write only what differs; returns whether it was written.

        Every write runs SciCat's update actions again (mails), so an answer that failed is followed by a reading, not by
        another write (contract 9.1).
        """
        for _ in range(QUICK_TRIES):
            if payloads.job_says(await self.job(job_id), payload):
                return False
            try:
                await self._call("PATCH", f"/api/v4/jobs/{quote(job_id, safe='')}", json_body=payload)
                return True
            except CatalogueFault as fault:
                if not fault.retryable:
                    raise
                last = fault
                await asyncio.sleep(1)
        if payloads.job_says(await self.job(job_id), payload):
            return True
        raise last

    # --- datasets -----------------------------------------------------------------------------------------------------

    async def dataset(self, pid: str) -> Dataset | None:
        """A dataset, or None if SciCat knows none that we may read."""
        status, body = await self._call("GET", f"/api/v4/datasets/{quote(pid, safe='')}", allow=(404,))
        if status == 404 or body is None:
            return None
        return Dataset.read(self._object(body, f"dataset {pid}"))

    async def patch_lifecycle(self, pid: str, fields: dict[str, Any]) -> None:
        """Set fields of the lifecycle, and only these (contract 2.3). May be repeated."""
        path = f"/api/v4/datasets/{quote(pid, safe='')}/datasetlifecycle"
        # 409: older backends, if nothing changes.
        await self._read("PATCH", path, json_body=fields, allow=(409,))

    async def patch_counters(self, pid: str, *, packed_size: int, files_archived: int) -> None:
        """Put the dataset's counters right: SciCat's own sums lose updates (contract 2.6). May be repeated."""
        fields = payloads.counters(packed_size, files_archived)
        await self._read("PATCH", f"/api/v4/datasets/{quote(pid, safe='')}", json_body=fields)

    # --- origdatablocks -----------------------------------------------------------------------------------------------

    async def origdatablocks(self, pid: str) -> AsyncIterator[OrigDatablock]:
        """Every origdatablock, a few at a time, compared with SciCat's count.

        Raises ``CatalogueFault`` if SciCat shows fewer than it counts, or none of a dataset that has files.
        """
        count = await self._count(pid, "origdatablocks")
        ids = [str(entry["_id"]) async for entry in self._pages("origdatablocks", pid, ["_id"])]
        dataset = await self.dataset(pid)
        files = (dataset.number_of_files if dataset else 0) or 0
        if len(set(ids)) != count or (not ids and files):
            raise self._fault(
                f"SciCat does not show all origdatablocks of dataset {pid}",
                f"{count} origdatablocks, {files} files",
                f"{len(ids)} origdatablocks",
                next_step="the archiver's account needs ADMIN_GROUPS to read other groups' origdatablocks (docs/scicat.md)",
            )
        for start in range(0, len(ids), BLOCKS_AT_ONCE):
            wanted = ids[start : start + BLOCKS_AT_ONCE]
            query = {
                "where": {"_id": {"$in": wanted}},
                "limits": {"limit": len(wanted), "skip": 0, "sort": {"_id": "asc"}},
            }
            blocks = await self._list("/api/v4/origdatablocks", query)
            if len(blocks) != len(wanted):
                raise self._fault(
                    f"origdatablocks of dataset {pid} vanished while they were read",
                    f"{len(wanted)} blocks",
                    f"{len(blocks)}",
                )
            for block in blocks:
                yield OrigDatablock.read(block)

    # --- datablocks ---------------------------------------------------------------------------------------------------

    async def datablocks(self, pid: str) -> list[Datablock]:
        """Every datablock of the dataset, compared with SciCat's count; files counted, not listed."""
        count = await self._count(pid, "datablocks")
        found: list[Datablock] = []
        while True:
            # One at a time: each carries its list of up to 20,000 files.
            query = {
                "where": {"datasetId": pid},
                "limits": {"limit": BLOCKS_AT_ONCE, "skip": len(found), "order": "_id:asc"},
            }
            page = await self._list("/api/v3/datablocks", query)
            found += [Datablock.read(entry) for entry in page]
            if len(page) < BLOCKS_AT_ONCE:
                break
        if len(found) != count:
            raise self._fault(f"SciCat does not show all datablocks of dataset {pid}", f"{count}", f"{len(found)}")
        return found

    async def create_datablock(self, payload: dict[str, Any]) -> bool:
        """Register a datablock; returns whether it was created now. May be repeated: its archiveId is unique.

        After a 409 or an answer that tells nothing it is read back and compared. Raises ``CatalogueFault`` if another
        datablock has this archiveId.
        """
        size = len(json.dumps(payload, ensure_ascii=False).encode())
        if size > MAX_BODY_BYTES:
            raise self._fault(
                f"datablock {payload['archiveId']} is too large to be registered",
                f"at most {MAX_BODY_BYTES} B of JSON",
                f"{size} B",
                next_step="lower datablock.max_metadata_bytes; the dataset must then be planned anew",
                retryable=False,
            )
        fault: CatalogueFault | None = None
        try:
            status, _ = await self._call("POST", "/api/v3/datablocks", json_body=payload, allow=(409,))
            if status != 409:
                return True
        except CatalogueFault as error:
            if not error.retryable:
                raise
            fault = error
        query = {"where": {"archiveId": payload["archiveId"]}, "limits": {"limit": 2}}
        there = await self._list("/api/v3/datablocks", query)
        if not there:
            raise fault or self._fault(
                f"SciCat says that datablock {payload['archiveId']} exists, but does not show it",
                "the datablock",
                "none",
            )
        if not payloads.same_datablock(there[0], payload):
            raise self._fault(
                f"another datablock is registered as {payload['archiveId']}",
                f"dataset {payload['datasetId']}, {payload['packedSize']} B packed, {payload['version']}",
                f"dataset {there[0].get('datasetId')}, {there[0].get('packedSize')} B packed, {there[0].get('version')}",
                next_step="compare SciCat with the LTS; nothing was changed",
                retryable=False,
            )
        return False

    # --- reading lists --------------------------------------------------------------------------------------------------

    async def _count(self, pid: str, what: str) -> int:
        path = f"/api/v3/datasets/{quote(pid, safe='')}/{what}/count"
        answer = self._object(await self._read("GET", path), "a count")
        count = answer.get("count")
        if not isinstance(count, int):
            raise CatalogueRecordInvalid(f"SciCat's count of {what} of {pid} is none", found=repr(count)[:60])
        return count

    async def _pages(self, what: str, pid: str, fields: list[str]) -> AsyncIterator[dict[str, Any]]:
        skip = 0
        while True:
            limits = {"limit": PAGE, "skip": skip, "sort": {"_id": "asc"}}
            page = await self._list(
                f"/api/v4/{what}", {"where": {"datasetId": pid}, "fields": fields, "limits": limits}
            )
            for entry in page:
                yield entry
            skip += len(page)
            if len(page) < PAGE:
                return

    async def _list(self, path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
        answer = await self._read("GET", path, params={"filter": json.dumps(query)})
        if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
            raise self._fault(
                f"SciCat's answer to {path} is no list", "a JSON array", _words(answer) or "another value"
            )
        return answer

    def _object(self, answer: Any, what: str) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise self._fault(f"SciCat's answer is not {what}", "a JSON object", _words(answer) or "another value")
        return answer

    # --- calls ----------------------------------------------------------------------------------------------------------

    async def _read(self, method: str, path: str, *, empty_ok: bool = False, **how: Any) -> Any:
        """A call that may be repeated, with a few quick tries; Temporal makes the long ones."""
        try:
            async for attempt in stamina.retry_context(
                on=_Passing, attempts=QUICK_TRIES, wait_initial=0.3, wait_max=2.0, timeout=None
            ):
                with attempt:
                    try:
                        _, body = await self._call(method, path, **how)
                    except CatalogueFault as fault:
                        if fault.retryable:
                            raise _Passing(fault) from None
                        raise
                    if body is None and not empty_ok:
                        raise _Passing(self._fault(f"SciCat's answer to {path} is empty", "JSON", "nothing"))
                    return body
        except _Passing as passing:
            raise passing.fault from None
        raise AssertionError("unreachable")

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        json_body: dict[str, Any] | None = None,
        allow: tuple[int, ...] = (),
    ) -> tuple[int, Any]:
        """One call; 403 logs in once more and tries again (contract 4). Raises ``CatalogueFault``."""
        for last in (False, True):
            token = await self._valid_token()
            status, body = await self._send(method, path, token, params, json_body)
            if status != 403 or last or self._settings.token is not None:
                break
            await self._login(but=token)
        if 200 <= status < 300 or status in allow:
            return status, body
        retryable = status in PASSING
        next_step = (
            "retried; see SciCat's log" if retryable else "see SciCat's log, and docs/scicat.md for what it needs"
        )
        if status in (401, 403):
            next_step = "give the archiver's account the rights that docs/scicat.md lists, or renew its token"
        raise self._fault(
            f"SciCat refuses {method} {path.split('?')[0]}",
            "success",
            f"status {status}: {_words(body)}",
            next_step=next_step,
            retryable=retryable,
        )

    async def _send(
        self, method: str, path: str, token: str, params: dict[str, str] | None, json_body: dict[str, Any] | None
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with self._http.stream(method, path, params=params, json=json_body, headers=headers) as response:
                parts: list[bytes] = []
                size = 0
                async for part in response.aiter_bytes():
                    size += len(part)
                    if size > self._settings.max_answer_bytes:
                        raise self._fault(
                            f"SciCat's answer to {method} {path} is too large",
                            f"at most {self._settings.max_answer_bytes} B",
                            f"more than {size} B",
                            next_step="raise scicat.max_answer_bytes",
                            retryable=False,
                        )
                    parts.append(part)
        except httpx.HTTPError as error:
            raise self._fault(
                f"SciCat does not answer {method} {path}",
                f"an answer from {self._settings.url}",
                f"{type(error).__name__}: {error}"[:200],
            ) from None
        text = b"".join(parts)
        if not text.strip():
            return response.status_code, None
        try:
            return response.status_code, json.loads(text)
        except ValueError:
            if response.is_success:
                raise self._fault(
                    f"SciCat's answer to {method} {path} is no JSON", "JSON", repr(text[:80].decode("utf-8", "replace"))
                ) from None
            return response.status_code, text[:200].decode("utf-8", "replace")

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
                raise self._fault(
                    f"SciCat refuses the login of {settings.username!r}",
                    "a token",
                    f"status {status}",
                    next_step="check scicat.username and scicat.password",
                    retryable=False,
                )
            token = body.get("access_token") if isinstance(body, dict) else None
            if not 200 <= status < 300 or not isinstance(token, str):
                raise self._fault("SciCat's login gives no token", "access_token", f"status {status}: {_words(body)}")
            life = body.get("expires_in")
            self._token = token
            self._renew_at = time.monotonic() + RENEW_SHARE * (life if isinstance(life, (int, float)) else 600)

    def _fault(
        self,
        what: str,
        expected: str,
        found: str,
        *,
        next_step: str = "retried; see SciCat's log",
        retryable: bool = True,
    ) -> CatalogueFault:
        return CatalogueFault(what, expected=expected, found=found[:300], next_step=next_step, retryable=retryable)


def _words(body: Any) -> str:
    """What an error body says, whichever of its four shapes it has (contract 5)."""
    if isinstance(body, dict):
        message = body.get("message") or body.get("error") or ""
        body = "; ".join(str(part) for part in message) if isinstance(message, list) else message
    return str(body or "")[:200]
