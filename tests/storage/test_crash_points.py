"""Killed at every system call of publishing, then run again: no final name ever holds partial bytes, nothing is left (P5)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import need
from tests.storage.conftest import new_lts

CALLS = ["write", "pwrite64", "fsync", "fdatasync", "link", "linkat", "rename", "renameat", "renameat2"]
CALLS += ["unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "fallocate", "ftruncate"]
DATA = b"datablock " * 50_000
MANIFEST = b"manifest " * 1000
PAYLOAD = {"data/1.tar.gz": DATA, "data/1.manifest.jsonl.gz": MANIFEST}
BAG = {
    "bagit.txt": b"BagIt-Version: 1.0\n",
    "bag-info.txt": b"Archiver-Plan: p1\n",
    "dataset.json": b"{}",
    "manifest-sha256.txt": "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in PAYLOAD.items()).encode(),
}
BAG["tagmanifest-sha256.txt"] = "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in BAG.items()).encode()
WHOLE = {f"20.500.1/a/{name}": data for name, data in {**PAYLOAD, **BAG}.items()}

DRIVER = """
import hashlib, os, signal, sys
from pathlib import Path
from archiver.progress import Silent
from archiver.settings import LtsSettings
from archiver.storage.lts_directory import FileSystemLts
from tests.storage.test_crash_points import BAG, DATA, MANIFEST

def archive(root, attempt):
    lts = FileSystemLts(LtsSettings(root=Path(root), reserve="0B"))
    lts.wait_for_space("k", len(DATA), Silent())
    lts.copy_in("20.500.1/a", "data/1.tar.gz", iter([DATA[:300_000], DATA[300_000:]]), size=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(), attempt=attempt, promise="k", progress=Silent())
    lts.put_small("20.500.1/a", "data/1.manifest.jsonl.gz", MANIFEST, attempt)
    lts.publish_bag("20.500.1/a", BAG, "p1", attempt, Silent())

for line in sys.stdin:
    root, attempt, traced = line.split()
    child = os.fork()
    if not child:
        if traced == "traced":
            os.kill(os.getpid(), signal.SIGSTOP)
        archive(root, attempt)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Driver:
    """A process that has everything imported and archives in a child of its own each time; the child can be traced."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, root: Path, attempt: str, *strace: str) -> int:
        """Archive; returns the child's wait status."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{root} {attempt} {'traced' if strace else 'free'}\n")
        child = self.number()
        tracer = None
        if strace:
            wait_for(lambda: "\nState:\tT" in Path(f"/proc/{child}/status").read_text())
            tracer = subprocess.Popen(["strace", "-f", *strace, "-p", str(child)], stderr=subprocess.PIPE, text=True)
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            os.kill(child, signal.SIGCONT)
        status = self.number()
        if tracer is not None:
            tracer.communicate()
        return status

    def number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def wait_for(condition: object) -> None:
    until = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    need("strace")
    made = Driver()
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture(scope="module")
def counted(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """How often one thread makes each call at most, in a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("clean")
    root, log = folder / "lts", folder / "log"
    root.mkdir()
    new_lts(root)
    assert driver.run(root, "clean", "-e", f"trace={','.join(CALLS)}", "-o", str(log)) == 0
    assert found(root) == WHOLE
    by_thread = Counter(re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.MULTILINE))
    most: Counter[str] = Counter()
    for (_, call), times in by_thread.items():
        most[call] = max(most[call], times)
    return most


def found(root: Path) -> dict[str, bytes]:
    """Every file of the dataset, and what else may have been left anywhere."""
    ours = (".archiver-lts.json", ".archiver/")
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(ours)}


def test_p5_the_calls_that_are_killed_are_those_that_publishing_makes(counted: Counter[str]) -> None:
    assert {"pwrite64", "write", "fsync", "rename", "unlink", "mkdir", "fallocate", "ftruncate"} <= set(counted)
    assert {"link", "linkat"} & set(counted)


@pytest.mark.parametrize("call", CALLS)
def test_p5_killed_at_any_call_and_run_again_the_archive_is_whole(
    driver: Driver, counted: Counter[str], tmp_path: Path, call: str
) -> None:
    for n in range(1, counted[call] + 1):
        root = tmp_path / "lts"
        root.mkdir()
        new_lts(root)
        status = driver.run(root, "first", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={n}")
        assert os.WTERMSIG(status) == signal.SIGKILL, f"{call} {n} was not reached"
        there = found(root)
        finals = {name: data for name, data in there.items() if not name.endswith(".partial")}
        assert finals.items() <= WHOLE.items(), f"{call} {n}: a final name holds other bytes"
        order = [name for name in WHOLE if name in finals]
        assert order == list(WHOLE)[: len(order)], f"{call} {n}: something was published before its time"
        assert driver.run(root, "second") == 0
        assert found(root) == WHOLE, f"{call} {n}"
        assert list((root / ".archiver/promises").glob("*.json")) == []
        shutil.rmtree(root)
