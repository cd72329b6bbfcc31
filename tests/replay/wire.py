"""What the wire models look like: they travel through histories that outlive a version."""

from __future__ import annotations

from pathlib import Path

from archiver import model

SNAPSHOT = Path(__file__).parent / "wire_models.json"

Fields = dict[str, dict[str, object]]


def snapshot() -> dict[str, Fields]:
    """Each wire model's fields, with their types and whether they must be given."""
    models = {name: one for name, one in vars(model).items() if isinstance(one, type) and issubclass(one, model.Wire)}
    return {
        name: {
            field: {"type": str(info.annotation), "required": info.is_required()}
            for field, info in one.model_fields.items()
        }
        for name, one in models.items()
        if name != "Wire"
    }
