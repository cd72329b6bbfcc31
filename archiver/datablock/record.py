"""What is known of a verified datablock: the link between verification, the bag and registration."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class DatablockRecord:
    """Made by verification only. Sizes in bytes; ``level``: what the verification proved; times ISO 8601 UTC."""

    n: int
    plan_id: str
    size_bytes: int
    packed_bytes: int
    files: int
    sha256: str
    manifest_sha256: str
    manifest_bytes: int
    level: str
    how_read: str
    verified_at: str
    events: list[dict[str, Any]] = field(default_factory=list)
    """What happened to it in the run that verified it, for the dataset's receipt."""

    def to_json(self) -> bytes:
        """For the staging bucket."""
        return json.dumps(asdict(self)).encode()

    def to_index(self) -> bytes:
        """One line for the list of what a bag holds; the same datablock, proved to the same level, gives the same line."""
        lasting = {**asdict(self), "how_read": "", "verified_at": "", "events": []}
        return json.dumps(lasting).encode() + b"\n"

    @property
    def proved(self) -> tuple[int, str, int, int, int, str, str, int]:
        """What of it the datablock's manifest proves."""
        return (
            *(self.n, self.plan_id, self.size_bytes, self.packed_bytes, self.files),
            *(self.sha256, self.manifest_sha256, self.manifest_bytes),
        )

    @classmethod
    def read(cls, data: bytes) -> DatablockRecord | None:
        """The inverse of ``to_json`` and ``to_index``; None for what is no record."""
        try:
            record = cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None
        return record if isinstance(record.events, list) and isinstance(record.level, str) else None
