"""``archiver config``: the settings in force and what each means."""

from __future__ import annotations

from typing import Any

import tomli_w
from pydantic import BaseModel

from archiver.settings import Settings


def shown(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The settings as TOML and as data, secrets masked."""
    data: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
    return tomli_w.dumps(data).rstrip(), data


def explained() -> str:
    """Every setting as commented TOML."""
    lines: list[str] = []
    for section, field in Settings.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)  # noqa: S101
        assert issubclass(kind, BaseModel)  # noqa: S101
        lines += ["", f"[{section}]  # {(kind.__doc__ or '').splitlines()[0]}"]
        defaults = field.get_default(call_default_factory=True).model_dump(mode="json")
        for name, setting in kind.model_fields.items():
            default = defaults.get(name)
            value = tomli_w.dumps({name: default}).strip().splitlines()[0] if default not in (None, {}) else f"{name} ="
            lines += [f"# {line}" for line in (setting.description or "").splitlines()]
            lines.append(f"#{value}   (ARCHIVER_{section.upper()}__{name.upper()})")
    return "\n".join(lines).strip()
