"""``archiver doctor`` as people run it: lines, exit codes, JSON, what a killed one left, and the table in the docs."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from archiver.errors import LtsFault
from archiver.settings import Settings
from cli.doctor import CHECKS, lts_bucket, report, table
from cli.doctor.check import Check, Finding, Outcome, look, ok
from cli.doctor.ground import Ground
from cli.programs import ROOT
from tests.cli.running import command, environment
from tests.doctor.ward import Ward
from tests.pipeline.faulty_s3 import FaultyS3, S3Fault

DOCS = ROOT / "docs" / "doctor.md"


async def test_all_ok_is_exit_0_and_what_was_not_checked_is_counted(ward: Ward) -> None:
    done = await ward.cli("doctor", "--dataset", ward.pid)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("0 failed, 0 warnings, 1 not checked, ")
    assert any(line.startswith("ok           temporal server") for line in lines)
    assert any(line.startswith("not checked  scicat delete datablock") for line in lines)


async def test_the_line_of_a_failure_is_followed_by_its_remedy(ward: Ward) -> None:
    lines = report((await ward.look(lts={"identity": "another"})).results)[0].splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("FAIL         lts marker"))
    assert lines[at + 1].strip().startswith("next: mount the LTS")
    assert lines[-1].startswith("1 failed, ")


async def test_json_has_a_version_and_every_check_and_a_failure_is_exit_1(ward: Ward) -> None:
    done = await ward.cli("--json", "doctor", lts={"identity": "another"})
    data = json.loads(done.stdout)
    assert (data["version"], data["ok"], done.returncode) == (1, False, 1)
    assert sum(data["counts"].values()) == len(data["checks"])
    optional = {"landing delete", "landing dataset", "retrieval roots", "retrieval space"}
    optional |= {one.name for one in lts_bucket.CHECKS}
    assert [one["check"] for one in data["checks"]] == [one.name for one in CHECKS if one.name not in optional]
    assert {one["outcome"] for one in data["checks"]} <= {"ok", "warn", "fail", "not_checked"}


async def test_p8_no_secret_is_in_what_it_says(ward: Ward) -> None:
    seen = [await ward.look(), await ward.look(scicat={"password": "wr0ng-canary"}, s3={"secret_key": "s3cret-canary"})]
    said = "".join(text + json.dumps(data) for text, data in (report(one.results) for one in seen))
    assert "canary" not in said
    assert ward.dev.info["scicat_password"] not in said
    assert ward.dev.info["s3_secret_key"] not in said


async def test_what_a_killed_doctor_left_is_removed_by_the_next(ward: Ward, s3_proxy: FaultyS3, tmp_path: Path) -> None:
    """Killed where it has put an object and begun an upload, and before it removes them."""
    reached = [threading.Event(), threading.Event()]
    go_on = threading.Event()
    for pattern, event in (
        (r"/staging/.*/put(\?|$)", reached[0]),
        (r"/staging/.*/multipart\?.*uploadId=(?!0000)", reached[1]),
    ):

        def wait(event: threading.Event = event) -> None:
            event.set()
            go_on.wait(60)

        s3_proxy.faults.append(S3Fault("DELETE", pattern, status=403, before=wait))
    path = ward.file({"s3": {"endpoint": s3_proxy.url}, "doctor": {"dev": True, "check_seconds": 60.0}})
    process = subprocess.Popen(
        command("-c", path, "doctor"), env=environment(), cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    try:
        for event in reached:
            assert await asyncio.to_thread(event.wait, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        go_on.set()
    left = ward.state()
    assert len(left["objects in staging"]) == 1
    assert len(left["uploads in staging"]) == 1
    left_on_lts = [path for path in left["lts"] if f".{process.pid}." in path]
    assert left_on_lts
    seen = await ward.look()
    assert "2 left by a killed doctor removed" in seen["staging list"].finding.found
    assert "1 left by a killed doctor removed" in seen["lts write"].finding.found
    assert seen.problems == set()


async def test_two_doctors_at_once_do_not_disturb_each_other(ward: Ward) -> None:
    for seen in await asyncio.gather(*(ward.look() for _ in range(3))):
        assert seen.problems == set(), [seen[name].finding.found for name in seen.problems]


async def test_a_check_that_hangs_breaks_or_raises_ends_no_other() -> None:
    async def hang(ground: Ground) -> Finding:
        await asyncio.sleep(3600)
        raise AssertionError

    async def break_down(ground: Ground) -> Finding:
        raise KeyError("x")

    async def fault(ground: Ground) -> Finding:
        raise LtsFault("the LTS failed", found="errno 5", next_step="retried; look at it")

    async def well(ground: Ground) -> Finding:
        return ok("well")

    checks = [
        Check("hangs", "", "wait", hang),
        Check("breaks", "", "report it", break_down),
        Check("faults", "", "", fault),
        Check("stands on", "", "", well, ("hangs",)),
        Check("well", "", "", well, after=("hangs",)),
        Check("unwanted", "", "", well, wanted=lambda ground: False),
    ]
    results = await look(checks, Ground(Settings()), 0.2)
    assert [(one.check.name, one.finding.outcome.name, one.finding.found, one.remedy) for one in results] == [
        ("hangs", "FAIL", "no answer within 0.2 s", "wait"),
        ("breaks", "FAIL", "unexpected KeyError: 'x'", "report it"),
        ("faults", "FAIL", "the LTS failed; found errno 5", "look at it"),
        ("stands on", "NOT_CHECKED", "needs: hangs", ""),
        ("well", "OK", "well", ""),
    ]
    assert not report(results)[1]["ok"]


def test_every_check_says_what_mends_it_and_comes_after_what_it_needs() -> None:
    seen: set[str] = set()
    for check in CHECKS:
        assert check.tries, check.name
        assert check.remedy, check.name
        assert {*check.needs, *check.after} <= seen, check.name
        seen.add(check.name)
    assert len(seen) == len(CHECKS)


def test_the_docs_have_the_table_of_all_checks() -> None:
    assert table() in DOCS.read_text(), "make it anew:  python -c 'from cli.doctor import table; print(table())'"


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_docs_explain_every_outcome(outcome: Outcome) -> None:
    assert f"**{outcome}**" in DOCS.read_text()
