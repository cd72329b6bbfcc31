"""The proof that a dataset lies in the archive, by tools that are not ours: sha256sum, tar, diff."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

Checked = tuple[str, bool]
"""What was done, in words, and whether it held."""
SHOWN = 300


def check_bag(bag: Path, source: Path, scratch: Path) -> list[Checked]:
    """Check the bag's checksums, unpack its datablocks into a folder below ``scratch`` and compare that with ``source``.

    Changes nothing in ``bag``; what it unpacked is removed. May be repeated.
    """
    return [_sums(bag), _unpacked(bag, source, scratch)]


def _sums(bag: Path) -> Checked:
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "manifest-sha256.txt"], cwd=bag, capture_output=True, text=True
    )
    count = done.stdout.count(": OK\n")
    held = done.returncode == 0 and count == len(list(bag.glob("data/*"))) > 0
    said = f"{count} OK" if held else (done.stdout + done.stderr)[-SHOWN:].strip()
    return f"$ sha256sum -c manifest-sha256.txt   -> {said}", held


def _unpacked(bag: Path, source: Path, scratch: Path) -> Checked:
    command = "$ tar -xzf data/N.tar.gz; diff -r source unpacked   -> "
    with tempfile.TemporaryDirectory(dir=scratch, prefix="unpacked-") as folder:
        for block in sorted(bag.glob("data/*.tar.gz")):
            tar = subprocess.run(["tar", "-xzf", str(block), "-C", folder], capture_output=True, text=True)
            if tar.returncode:
                return command + tar.stderr[:SHOWN].strip(), False
        diff = subprocess.run(["diff", "-r", str(source), folder], capture_output=True, text=True, errors="replace")
    held = diff.returncode == 0
    return command + ("identical" if held else (diff.stdout + diff.stderr)[:SHOWN].strip()), held


def check_download(script: str, folder: Path, source: Path, pid: str, wanted: list[str]) -> tuple[str, bool]:
    """Run a download script in an empty folder with ``sh``, and compare what it brought with the source by ``cmp``: in words."""
    ended = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True)
    if ended.returncode or not script:
        last = (ended.stderr or ended.stdout or "no script").strip().splitlines()[-1:]
        return f"sh download.sh   -> exit {ended.returncode}: {''.join(last)[:200]}", False
    brought = sorted(str(path.relative_to(folder / pid)) for path in (folder / pid).rglob("*") if path.is_file())
    if brought != sorted(wanted):
        return f"sh download.sh   -> {len(brought)} files, {len(wanted)} wanted", False
    same = [subprocess.run(["cmp", "-s", source / path, folder / pid / path]).returncode == 0 for path in wanted]
    return f"sh download.sh; cmp   -> {sum(same)} of {len(wanted)} identical", all(same)
