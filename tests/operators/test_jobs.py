"""``archiver jobs``: which jobs there are, which failed, which cannot go on, and whose they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from archiver.catalogue.standin.app import Fault
from tests.operators.inside import inside
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import until
from tests.pipeline.system import System

SMALL = {"a.txt": b"text"}
LISTED = [System.entry("a.txt", b"text"), System.entry("late.txt", b"late")]


@dataclass(frozen=True)
class Jobs:
    """Job ids by what became of them."""

    system: System
    good: str
    failed: str
    mended: str
    """Failed twice, and then went well."""
    stopped: str
    """Terminated."""
    running: str
    """Waits for a worker that is not there."""

    def names(self, seen: dict[str, Any]) -> list[str]:
        """Of the jobs seen, what they are here."""
        known = {job: name for name, job in vars(self).items() if name != "system"}
        return [known[one["job"]] for one in seen["jobs"]]


@pytest.fixture(scope="module")
async def made(system: System) -> Jobs:
    """Jobs of all kinds of ends, seen by the server's list; no worker is left."""
    good, other = [await system.dataset(SMALL, group=group) for group in ("p1", "p2")]
    bad, late = [await system.dataset(SMALL, listed=LISTED, group=group) for group in ("p1", "p2")]
    groups = {good: "p1", other: "p2", bad: "p1", late: "p2"}
    job_of = {pid: await system.job(pid, ownerGroup=group) for pid, group in groups.items()}
    async with system.workers():
        for pid in (good, bad, late, late):
            await (await system.start_job(job_of[pid])).result()
        system.put(late, {"late.txt": b"late"})
        assert (await (await system.start_job(job_of[late])).result()).status_code == "finishedSuccessful"
    stopped = await system.job(other)
    await (await system.start_job(stopped)).terminate()
    await system.start_job(job_of[other])
    jobs = Jobs(system, job_of[good], job_of[bad], job_of[late], stopped, job_of[other])

    async def seen() -> bool:
        everything = await told(jobs)
        return len(everything["jobs"]) == 5 and jobs.names(await told(jobs, "--running")) == ["running"]

    await until(seen, "the server lists all jobs as they are")
    return jobs


async def told(jobs: Jobs, *arguments: object) -> dict[str, Any]:
    """``jobs --json``."""
    ended = await inside(jobs.system.config, "--json", "jobs", *arguments)
    assert ended.code == 0, ended
    data: dict[str, Any] = json.loads(ended.out)
    assert data["version"] == 1
    return data


async def test_all_jobs_are_listed_once_those_that_run_first(made: Jobs) -> None:
    seen = await told(made)
    assert made.names(seen) == ["running", "stopped", "mended", "failed", "good"]
    assert (seen["of"], seen["of_at_most"], seen["paused"]) == (5, False, [])
    good = seen["jobs"][-1]
    assert (good["state"], good["stage"]) == ("COMPLETED", "finishedSuccessful")
    assert good["started"] <= good["ended"]
    assert seen["jobs"][0]["ended"] is None
    lines = (await inside(made.system.config, "jobs")).out.splitlines()
    assert lines[0].split()[:4] == ["job", "kind", "state", "stage"]
    rows = [[one["job"], "archive", one["state"], one["stage"]] for one in seen["jobs"]]
    assert [line.split()[:4] for line in lines[1:]] == rows


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--running"], ["running"]),
        (["--failed"], ["stopped", "failed"]),
        (["--since", "1h"], ["running", "stopped", "mended", "failed", "good"]),
        (["--since", "9999w", "--failed"], ["stopped", "failed"]),
        (["--since", "0m"], []),
        (["--group", "p1"], ["failed", "good"]),
        (["--group", "p2"], ["mended"]),
        (["--group", "p1", "--failed"], ["failed"]),
        (["--group", "p2", "--failed"], []),
        (["--group", "p2", "--since", "0m"], []),
        (["--group", "p1' OR OwnerGroup = 'p2"], []),
        (["--group", "nobody's"], []),
        (["--group", "a\\"], []),
        (["--group", ""], []),
    ],
)
async def test_jobs_are_chosen(made: Jobs, arguments: list[str], names: list[str]) -> None:
    """A job that failed and was retried well has not failed, and nothing counts it as failed."""
    seen = await told(made, *arguments)
    assert made.names(seen) == names
    assert seen["of"] == len(names)
    text = (await inside(made.system.config, "jobs", *arguments)).out
    reasons = sum("message" in job for job in seen["jobs"])
    assert text.count("\n") == bool(names) + max(1, len(names)) + reasons, (
        "a line per job below a header, or one that there is none"
    )
    assert reasons == ("failed" in names and "--failed" in arguments), (
        "why, where it is known, is told of those that failed"
    )
    assert text.startswith("job  " if names else "no ")
    assert {one["kind"] for one in seen["jobs"]} <= {"archive"}
    assert "--limit" not in text
    assert (" job" in text.splitlines()[0] and text.startswith("no ")) is not bool(names)


