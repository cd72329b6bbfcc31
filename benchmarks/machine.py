"""On what was measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import psutil

MEMORY = frozenset({"tmpfs", "ramfs"})


def describe(folder: Path) -> list[str]:
    """Machine, disk and programs, a line each."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    disk = _mount(folder)
    return [
        f"machine: {model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB memory",
        f"kernel: {platform.system()} {platform.release()}; Python {platform.python_version()}",
        f"disk (source, scratch and LTS on the same one): {disk.device}, {disk.fstype}",
        "programs: " + ", ".join(_version(*command) for command in PROGRAMS),
    ]


PROGRAMS = (("rclone", "version"), ("igzip", "--version"), ("tar", "--version"), ("openssl", "version"))


def on_a_disk(folder: Path) -> bool:
    """Whether ``folder`` lies on a disk and not in memory."""
    return _mount(folder).fstype not in MEMORY


def missing(programs: tuple[str, ...]) -> list[str]:
    """Those that are not there."""
    return [program for program in programs if shutil.which(program) is None]


def _mount(folder: Path):  # type: ignore[no-untyped-def]
    path = str(folder.resolve())
    mounts = [
        entry for entry in psutil.disk_partitions(all=True) if path.startswith(entry.mountpoint.rstrip("/") + "/")
    ]
    return max(mounts, key=lambda entry: len(entry.mountpoint))


def _version(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return f"no {command[0]}"
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout or done.stderr).splitlines()[0].strip()
