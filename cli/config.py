"""``archiver config``: the settings in force and what each means."""

from __future__ import annotations

from typing import Any

import tomli_w
from pydantic import BaseModel

from archiver.settings import Settings, table_of

TEMPORALS = "TEMPORAL_* variables, or the file that they or temporal.config_file name"


def shown(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The settings in force as TOML and as data, secrets masked.

    Temporal's own environment goes over ours: what wins is shown, with the variable or file that it comes from.
    """
    data: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
    over = _of_temporal(settings)
    data["temporal"] |= over
    notes = [
        f"# temporal.{name} = {value!r} is Temporal's own environment's ({TEMPORALS})" for name, value in over.items()
    ]
    return "\n".join([*notes, tomli_w.dumps(data).rstrip()]), data


def _of_temporal(settings: Settings) -> dict[str, Any]:
    """Address and namespace, where Temporal's environment configuration says other ones."""
    from activities.connection import configured

    config = configured(settings)
    ours = settings.temporal
    found = {"address": config["target_host"], "namespace": config["namespace"]}
    return {name: value for name, value in found.items() if value != getattr(ours, name)}


def missing(settings: Settings) -> list[str]:
    """What no archiver works without and has no default that could be right."""
    scicat, lts = settings.scicat, settings.lts
    gaps = [] if scicat.token or scicat.username else ["scicat.token, or scicat.username and scicat.password"]
    if not ({"root", "bucket"} & lts.model_fields_set):
        gaps.append("lts.root or lts.bucket.name")
    return gaps


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
