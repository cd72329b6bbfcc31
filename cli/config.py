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
    """Every setting as TOML: what it means, its environment variable, and its default, commented out."""
    lines: list[str] = []
    for section, field in Settings.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)  # noqa: S101
        assert issubclass(kind, BaseModel)  # noqa: S101
        lines += ["", f"[{section}]  # {(kind.__doc__ or '').splitlines()[0]}"]
        defaults = kind().model_dump(mode="json", exclude_none=True)
        for name, setting in kind.model_fields.items():
            lines += [f"# {line}" for line in (setting.description or "").splitlines()]
            variable = f"ARCHIVER_{section}__{name}".upper()
            if name in defaults:
                lines += [f"# {variable}", f"#{_assigned(name, defaults[name])}"]
            else:
                lines.append(f"# {variable}; not set by default")
    return "\n".join(lines).strip()


def _assigned(name: str, value: Any) -> str:
    """As a line of TOML; a table stands in it, because its own header would end the section."""
    if isinstance(value, dict):
        return f"{name} = {{ {', '.join(_assigned(key, one) for key, one in value.items())} }}"
    return tomli_w.dumps({name: value}).strip()
