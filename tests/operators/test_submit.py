"""``archiver archive`` and ``retrieve``: the jobs they make in SciCat, of any number of datasets, from arguments and files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from archiver.catalogue.client import SciCat
from archiver.errors import CatalogueFault, SettingsInvalid
from cli.pid_list import wanted
from tests.operators.conftest import Run
from tests.pipeline.system import System

UNKNOWN = "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5aff"


async def bare_datasets(system: System, count: int) -> list[str]:
    """Records without files: what is submitted is looked at, not what becomes of it."""
    return [await system.dataset({}, listed=[], landed=False) for _ in range(count)]


def listed(system: System, job: str) -> list[str]:
    """The pids of a job as SciCat has it."""
    record: Any = system.standin.store.get("jobs", job)
    return [entry["pid"] for entry in record["jobParams"]["datasetList"]]


@pytest.mark.parametrize("command", ["archive", "retrieve"])
async def test_more_than_100_datasets_make_several_jobs_and_it_is_said(system: System, run: Run, command: str) -> None:
    pids = await bare_datasets(system, 205)
    path = system.folder / f"{command}.pids"
    path.write_text("\n".join(pids[1:]))
    ended = await run(system, "--json", command, pids[0], "--from", path)
    assert ended.returncode == 0, ended.stderr
    assert "205 datasets make 3 jobs: SciCat takes at most 100 datasets in one" in ended.stderr
    made = json.loads(ended.stdout)["jobs"]
    assert [len(listed(system, one["job"])) for one in made] == [100, 100, 5]
    assert [pid for one in made for pid in listed(system, one["job"])] == pids
    kind = "retrieve-job" if command == "retrieve" else "archive-job"
    for one in made:
        assert one["workflow"] == f"{kind}/{one['job']}"
        described = await system.client.get_workflow_handle(one["workflow"]).describe()
        assert described.status is not None
        assert described.status.name == "RUNNING"


async def test_100_datasets_are_one_job_and_nothing_is_said_of_several(system: System, run: Run) -> None:
    pids = await bare_datasets(system, 100)
    ended = await run(system, "--json", "archive", *pids)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert listed(system, json.loads(ended.stdout)["job"]) == pids


async def test_unknown_datasets_are_each_named_and_no_job_is_made(system: System, run: Run) -> None:
    known = await bare_datasets(system, 2)
    path = system.folder / "unknown.pids"
    path.write_text("\n".join([known[0], "20.500.12345/no-1", known[1], "20.500.12345/no-2"]))
    before = len(system.standin.store.all("jobs"))
    ended = await run(system, "archive", "--from", path)
    assert ended.returncode == 5
    assert "20.500.12345/no-1: SciCat knows no such dataset\n20.500.12345/no-2: SciCat" in ended.stderr
    assert "SciCat knows 2 of these 4 datasets not" in ended.stderr
    assert len(system.standin.store.all("jobs")) == before


async def test_where_a_later_job_is_refused_it_is_said_which_datasets_have_none(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = await bare_datasets(system, 150)
    path = system.folder / "later.pids"
    path.write_text("\n".join(pids))
    create = SciCat.create_job

    async def refuse_the_second(self: SciCat, job_type: str, pids: list[str], **more: Any) -> Any:
        if len(pids) < 100:
            raise CatalogueFault("SciCat answers 503", expected="success", found="503", retryable=False)
        return await create(self, job_type, pids, **more)

    monkeypatch.setattr(SciCat, "create_job", refuse_the_second)
    ended = await run(system, "archive", "--from", path)
    assert ended.returncode == 1
    assert f"100 of 150 datasets have jobs, 50 have none, from {pids[100]} on: SciCat answers 503" in ended.stderr
    assert "the same command again is harmless" in ended.stderr


async def test_a_job_that_scicat_does_not_have_is_not_said_to_be_started(system: System, run: Run) -> None:
    ended = await run(system, "start", UNKNOWN)
    assert ended.returncode == 5
    assert ended.stdout == ""
    assert f"SciCat knows no job {UNKNOWN}" in ended.stderr


async def test_a_job_of_another_program_is_not_started(system: System, run: Run) -> None:
    job = system.stored_job(type="public")
    ended = await run(system, "start", job)
    assert ended.returncode == 6, ended.stderr
    assert ended.stdout == ""


async def test_files_are_of_one_dataset(system: System, run: Run) -> None:
    ended = await run(system, "retrieve", "20.500.12345/a", "20.500.12345/b", "--file", "raw/1.h5")
    assert ended.returncode == 2
    assert "--file names files of one dataset" in ended.stderr


async def test_a_dry_run_tells_the_plan_and_what_is_wrong_and_makes_nothing(system: System, run: Run) -> None:
    good = await system.dataset({"a.txt": b"text", "b.bin": bytes(3000)})
    bad = await system.dataset(
        {"a.txt": b"text"}, listed=[System.entry("a.txt", b"text"), System.entry("gone.h5", b"x")]
    )
    before = dict(system.standin.store.get("datasets", good) or {}), len(system.standin.store.all("jobs"))
    ended = await run(system, "--json", "archive", "--dry-run", good, bad, "20.500.12345/none")
    told = json.loads(ended.stdout)
    rows = {row["pid"]: row for row in told["datasets"]}
    assert ended.returncode == 3
    assert {key: rows[good][key] for key in ("outcome", "files", "size_bytes", "datablocks")} == {
        "outcome": "would archive",
        "files": 2,
        "size_bytes": 3004,
        "datablocks": 1,
    }
    assert rows[bad]["outcome"] == "content error"
    assert "'gone.h5'" in rows[bad]["message"]
    assert rows["20.500.12345/none"]["outcome"] == "unknown"
    assert (dict(system.standin.store.get("datasets", good) or {}), len(system.standin.store.all("jobs"))) == before
    assert system.boto.list_objects_v2(Bucket=system.staging_bucket).get("Contents", []) == []
    only = await run(system, "archive", "--dry-run", good)
    assert only.returncode == 0
    assert f"{good}  would be archived  2 files, 2.9 KiB, in 1 datablocks" in only.stdout
    assert re.search(r"LTS: at most 2.9 KiB would be added; [\d.]+ \w+ are free", only.stdout)
    assert (await run(system, "archive", "--dry-run", bad)).returncode == 4


# --- what a file of pids may hold -----------------------------------------------------------------------------------


def test_blank_lines_comments_and_line_ends_of_any_kind_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    path.write_bytes(
        b"\xef\xbb\xbf20.500.1/a\r\n\r\n  # a comment\n\t20.500.1/b  # of May\n20.500.1/c#1\n#20.500.1/d\n"
    )
    said: list[str] = []
    assert wanted([], str(path), said.append) == ["20.500.1/a", "20.500.1/b", "20.500.1/c#1"]
    assert said == []


def test_duplicates_are_named_with_their_lines_and_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    path.write_text("20.500.1/a\n20.500.1/b\n20.500.1/a\n")
    said: list[str] = []
    assert wanted(["20.500.1/b"], str(path), said.append) == ["20.500.1/b", "20.500.1/a"]
    assert said == [
        f"{path}, line 2: 20.500.1/b was given before (argument): taken once",
        f"{path}, line 3: 20.500.1/a was given before ({path}, line 1): taken once",
    ]


def test_pids_that_none_can_be_are_each_named_escaped_and_nothing_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    path.write_text("20.500.1/a\n20.500.1/\x1b[31mred\n\x00\n")
    said: list[str] = []
    with pytest.raises(SettingsInvalid) as refused:
        wanted(["20.500.1/c", " "], str(path), said.append)
    assert refused.value.what == "3 of the pids given cannot be pids"
    assert [line.rpartition(": ")[0] for line in said] == [
        "argument:  ",
        f"{path}, line 2: 20.500.1/\\x1b[31mred",
        f"{path}, line 3: \\x00",
    ]
    assert "\x1b" not in refused.value.lines()


@pytest.mark.parametrize("text", [b"\xff\xfe2\x000\x00", None, b"", b"# nothing\n\n"])
def test_a_file_without_pids_is_told_by_its_name(tmp_path: Path, text: bytes | None) -> None:
    path = tmp_path / "of-pids"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SettingsInvalid) as refused:
        wanted([], str(path), lambda _: None)
    assert "of-pids" in refused.value.one_line()
