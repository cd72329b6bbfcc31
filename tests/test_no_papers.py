"""The repository says its facts itself: it points at no paper that does not travel with it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAPERS = re.compile(
    r"scicat-contract|reliability-notes|performance-notes|temporal-notes|front-door\.md|predecessor-layout|design\.md"
    r"|\b(contract|design section|reliability rule) \d|\(rule \d|\bissue \d|\b(M(?:[1-9]|1[01])|V[1-8]|E(?:[1-9]|1\d|2[0-5]))\)"
)


def test_nothing_points_at_a_paper_that_is_not_here() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    found = []
    for name in filter(None, listed.decode().split("\0")):
        path = ROOT / name
        if path == Path(__file__) or path.suffix in (".json", ".gz", ".png", ".svg", ".lock") or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := PAPERS.search(line):
                found.append(f"{name}:{number}: {match[0]}")
    assert not found
