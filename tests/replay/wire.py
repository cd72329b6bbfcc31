"""What the wire models look like: they travel through histories that outlive a version."""

from __future__ import annotations

import re
from pathlib import Path

from archiver import model
from archiver.retrieval import wire

SNAPSHOT = Path(__file__).parent / "wire_models.json"

Fields = dict[str, dict[str, object]]


def snapshot() -> dict[str, Fields]:
    """Each wire model's fields, with their types and whether they must be given."""
    known = {**vars(model), **vars(wire)}
    models = {name: one for name, one in known.items() if isinstance(one, type) and issubclass(one, model.Wire)}
    return {
        name: {
            field: {"type": str(info.annotation), "required": info.is_required()}
            for field, info in one.model_fields.items()
        }
        for name, one in models.items()
        if name != "Wire"
    }


def may_follow(before: dict[str, object], now: dict[str, object] | None) -> bool:
    """Whether what was sent under the facts of ``before`` is still read: the same, or a choice of more values."""
    if now is None or before == now:
        return before == now
    was, became = str(before["type"]), str(now["type"])
    if not (was.startswith("typing.Literal[") and became.startswith("typing.Literal[")):
        return False
    return before["required"] == now["required"] and set(re.findall("'(.*?)'", was)) <= set(
        re.findall("'(.*?)'", became)
    )
