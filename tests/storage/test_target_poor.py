"""Retrieval to file systems with fewer means: no modes, no syncing of folders, no links, names that cannot be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.errors import DestinationRefused, TargetFault
from archiver.progress import Silent
from archiver.storage import retrieval_directory
from archiver.storage.retrieval_directory import RetrievalDirectory, mark
from tests.storage.delivering import PID, deliver, file
from tests.storage.test_target_directory import everything, new_target

REFUSED_CHARACTERS = frozenset(':*?"<>|\\')


def refusing(number: int) -> Callable[..., Any]:
    def refuse(*given: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.fixture
def fat(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a FAT or NTFS volume says through the calls that we make: no modes, links and syncing of folders, few names."""
    real_open, real_mkdir, real_fsync = os.open, os.mkdir, os.fsync

    def checked(name: Any) -> None:
        text = name.decode() if isinstance(name, bytes) else str(name)
        last = text.rpartition("/")[2]
        if REFUSED_CHARACTERS & set(last) or last.endswith((".", " ")) or len(last) > 200:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def fat_open(name: Any, flags: int, *more: Any, **where: Any) -> int:
        if flags & os.O_CREAT:
            checked(name)
        return real_open(name, flags, *more, **where)

    def fat_mkdir(name: Any, *more: Any, **where: Any) -> None:
        checked(name)
        real_mkdir(name, *more, **where)

    def fat_fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "open", fat_open)
    monkeypatch.setattr(os, "mkdir", fat_mkdir)
    monkeypatch.setattr(os, "fsync", fat_fsync)
    monkeypatch.setattr(os, "fchmod", refusing(errno.EPERM))
    monkeypatch.setattr(os, "utime", refusing(errno.EPERM))
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))


@pytest.fixture
def target(tmp_path: Path, fat: None) -> RetrievalDirectory:
    (tmp_path / "root").mkdir()
    mark(tmp_path / "root", dry_run=False)
    return new_target(tmp_path / "root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "root/group/p1" / PID


def test_a_file_is_delivered_where_neither_time_nor_mode_nor_folder_can_be_set(
    target: RetrievalDirectory, folder: Path
) -> None:
    files = {"a.txt": b"1", "d/b é.h5": b"22", "d/e/c 1": b"", "d/c 2": b"4"}
    assert deliver(target, files.items()) == (4, 0)
    assert everything(folder) == files


@pytest.mark.parametrize("name", ["12:30.h5", "d/12:30/a", "d/what?", "ends.", "ends ", "d/" + "n" * 201])
def test_a_name_that_can_never_be_is_refused_by_name_before_a_byte_is_written(
    target: RetrievalDirectory, folder: Path, name: str
) -> None:
    sink = target.sink(PID, "all", "1", Silent(), piece="1")
    with pytest.raises(DestinationRefused) as caught:
        sink.begin(file(name, b"data"))
    sink.__exit__(DestinationRefused, caught.value, None)
    assert caught.value.file == ascii(name)
    assert "cannot have its name" in caught.value.what
    assert "another directory, or by links" in str(caught.value.next_step)
    assert everything(folder) == {}


def test_other_faults_of_setting_a_mode_are_told(target: RetrievalDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchmod", refusing(errno.EIO))
    with pytest.raises(TargetFault, match="Input/output error"):
        deliver(target, {"a": b"1"}.items())


def test_what_a_killed_attempt_left_of_trying_a_name_is_removed(
    target: RetrievalDirectory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*given: Any) -> None:
        raise Killed

    with monkeypatch.context() as now:
        now.setattr(retrieval_directory, "_remove_folder", killed)
        with pytest.raises(Killed):
            deliver(target, {"a b": b"1"}.items(), attempt="1")
    assert any(path.is_dir() for path in folder.iterdir())
    assert deliver(target, {"a b": b"1"}.items(), attempt="2") == (1, 0)
    assert [path.name for path in folder.iterdir()] == ["a b"]


@pytest.fixture
def folding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RetrievalDirectory:
    """A root on which letters of other case are the same name, as calls relative to open directories tell it."""
    real_open, real_stat, real_link = os.open, os.stat, os.link

    def there(name: Any, where: int | None) -> Any:
        if where is None or not isinstance(name, bytes):
            return name
        entries = [os.fsencode(entry) for entry in os.listdir(where)]
        return name if name in entries else next((one for one in entries if one.lower() == name.lower()), name)

    def folding_open(name: Any, flags: int, *more: Any, dir_fd: int | None = None) -> int:
        return real_open(name if flags & os.O_CREAT else there(name, dir_fd), flags, *more, dir_fd=dir_fd)

    def folding_stat(name: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        return real_stat(there(name, dir_fd), dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def folding_link(old: Any, new: Any, *, dst_dir_fd: int | None = None, **more: Any) -> None:
        real_link(old, there(new, dst_dir_fd), dst_dir_fd=dst_dir_fd, **more)

    monkeypatch.setattr(os, "open", folding_open)
    monkeypatch.setattr(os, "stat", folding_stat)
    monkeypatch.setattr(os, "link", folding_link)
    (tmp_path / "root").mkdir()
    mark(tmp_path / "root", dry_run=False)
    return new_target(tmp_path / "root")


@pytest.mark.parametrize("attempts", [1, 2])
def test_p2_two_names_that_are_one_to_the_file_system_are_never_told_as_delivered(
    folding: RetrievalDirectory, folder: Path, attempts: int
) -> None:
    if attempts == 2:
        assert deliver(folding, {"A.txt": b"same"}.items(), attempt="1") == (1, 0)
        assert deliver(folding, {"A.txt": b"same"}.items(), attempt="2") == (0, 1)
    with pytest.raises(DestinationRefused, match="cannot have its name") as caught:
        deliver(folding, {"A.txt": b"same", "a.txt": b"same"}.items(), attempt="3")
    # Of one attempt, whichever is written first.
    (delivered,) = everything(folder).items()
    assert delivered in ([("A.txt", b"same")] if attempts == 2 else [("A.txt", b"same"), ("a.txt", b"same")])
    assert caught.value.file == ("'A.txt'" if delivered[0] == "a.txt" else "'a.txt'")


def test_a_file_system_that_does_not_say_its_size_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    mark(tmp_path / "root", dry_run=False)
    real = os.fstatvfs
    monkeypatch.setattr(os, "fstatvfs", lambda fd: os.statvfs_result((*real(fd)[:2], 0, 0, 0, *real(fd)[5:])))
    new_target(tmp_path / "root", reserve="5%").check_space(10**12)
