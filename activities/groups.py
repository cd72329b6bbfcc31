"""The queues and groups of queues that ``--queues`` takes: commands that only name them need not load what serves them."""

from __future__ import annotations

from archiver.errors import SettingsInvalid

LTS_QUEUES = ("lts-space", "lts-copy", "lts-verify", "lts-read", "lts-bag", "delete")
"""Exactly one process each (P12)."""

GROUPS: dict[str, tuple[str, ...]] = {
    "all": ("workflows", "catalogue", "pack", *LTS_QUEUES),
    "lts": LTS_QUEUES,
    "workflows": ("workflows",),
    "catalogue": ("catalogue",),
    "pack": ("pack",),
    **{name: (name,) for name in LTS_QUEUES},
}
"""What ``--queues`` takes, and the queues it stands for."""


def parse_queues(text: str) -> list[str]:
    """The queues of a comma-separated list of groups, each once. Raises ``SettingsInvalid`` for an unknown name."""
    queues: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if name not in GROUPS:
            raise SettingsInvalid(f"--queues names {name!r}", expected=f"any of {', '.join(GROUPS)}", found=repr(name))
        queues += [queue for queue in GROUPS[name] if queue not in queues]
    return queues
