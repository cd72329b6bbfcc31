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

    @classmethod
    def from_json(cls, data: bytes) -> DatablockRecord:
        """The inverse of ``to_json``."""
        return cls(**json.loads(data))
