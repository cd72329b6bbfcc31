"""``ArchiveDatablock``: pack -> wait for LTS space -> copy to LTS -> verify in LTS."""

from __future__ import annotations

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from archiver import model as m

from workflows import receipt, steps
from workflows.visible import details, explain, size

MISMATCH = "IntegrityMismatch"
TRIES = 3
"""Times a datablock is made from the source before other bytes than were packed, in staging or on the LTS, are a failure of
the dataset."""


@workflow.defn(name="ArchiveDatablock")
class ArchiveDatablock:
    """One datablock, from the landing zone to a verified file on the LTS. Registers nothing."""

    @workflow.init
    def __init__(self, request: m.ArchiveDatablockRequest) -> None:
        self.request = request
        self.stage = "queued"
        self.tries = 1
        self.packed: m.PackResult | None = None
        self.events: list[m.Event] = []

    @workflow.query(description="Stage and sizes of this datablock; live bytes are in the pending activity's heartbeat")
    def progress(self) -> m.DatablockProgress:
        """Answer the ``progress`` query."""
        packed = self.packed
        return m.DatablockProgress(
            pid=self.request.pid,
            n=self.request.n,
            of=self.request.of,
            stage=self.stage,
            size_bytes=packed.size_bytes if packed else 0,
            packed_bytes=packed.packed_bytes if packed else 0,
            files=packed.files if packed else 0,
            tries=self.tries,
        )

    @workflow.run
    async def run(self, request: m.ArchiveDatablockRequest) -> m.ArchiveDatablockResult:
        """Raises the failed step's error; leaves what it made to the dataset's roll-back."""
        packed: m.PackResult | None = None
        while True:
            try:
                if self.tries > 1 or not request.reuse:
                    packed = await self.pack()
                    await self.copy(packed)
                return await self.verify(packed)
            except ActivityError as error:
                cause = explain(error)
                staged = cause.lost in ("datablock", "manifest")
                if not (staged or cause.type == MISMATCH) or self.tries >= TRIES:
                    raise
                self.tries += 1
                if staged:
                    # Nothing is wrong with what the LTS holds.
                    self.note(
                        "fixity check", f"was damaged in staging, and is packed anew: {cause.message}", failed=True
                    )
                    continue
                self.note("fixity check", f"did not match: {cause.message}", failed=True)
                await self.quarantine()
                self.note(
                    "quarantine", "was taken into quarantine on the LTS, unchanged, to be looked at; it is made anew"
                )

    async def pack(self) -> m.PackResult:
        """Pack into staging."""
        self.at("pack")
        r = self.request
        self.packed = await steps.PACK.run(
            m.PackRequest(**self.ref(), plan_index=r.plan_index, source=r.source, fresh=self.tries > 1),
            policy=r.policy,
            summary=f"pack datablock {r.n}/{r.of} of {r.pid}",
            size_bytes=m.PACK_READS * r.largest_bytes,
        )
        packed = self.packed
        self.note(
            "packing",
            f"was packed: {packed.files} files, each read once, its SHA-256 taken and compared with the catalogue's checksum "
            "where it has one",
            agent=packed.agent,
            files=packed.files,
            bytes=packed.size_bytes,
            packed_bytes=packed.packed_bytes,
            sha256=packed.sha256,
            manifest_sha256=packed.manifest_sha256,
        )
        return packed

    async def copy(self, packed: m.PackResult) -> None:
        """Wait for space, then copy; the space is promised to this datablock in between."""
        r = self.request
        self.at("wait for LTS space")
        await steps.WAIT_FOR_SPACE.run(
            m.SpaceRequest(**self.ref(), need_bytes=packed.packed_bytes),
            policy=r.policy,
            summary=f"wait for {size(packed.packed_bytes)} on the LTS for datablock {r.n}/{r.of}",
        )
        self.at("copy to LTS")
        copied = await steps.COPY.run(
            m.CopyRequest(**self.ref(), packed_bytes=packed.packed_bytes, sha256=packed.sha256),
            policy=r.policy,
            summary=f"copy datablock {r.n}/{r.of} to the LTS, {size(packed.packed_bytes)}",
            size_bytes=m.COPY_READS * packed.packed_bytes,
        )
        self.note(
            "transfer",
            "was copied to the LTS; its bytes are those that were packed",
            agent=copied.agent,
            packed_bytes=packed.packed_bytes,
        )

    async def verify(self, packed: m.PackResult | None) -> m.ArchiveDatablockResult:
        """Read back and compare; only this makes a datablock count."""
        r = self.request
        self.at("verify in LTS")
        known = {"packed_bytes": packed.packed_bytes, "manifest_sha256": packed.manifest_sha256} if packed else {}
        verified = await steps.VERIFY.run(
            m.VerifyRequest(**self.ref(), **known, job_id=r.job_id, events=self.events),
            policy=r.policy,
            summary=f"verify datablock {r.n}/{r.of} in the LTS" + ("" if packed else " (was there already)"),
            size_bytes=max(r.largest_bytes, packed.packed_bytes if packed else 0),
        )
        self.at("verified")
        return m.ArchiveDatablockResult(
            n=r.n,
            size_bytes=verified.size_bytes,
            packed_bytes=verified.packed_bytes,
            files=verified.files,
            digest=verified.digest,
            level=verified.level,
            reused=packed is None,
            events=[*self.events, *filter(None, [verified.event])],
        )

    async def quarantine(self) -> None:
        """Move what does not match out of the dataset's directory, unchanged, for people to look at."""
        r = self.request
        await steps.QUARANTINE.run(
            m.DatablockRef(**self.ref()),
            policy=r.policy,
            summary=f"datablock {r.n}/{r.of} into quarantine: it did not verify",
        )

    def note(self, type: str, text: str, *, agent: str = "", failed: bool = False, **detail: int | float | str) -> None:
        """Remember what happened, for the dataset's receipt."""
        r = self.request
        said = receipt.event(
            type,
            f"Datablock {r.n} {text}",
            pid=r.pid,
            job=r.job_id,
            datablock=f"{r.n}.{r.format}",
            agent=agent,
            failed=failed,
            detail=detail,
        )
        self.events.append(said)

    def ref(self) -> dict[str, Any]:
        """The fields of ``DatablockRef``."""
        r = self.request
        return {"pid": r.pid, "run": r.run, "plan_id": r.plan_id, "n": r.n, "format": r.format}

    def at(self, stage: str) -> None:
        """Enter a stage."""
        self.stage = stage
        r, packed = self.request, self.packed
        rows = [("dataset", r.pid), ("datablock", f"{r.n} of {r.of}"), ("job", r.job_id), ("try", self.tries)]
        if packed:
            rows.append(
                ("size", f"{size(packed.size_bytes)} in {packed.files} files, packed {size(packed.packed_bytes)}")
            )
        details(stage, rows)
