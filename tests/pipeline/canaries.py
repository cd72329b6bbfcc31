"""Secrets that are searched for wherever people or programs look (P8)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable

from temporalio.client import Client

CANARY = "canary-" + secrets.token_hex(12)
PRESIGNED = (
    f"https://user:{CANARY}@s3.example/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={CANARY}%2Fs3"
    f"&X-Amz-Security-Token={CANARY}&X-Amz-Signature={CANARY}"
)
"""What a server may echo."""


def hits(canaries: Iterable[bytes], data: bytes) -> list[bytes]:
    """The secrets in it, and the tail of each that a cut would leave."""
    return [secret for secret in canaries if secret in data or secret[:12] in data]


async def histories(client: Client) -> AsyncIterator[tuple[str, bytes]]:
    """Every event of every workflow of the namespace, payloads and failures included, as the server keeps them."""
    async for one in client.list_workflows():
        handle = client.get_workflow_handle(one.id, run_id=one.run_id)
        async for event in handle.fetch_history_events():
            yield f"{one.id} event {event.event_id}", event.SerializeToString()
