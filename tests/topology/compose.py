"""docker-compose.yml as Compose's own loader resolves it."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.programs import ROOT, obtain

COMPOSE_FILE = ROOT / "docker-compose.yml"
ENV_EXAMPLE = ROOT / ".env.example"
OURS = ("setup", "worker-catalogue-pack", "worker-lts", "bridge")


class Refused(Exception):
    """The loader does not take the file; its words."""


def required_variables() -> list[str]:
    """The variables that .env.example leaves empty, for the operator to fill in."""
    return re.findall(r"^([A-Z0-9_]+)=$", ENV_EXAMPLE.read_text("utf-8"), re.MULTILINE)


def random_environment() -> dict[str, str]:
    """An .env as the operator makes it: a random value for each required variable."""
    return {name: secrets.token_hex(16) for name in required_variables()}


def resolve(variables: Mapping[str, str], file: Path = COMPOSE_FILE) -> dict[str, Any]:
    """The whole file with ``variables`` filled in, by the loader. Raises ``Refused``.

    compose-go's command looks no variable up in its environment (``LoadModel`` leaves it out, v2.16.2), but it does for an
    included file with an ``env_file``: so ours is included by a file of one line.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "test.env"
        environment.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        include = {"path": str(file), "env_file": str(environment), "project_directory": str(file.parent)}
        outer = Path(folder) / "outer.yml"
        outer.write_text(json.dumps({"name": "checked", "include": [include]}))
        return load(outer)


def load(file: Path, *options: str) -> dict[str, Any]:
    """What the loader makes of ``file``. Raises ``Refused``."""
    command = [str(obtain("compose-go")), "-format", "json", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, timeout=60)
    if done.returncode:
        raise Refused(done.stderr.strip())
    model: dict[str, Any] = json.loads(done.stdout)
    return model
