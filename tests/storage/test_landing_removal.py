"""Source files are removed under names of the remover's own: late, killed and doubled attempts harm nothing (P1)."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from archiver.datablock.files import PlannedFile
from archiver.errors import SourceFault, Stopped, SystemFault
from archiver.progress import Silent
from archiver.settings import S3Settings
from archiver.storage import directory
from archiver.storage.landing import Landing, S3Landing
from tests.storage.conftest import new_bucket
from tests.storage.test_landing import opened, planned

OLD, NEW = b"archived", b"somebody's new file, put there while the process stood still"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (path := tmp_path / "p" / "x").mkdir(parents=True)
    (path / "a").write_bytes(OLD)
    (path / "b").write_bytes(OLD)
    return path


def landing_of(folder: Path) -> Landing:
    return opened(f"file://{folder.parent.parent}/{{pid}}/", {"pid": "p/x"})


def archived(folder: Path) -> list[tuple[PlannedFile, str]]:
    return [(planned(file), hashlib.sha256(OLD).hexdigest()) for file in landing_of(folder).list()]


def there(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def at(monkeypatch: pytest.MonkeyPatch, call: str, do: Callable[[], object]) -> None:
    """``do`` once, right before the first ``call`` of the module ``os``, as if the process had stood still there."""
    real = getattr(os, call)
    todo = [do]

    def late(*given: Any, **more: Any) -> Any:
        if todo:
            todo.pop()()
        return real(*given, **more)

    monkeypatch.setattr(os, call, late)


class Killed(BaseException):
    """The process ends here: nothing is cleaned up."""


def killed() -> None:
    raise Killed


@pytest.mark.parametrize("call", ["rename", "unlink"])
def test_p1_a_late_attempt_leaves_what_was_put_there_after_the_job_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    files = archived(folder)

    def another_removes_all_and_somebody_writes_anew() -> None:
        landing_of(folder).delete(files, Silent())
        (folder / "a").write_bytes(NEW)

    at(monkeypatch, call, another_removes_all_and_somebody_writes_anew)
    assert landing_of(folder).delete(files, Silent()) == 0
    assert there(folder) == {"a": NEW}


@pytest.mark.parametrize("call", ["rename", "unlink"])
def test_p5_what_a_killed_attempt_moved_is_removed_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    files = archived(folder)
    at(monkeypatch, call, killed)
    with pytest.raises(Killed):
        landing_of(folder).delete(files, Silent())
    assert sorted(there(folder).values()) == [OLD, OLD]
    assert landing_of(folder).delete(files, Silent()) == 2
    assert there(folder) == {}


def test_p1_what_a_killed_attempt_moved_is_put_back_if_it_is_not_the_archived_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = archived(folder)
    at(monkeypatch, "rename", lambda: (folder / "a").write_bytes(NEW))
    at(monkeypatch, "link", killed)
    with pytest.raises(Killed):
        landing_of(folder).delete(files, Silent())
    assert "a" not in there(folder)
    monkeypatch.undo()
    assert landing_of(folder).delete(files, Silent()) == 1
    assert there(folder) == {"a": NEW}


@pytest.mark.parametrize("links", [True, False])
def test_p1_what_was_put_there_between_look_and_move_is_moved_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(
            os, "link", lambda *given, **more: (_ for _ in ()).throw(PermissionError(1, "no links here"))
        )
    at(monkeypatch, "rename", lambda: ((folder / "a").unlink(), (folder / "a").write_bytes(NEW)))
    assert landing_of(folder).delete(archived(folder), Silent()) == 1
    assert there(folder) == {"a": NEW}


def test_p1_of_a_file_that_was_replaced_twice_meanwhile_both_stay_and_it_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "rename", lambda: (folder / "a").write_bytes(NEW))
    at(monkeypatch, "link", lambda: (folder / "a").write_bytes(b"newer"))
    with pytest.raises(SourceFault, match="file 'a' was replaced twice") as caught:
        landing_of(folder).delete(archived(folder), Silent())
    assert not caught.value.retryable
    (own,) = (name for name in there(folder) if name.startswith(".archiver-removing."))
    assert own in str(caught.value.found)
    assert there(folder) == {"a": b"newer", "b": OLD, own: NEW}


def test_p6_an_attempt_that_stood_still_moves_nothing(folder: Path) -> None:
    class StoodStill(Silent):
        def advance(self, size_bytes: int = 0, files: int = 0) -> None:
            raise Stopped("stood still for 90 s")

    with pytest.raises(Stopped):
        landing_of(folder).delete(archived(folder), StoodStill())
    assert there(folder) == {"a": OLD, "b": OLD}


def test_p1_a_file_that_is_written_between_its_reading_and_its_move_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = archived(folder)
    opened_archived = directory.DirectoryLanding.open_archived

    def then_written(*given: Any) -> Any:
        found = opened_archived(*given)
        if (folder / "a").exists():
            (folder / "a").write_bytes(NEW)
        return found

    monkeypatch.setattr(directory.DirectoryLanding, "open_archived", then_written)
    assert landing_of(folder).delete(files, Silent()) == 1
    assert there(folder) == {"a": NEW}


def test_without_the_right_to_remove_nothing_is_read_and_nothing_retried(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = archived(folder)
    monkeypatch.setattr(os, "access", lambda *given, **more: False)
    monkeypatch.setattr(os, "read", lambda *given: pytest.fail("a file was read"))
    with pytest.raises(SourceFault, match=f"source files in file://{folder}/ cannot be removed") as caught:
        landing_of(folder).delete(files, Silent())
    assert not caught.value.retryable


def test_a_read_only_landing_zone_is_told_as_such(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*given: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    files = archived(folder)
    monkeypatch.setattr(os, "rename", read_only)
    with pytest.raises(SourceFault, match="cannot be removed: Read-only file system") as caught:
        landing_of(folder).delete(files, Silent())
    assert not caught.value.retryable
    assert there(folder) == {"a": OLD, "b": OLD}


def test_a_bucket_in_which_we_may_not_delete_is_told_at_once(s3: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = new_bucket(s3)
    bucket.put("x/a", OLD)
    landing = S3Landing(bucket, "x/")
    files = [(planned(file), hashlib.sha256(OLD).hexdigest()) for file in landing.list()]

    def denied(**given: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied"}}, "DeleteObject")

    monkeypatch.setattr(bucket.boto, "delete_object", denied)
    with pytest.raises(SystemFault, match=r"'x/a' in bucket .* cannot be deleted") as caught:
        landing.delete(files, Silent())
    assert not caught.value.retryable
    assert "s3:DeleteObject" in str(caught.value.expected)
