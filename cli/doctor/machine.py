"""This machine: limits and versions. It may be another than the workers', so run the doctor where they run."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import version

from cli.doctor.check import Check, Finding, fail, ok, warn
from cli.doctor.ground import Ground

FEW_FILES = 256
SCARCE_FILES = 1024
"""A worker of all queues keeps some hundred connections and files open."""


async def open_files(ground: Ground) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} (hard limit {hard})"
    if soft < FEW_FILES:
        return fail(text)
    return ok(text) if soft >= SCARCE_FILES else warn(text)


async def versions(ground: Ground) -> Finding:
    sdk = version("temporalio")
    if not ((1, 35) <= tuple(int(part) for part in sdk.split(".")[:2]) < (2, 0)):
        return fail(f"temporalio {sdk}", "install temporalio>=1.35,<2")
    return ok(
        f"archiver {version('scicat-archiver')}, temporalio {sdk}, Python {platform.python_version()}, {sys.platform}"
    )


CHECKS = (
    Check(
        "machine open files",
        f"a process may open {SCARCE_FILES} files or more",
        "ulimit -n 4096, or LimitNOFILE= of the service, for the workers too",
        open_files,
    ),
    Check(
        "machine versions",
        "the libraries are of versions that belong together",
        "install again from requirements.lock",
        versions,
    ),
)
