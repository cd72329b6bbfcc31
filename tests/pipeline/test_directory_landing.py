"""A landing zone in a directory, through the whole system: names, links, modes, changes, deletion, and poor file systems."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from archiver import model as m
from cli.servers import Child, clean_environment
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.oracle import assert_archived, assert_clean
from tests.pipeline.system import ROOT, System
from tests.storage.conftest import Disk
from tests.storage.test_without_openat2 import FILTER

FILES = {"Müller/π.dat": b"detector " * 9, "raw/a 1.h5": b"\0" * 500, "raw/b.h5": b"\1" * 500}


async def landed(system: System, root: Path, files: Mapping[str, bytes] = FILES, **entry: Any) -> tuple[str, Path]:
    """A dataset whose files lie below ``root``; its pid and its folder."""
    listed = [system.entry(path, data, **entry) for path, data in files.items()]
    pid = await system.dataset(files, landed=False, listed=listed, more={"sourceFolder": "/2026/p1/x"})
    folder = root / "2026/p1/x"
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return pid, folder


def template(root: Path, **more: object) -> dict[str, Mapping[str, Any]]:
    return {"landing": {"url_template": f"file://{root}{{source_folder}}", **more}}


def left(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_p1_a_directory_is_archived_and_what_did_not_change_is_deleted(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    system = await make_system(template(tmp_path, delete_after_archive=True))
    files = {**FILES, "raw/same.h5": FILES["raw/b.h5"]}
    pid, folder = await landed(system, tmp_path, files, perm="33152")
    (folder / "raw/same.h5").unlink()
    os.link(folder / "raw/b.h5", folder / "raw/same.h5")
    async with system.workers("workflows,pack,lts-space,lts-copy,lts-verify,lts-bag,catalogue"):
        handle = await system.start_job(await system.job(pid))
        await system.pending("delete-sources", "archive-dataset", pid)
        (folder / "raw/a 1.h5").write_bytes(b"\2" * 500)
        async with system.workers("delete"):
            assert (await handle.result()).counts == m.Counts(archived=1)
    await assert_archived(system, pid, files)
    assert left(folder) == {"raw/a 1.h5": b"\2" * 500}
    perms = {file["perm"] for block in system.datablocks(pid) for file in block["dataFileList"]}
    assert perms == {"100600"}, "as SciCat's Python client wrote it: a private file"


async def test_p4_files_that_are_missing_are_told_with_the_place_where_was_looked(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    (tmp_path / "2025").mkdir()
    system = await make_system(template(tmp_path))
    pid = await system.dataset(FILES, landed=False, more={"sourceFolder": "/2026/p1/x"})
    async with system.workers():
        assert (await system.archive(pid)).counts == m.Counts(content_errors=1)
    message = await assert_clean(system, pid, "missingFilesError")
    for words in (f"missing in file://{tmp_path}/2026/p1/x", "nothing lies there", "landing.url_template"):
        assert words in message


async def test_p4_a_file_system_of_whole_seconds_is_archived_from(make_system: MakeSystem, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "image", tmp_path / "disk", 32 * 2**20, "-I", "128")
    try:
        system = await make_system(template(disk.folder, delete_after_archive=True, delete_check="version"))
        pid, folder = await landed(system, disk.folder)
        async with system.workers():
            assert (await system.archive(pid)).counts == m.Counts(archived=1)
        await assert_archived(system, pid, FILES)
        assert left(folder) == {}
    finally:
        disk.unmount()


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}], ids=str)
async def test_a_worker_in_a_container_with_a_filter_and_a_c_locale_archives_a_directory(
    make_system: MakeSystem, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    system = await make_system(template(tmp_path, delete_after_archive=True))
    pid, folder = await landed(system, tmp_path)
    script = FILTER + "\nimport runpy\nsys.argv = sys.argv[2:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    command = [sys.executable, "-c", script, "1", str(ROOT / "worker.py"), "-c", str(system.config)]
    kept = {key: value for key, value in clean_environment().items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    child = Child("filtered worker", command, system.folder / "filtered.log", {**kept, **environment})
    system.children.append(child)
    child.start()
    child.wait_for_log("serving ")
    assert (await system.archive(pid)).counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)
    assert left(folder) == {}