async def test_what_the_limit_hides_is_told(made: Jobs) -> None:
    seen = await told(made, "--limit", "2")
    assert made.names(seen) == ["running", "stopped"]
    assert (seen["of"], seen["of_at_most"]) == (7, True), "five jobs in seven runs"
    text = (await inside(made.system.config, "jobs", "--limit", "2")).out
    assert text.splitlines()[-1] == "2 of at most 7: --limit shows more"
    grouped = (await inside(made.system.config, "jobs", "--group", "p1", "--limit", "1")).out
    assert grouped.splitlines()[-1] == "1 of 2: --limit shows more"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "yesterday"],
        ["--since", "-1d"],
        ["--since", "1.5h"],
        ["--since", "7"],
        ["--since", "99999999999d"],
        ["--since", "1d' OR 'a' = 'a"],
        ["--running", "--failed"],
        ["--stuck", "--failed"],
        ["--stuck", "--group", "p1"],
        ["--stuck", "--since", "1h"],
    ],
    ids=" ".join,
)
async def test_a_filter_that_makes_no_sense_is_2_in_words(system: System, arguments: list[str]) -> None:
    ended = await inside(system.config, "jobs", *arguments)
    assert ended.code == 2
    assert ended.in_lines(3), ended


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--limit", "1001"], ["--limit", "few"], ["surplus"]])
async def test_an_option_that_is_none_is_2_and_the_usage(system: System, arguments: list[str]) -> None:
    ended = await inside(system.config, "jobs", *arguments)
    assert ended.code == 2
    assert (ended.out, "Usage: " in ended.err) == ("", True)


async def test_stuck_is_what_fails_again_and_again_and_what_nobody_serves(make_system: MakeSystem) -> None:
    system = await make_system()
    failing, unserved, paused = [await system.dataset(SMALL) for _ in range(3)]
    jobs = {pid: await system.job(pid) for pid in (failing, unserved, paused)}
    fault = Fault("GET", f"/datasets/{failing}", status=503, body={"message": "down for repair"}, times=10**6)
    system.standin.faults.append(fault)
    try:
        async with system.workers("workflows,catalogue"):
            await system.start_job(jobs[failing])
            await system.start_job(jobs[unserved])
            await system.pending("plan-dataset", "archive-dataset", unserved)
            await system.pending("begin-dataset", "archive-dataset", failing, attempt=4)
            ended = await inside(system.config, "--json", "jobs", "--stuck")
            text = (await inside(system.config, "jobs", "--stuck")).out
            assert (await inside(system.config, "pause", "pack", "--reason", "new disks")).code == 0

            async def told_of_the_pause() -> dict[str, Any] | None:
                said: dict[str, Any] = json.loads((await inside(system.config, "--json", "jobs", "--stuck")).out)
                return said if said["paused"] else None

            after = await until(told_of_the_pause, "a read is not behind the change")
    finally:
        system.standin.faults.remove(fault)
    seen = json.loads(ended.out)
    assert (seen["version"], seen["of"], seen["without_job"], seen["not_looked_at"]) == (1, 2, {}, 0)
    why = {one["job"]: one["stuck"] for one in seen["jobs"]}
    (one,) = why[jobs[unserved]]
    assert one["workflow"] == f"archive-dataset/{unserved}"
    assert one["reasons"] == ["step plan-dataset waits for a worker on queue archiver-pack"]
    (one,) = why[jobs[failing]]
    assert one["workflow"] == f"archive-dataset/{failing}"
    assert one["reasons"][0].startswith("step begin-dataset failed ")
    assert "503" in one["reasons"][0]
    assert f"    archive-dataset/{unserved}: step plan-dataset waits for a worker" in text
    assert [one["job"] for one in after["jobs"]] == [jobs[failing]], "what is paused is not stuck"
    assert [one["reason"] for one in after["paused"]] == ["new disks"]
