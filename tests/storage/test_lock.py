"""The lock of an LTS queue: one process each, whatever ends it (P12)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.errors import LtsFault
from archiver.storage.lock import ExclusiveLock

HOLD = """
import subprocess, sys
from pathlib import Path
from archiver.storage.lock import ExclusiveLock
with ExclusiveLock(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    sys.stdin.read()
child.kill()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "lts-copy.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, and has a child as the worker has its verifier."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.communicate()
    try:
        os.kill(child, 9)
    except ProcessLookupError:
        pass


def test_p12_a_second_process_is_refused_and_told_who_holds_the_lock(path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LtsFault, match="queue lts-copy is served by another process") as caught, ExclusiveLock(path):
        pass
    assert f'"pid": {holder.pid}' in str(caught.value.found)
    assert not caught.value.retryable


def test_p12_the_lock_is_free_as_soon_as_its_holder_was_killed_though_its_child_lives(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    with ExclusiveLock(path):
        assert f'"pid": {os.getpid()}' in path.read_text()


def test_p12_a_lock_given_back_is_free(path: Path) -> None:
    for _ in range(2):
        with ExclusiveLock(path):
            pass


def test_a_lock_that_cannot_be_written_is_the_ltss_fault_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(LtsFault, match="cannot be taken") as caught, ExclusiveLock(tmp_path / "file" / "x.lock"):
        pass
    assert "worker.lock_dir" in str(caught.value.next_step)
