"""The files of a dev system's directory: what stays the same over restarts, its settings, its addresses.

All of them hold secrets and are readable by their owner only.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from archiver.errors import SettingsInvalid
from cli import servers

NAMESPACE = "default"
DEV_JSON = "dev.json"
CONFIG = "archiver.toml"
TEMPORAL_CONFIG = "temporal.toml"
STATE = "state.json"


@dataclass
class State:
    """What a second start with the same directory finds again: secrets, and the ports where they are still free."""

    s3_access_key: str
    s3_secret_key: str
    scicat_user: str
    scicat_password: str
    ports: dict[str, int] = field(default_factory=dict)
    bridge_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))


def read_state(folder: Path) -> State:
    """The directory's state, or a new one with secrets of its own."""
    path = folder / STATE
    if path.exists():
        return State(**json.loads(path.read_text()))
    return State("dev" + secrets.token_hex(6), secrets.token_urlsafe(24), "archiver", secrets.token_urlsafe(18))


def write_state(folder: Path, state: State) -> None:
    """Keep ``state`` for the next start."""
    write_private(folder / STATE, json.dumps(asdict(state)).encode())


def choose_ports(given: dict[str, int], last: dict[str, int]) -> dict[str, int]:
    """A port for each name: the one given, else the last one, else a free one; 0 is none given.

    Raises ``SettingsInvalid`` if a given one is in use: what listens there must not be taken for our own server.
    """
    for name, port in given.items():
        if port and not servers.is_free(port):
            raise SettingsInvalid(
                f"port {port} is in use",
                expected="a free port of 127.0.0.1",
                found="something listens there",
                next_step=f"give another --{name}-port, or none",
            )
    ports = {name: port for name, port in given.items() if port}
    for name in given:
        if name not in ports:
            port = last.get(name, 0)
            while not port or port in ports.values() or not servers.is_free(port):
                port = servers.free_port()
            ports[name] = port
    return ports


def addresses(folder: Path, state: State, *, scicat_url: str, scicat_user: str, scicat_password: str) -> dict[str, Any]:
    """What ``dev.json`` holds. Without ``scicat_url`` the SciCat is the stand-in."""
    return {
        "temporal_address": f"127.0.0.1:{state.ports['temporal']}",
        "temporal_ui": f"http://127.0.0.1:{state.ports['ui']}",
        "namespace": NAMESPACE,
        "s3_endpoint": f"http://127.0.0.1:{state.ports['s3']}",
        "s3_access_key": state.s3_access_key,
        "s3_secret_key": state.s3_secret_key,
        "buckets": {"landing": "landing", "staging": "staging", "retrieval": "retrieval"},
        "landing_url_template": "s3://landing/{pid}/",
        "lts_root": str(folder / "lts"),
        "scicat_url": scicat_url or f"http://127.0.0.1:{state.ports['scicat']}",
        "scicat_user": scicat_user or state.scicat_user,
        "scicat_password": scicat_password or state.scicat_password,
        "bridge_url": f"http://127.0.0.1:{state.ports['bridge']}",
        "bridge_token": state.bridge_token,
    }


def write_settings(folder: Path, info: dict[str, Any], *, datablock_bytes: int, sweep_seconds: float = 0) -> None:
    """Write ``archiver.toml``, and beside it Temporal's own file: a user's one must not lead to another server."""
    profile = {"address": info["temporal_address"], "namespace": info["namespace"]}
    temporal = folder / TEMPORAL_CONFIG
    write_private(temporal, tomli_w.dumps({"profile": {"default": profile}}).encode())
    settings: dict[str, dict[str, object]] = {
        "temporal": {**profile, "config_file": str(temporal)},
        "scicat": {
            "url": info["scicat_url"],
            "username": info["scicat_user"],
            "password": info["scicat_password"],
        },
        "s3": {
            "endpoint": info["s3_endpoint"],
            "access_key": info["s3_access_key"],
            "secret_key": info["s3_secret_key"],
        },
        "landing": {"url_template": info["landing_url_template"]},
        "staging": {"bucket": info["buckets"]["staging"]},
        "retrieval": {"bucket": info["buckets"]["retrieval"]},
        "lts": {"root": info["lts_root"], "identity": "dev", "reserve": "64MiB", "space_poll_seconds": 1.0},
        "worker": {"graceful_shutdown_seconds": 5.0},
        "bridge": {"port": int(info["bridge_url"].rpartition(":")[2]), "token": info["bridge_token"]},
        "doctor": {"dev": True},
    }
    if datablock_bytes:
        settings["datablock"] = {"target_bytes": datablock_bytes}
    if sweep_seconds:
        settings["sweep"] = {"every_seconds": sweep_seconds}
    write_private(folder / CONFIG, tomli_w.dumps(settings).encode())


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_name(f"{path.name}.partial")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)
