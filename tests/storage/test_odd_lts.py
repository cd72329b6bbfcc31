"""An LTS on file systems that lack this or that: what can be done without is, and what cannot is refused by name, at once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from archiver.direct_io import PastCacheReader
from archiver.errors import LtsFault, LtsMarkerMissing
from archiver.progress import Silent
from archiver.settings import LtsSettings
from archiver.storage import lts_directory
from archiver.storage.direct_write import write_stream
from archiver.storage.lts_directory import FileSystemLts
from tests.storage.conftest import new_lts
from tests.storage.test_late import archive, assert_whole
from tests.storage.test_lts import BLOCK, PID, copy, verified

DATA = os.urandom(9 * 2**20 + 12_345)


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def test_o_direct_that_opens_and_then_refuses_the_write_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.pwrite, []

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if is_direct(descriptor):
            refused.append(offset)
            raise OSError(errno.EINVAL, "refused")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    path = tmp_path / "block"
    given: dict[str, Any] = {"size": len(DATA), "direct_io": True, "reserved": lambda done: None, "progress": Silent()}
    assert write_stream(path, [DATA], **given) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (path.read_bytes() == DATA, len(refused)) == (True, 1)


@pytest.mark.parametrize("from_offset", [0, 1])
def test_o_direct_that_opens_and_then_refuses_a_read_is_done_without_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_offset: int
) -> None:
    real, refused = os.preadv, []

    def preadv(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        if is_direct(descriptor) and offset >= from_offset:
            refused.append(offset)
            raise OSError(errno.EINVAL, "refused")
        return real(descriptor, buffers, offset)

    path = tmp_path / "block"
    path.write_bytes(DATA)
    monkeypatch.setattr(os, "preadv", preadv)
    reader = PastCacheReader(path)
    assert b"".join(bytes(chunk) for chunk in reader) == DATA
    assert (reader.how, len(refused)) == ("fsync+DONTNEED", 1)


def test_a_file_system_that_tells_of_no_blocks_is_not_full(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def statvfs(path: Any) -> os.statvfs_result:
        found = list(real(path))
        found[2] = found[3] = found[4] = 0
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)
    lts = new_lts(root, reserve="1TiB")
    assert lts.space() is None
    lts.wait_for_space("k", 2**40, Silent())
    copy(lts)
    assert lts.probe() == ["tells how full it is (statfs)"]


def test_a_directory_that_cannot_be_fsynced_is_written_to_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "refused")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    lts = new_lts(root)
    archive(lts)
    assert_whole(root)
    assert lts.probe() == ["makes directories durable (fsync)"]


def test_an_error_of_a_directorys_fsync_is_one(lts: FileSystemLts, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "broken")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(LtsFault, match="broken"):
        copy(lts)


def test_folders_of_others_in_the_root_stop_nothing(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified(root)
    for foreign in ("lost+found", "foreign", "20.500.1/closed", ".Trash-0"):
        (root / foreign / "data").mkdir(parents=True)
    (root / "20.500.1/left/data").mkdir(parents=True)
    (root / "20.500.1/left" / BLOCK).write_bytes(b"unverified")
    closed = [str(root / name) for name in ("lost+found", "foreign", "20.500.1/closed")]

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".") -> Any:
            if any(str(path).startswith(one) for one in closed):
                raise PermissionError(errno.EACCES, "not yours", str(path))
            return real(path)

        return call

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    assert sorted(lts.datasets()) == [PID, "20.500.1/closed", "20.500.1/left"]
    assert [left.dataset for left in lts.leftovers(Silent())] == ["20.500.1/left"]


def test_a_root_that_may_not_be_read_is_a_fault(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path) == str(root):
            raise PermissionError(errno.EACCES, "not yours", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(LtsFault, match="not yours"):
        list(lts.datasets())


def test_a_name_that_the_file_system_cannot_hold_is_refused_at_once(
    lts: FileSystemLts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: Any, *more: Any, **named: Any) -> None:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(LtsFault, match="cannot hold") as caught:
        copy(lts)
    assert not caught.value.retryable


# --- what setup and doctor try on the real mount ----------------------------------------------------------------------


def clobbering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lts_directory, "publish", lambda partial, final: os.replace(partial, final))


def caseless(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "fINAL" or real(path))


def touching(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move makes another time of change."""
    real = os.rename

    def rename(first: Any, second: Any) -> None:
        real(first, second)
        os.utime(second, ns=(0, 0))

    monkeypatch.setattr(os, "rename", rename)


def short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.mkdir

    def mkdir(path: Any, *more: Any, **named: Any) -> None:
        if len(Path(path).name) > 143:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        real(path, *more, **named)

    monkeypatch.setattr(os, "mkdir", mkdir)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (clobbering, "overwrites a file that is there"),
        (caseless, "small letters"),
        (touching, "rename"),
        (short_names, "cannot hold"),
    ],
)
def test_setup_refuses_what_lacks_what_is_needed_and_names_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, odd: Callable[[pytest.MonkeyPatch], None], said: str
) -> None:
    lts = FileSystemLts(LtsSettings(root=root))
    with monkeypatch.context() as patch:
        odd(patch)
        with pytest.raises(LtsFault) as caught:
            lts.setup()
    assert said in str(caught.value)
    assert not caught.value.retryable
    with pytest.raises(LtsMarkerMissing):
        lts.check_marker()
    assert [path for path in root.rglob("*") if path.is_file()] == []
    lts.setup()
    assert lts.probe() == []
    assert [path.name for path in (root / ".archiver").iterdir() if path.name.startswith("probe")] == []
