"""``archiver config``: the settings in force and what each means."""

from __future__ import annotations

from typing import Any

import tomli_w
from pydantic import BaseModel

from archiver.settings import Settings, table_of


def shown(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The settings as TOML and as data, secrets masked."""
    data: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
    return tomli_w.dumps(data).rstrip(), data


def explained() -> str:
    """Every setting as TOML: what it means, its environment variable, and its default, commented out."""
    lines: list[str] = []
    for section, field in Settings.model_fields.items():
        kind = table_of(field.annotation)
        assert kind is not None  # noqa: S101
        lines += _explained(section, kind, kind().model_dump(mode="json", exclude_none=True))
    return "\n".join(lines).strip()


def _explained(section: str, kind: type[BaseModel], defaults: dict[str, Any] | None) -> list[str]:
    """One section, and the tables in it. Without ``defaults`` it is one that a file need not have: all commented out."""
    head = f"[{section}]  # {(kind.__doc__ or '').splitlines()[0]}"
    # Where all is commented out, a space tells: what is taken out of its comment is a file of the defaults.
    mark = "#" if defaults is not None else "# "
    lines = ["", head if defaults is not None else f"# {head}"]
    tables: list[str] = []
    for name, setting in kind.model_fields.items():
        lines += [f"# {line}" for line in (setting.description or "").splitlines()]
        variable = f"ARCHIVER_{section.replace('.', '__')}__{name}".upper()
        given = setting.get_default(call_default_factory=True)
        default = defaults.get(name) if defaults is not None else None if setting.is_required() else given
        if (table := table_of(setting.annotation)) is not None:
            lines.append(f"# a table, below; {variable}__... in the environment")
            tables += _explained(f"{section}.{name}", table, None)
        elif default is not None:
            lines += [f"# {variable}", f"{mark}{_assigned(name, default)}"]
        else:
            lines.append(f"# {variable}; {'must be given' if setting.is_required() else 'not set by default'}")
    return lines + tables


def _assigned(name: str, value: Any) -> str:
    """As a line of TOML; a table stands in it, because its own header would end the section."""
    if isinstance(value, dict):
        return f"{name} = {{ {', '.join(_assigned(key, one) for key, one in value.items())} }}"
    return tomli_w.dumps({name: value}).strip()
