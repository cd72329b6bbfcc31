"""What a job's users are told at its end: one sentence, true, bounded, and once. SciCat mails at every write of a job."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from activities.catalogue import verdict
from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.standin.state import Fault
from tests.counts import often
from tests.pipeline.moments import until
from tests.pipeline.system import System

FILES = {"a.dat": b"a" * 1000}
BEFORE_THE_LTS = "workflows,catalogue"
"""Groups of queues that bring a job so far that its dataset waits to be planned."""
REST = "pack,lts"


# --- in words -------------------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=40) | st.sampled_from(["", " \n", "word\n" * 500, "x" * 2000])
OUTCOMES = st.builds(
    m.DatasetOutcome,
    pid=st.text(min_size=1, max_size=40),
    outcome=st.sampled_from(["archived", "already_archived", "failed", "cancelled"]),
    message=TEXT,
    error=st.none() | st.builds(m.ErrorInfo, kind=st.sampled_from(["content", "system"]), message=TEXT),
)
ENDS = st.builds(
    m.FinishJobRequest,
    job_id=st.just("j"),
    total=st.integers(0, 10_000),
    counts=st.builds(
        m.Counts, archived=st.integers(0, 9), content_errors=st.integers(0, 9), system_errors=st.integers(0, 9)
    ),
    outcomes=st.lists(OUTCOMES, max_size=3),
    problem=st.none() | st.builds(m.ErrorInfo, message=TEXT),
    stopped=st.none() | st.builds(m.StopRequest, reason=TEXT, who=TEXT),
)


@given(ENDS)
@hypothesis_settings(max_examples=often(100), deadline=None, database=None)
def test_a_jobs_end_is_one_line_that_users_can_read_to_its_end(request: m.FinishJobRequest) -> None:
    code, message = verdict(request)
    assert code in ("finishedSuccessful", "finishedWithDatasetErrors", "finishedUnsuccessful")
    assert message == " ".join(message.split())
    assert 0 < len(message) <= payloads.MAX_TEXT
    assert payloads.job_update(code, message)["statusMessage"] == message
    result = payloads.job_result(message, request)
    assert next(iter(result)) == "summary"
    assert result["summary"] == message or len(json.dumps(message)) > payloads.MAX_SUMMARY_BYTES
    assert len(json.dumps(result)) <= payloads.MAX_RESULT_BYTES


def test_a_long_reason_hides_not_what_became_of_the_datasets() -> None:
    stopped = m.StopRequest(reason="why\n" * 5000, who="op" * 500)
    _, message = verdict(
        m.FinishJobRequest(job_id="j", total=3, counts=m.Counts(archived=1, cancelled=2), outcomes=[], stopped=stopped)
    )
    assert message.endswith(": 3 datasets: 1 archived, 2 stopped.")


def test_the_result_object_is_bounded_whatever_the_outcomes_say_and_names_failures_first() -> None:
    good = m.DatasetOutcome(pid="20.500/" + "g" * 240, outcome="archived", message="x" * 5000, datablocks=1)
    bad = good.model_copy(update={"pid": "20.500/bad", "outcome": "failed"})
    request = m.FinishJobRequest(
        job_id="j",
        total=5000,
        counts=m.Counts(archived=4999, content_errors=1),
        outcomes=[good] * (m.MAX_OUTCOMES - 1) + [bad],
        stopped=m.StopRequest(reason="y" * 2_000_000, who="z" * 2_000_000),
    )
    result = payloads.job_result("s", request)
    assert len(json.dumps(result)) <= payloads.MAX_RESULT_BYTES
    assert (
        len(json.dumps(payloads.job_result("s", request, links=True)))
        <= payloads.MAX_RESULT_BYTES - payloads.ROOM_FOR_LINKS
    )
    assert result["datasets"][0]["pid"] == "20.500/bad"
    assert len(result["datasets"]) + result["notShown"] == 5000


# --- once, on real parts ------------------------------------------------------------------------------------------------------


def told(system: System, job_id: str) -> list[str]:
    """The status codes written to a job: SciCat runs its update actions, mails among them, at each."""
    return [code for job, code in system.standin.mails if job == job_id]


async def waiting(system: System) -> tuple[str, Any]:
    """A job in progress whose dataset waits for workers of the other queues: what befalls SciCat now befalls its end."""
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    handle = await system.start_job(job_id)
    await until(lambda: told(system, job_id) == ["inProgress"])
    await system.pending("plan-dataset", "archive-dataset", pid)
    return job_id, handle


LOST = {
    "done, and a 500 for it": Fault("PATCH", r"/jobs/", status=500, execute=True),
    "done, and a 400 for it: a mail that failed": Fault("PATCH", r"/jobs/", status=400, execute=True),
    "done twice over, were it tried blindly": Fault("PATCH", r"/jobs/", status=502, execute=True, times=3),
    "not done, and a 503 for it": Fault("PATCH", r"/jobs/", status=503, times=2),
    "done, and the answer is no JSON": Fault("PATCH", r"/jobs/", status=200, execute=True, raw=b"<html>proxy</html>"),
}


@pytest.mark.parametrize("name", LOST)
async def test_p2_users_are_told_once_whatever_befalls_the_last_write(system: System, name: str) -> None:
    async with system.workers(BEFORE_THE_LTS):
        job_id, handle = await waiting(system)
        fault = replace(LOST[name])
        system.standin.faults.append(fault)
        async with system.workers(REST):
            result = await handle.result()
    system.standin.faults.clear()
    assert fault.times < LOST[name].times, "the fault befell nobody"
    assert told(system, job_id) == ["inProgress", "finishedSuccessful"]
    job = await system.job_record(job_id)
    assert next(iter(job["jobResultObject"])) == "summary"
    assert job["jobResultObject"]["summary"] == job["statusMessage"] == result.message == "1 dataset: 1 archived."


async def test_p5_users_are_told_once_if_the_worker_dies_while_it_tells_them(system: System) -> None:
    first = system.worker(BEFORE_THE_LTS)
    job_id, handle = await waiting(system)
    # SciCat does it at once; the answer comes too late for whoever asked.
    system.standin.faults.append(Fault("PATCH", r"/jobs/", execute=True, hang_seconds=20))
    async with system.workers(REST):
        await until(lambda: "finishedSuccessful" in told(system, job_id))
        first.kill()
        async with system.workers(BEFORE_THE_LTS):
            assert (await handle.result()).status_code == "finishedSuccessful"
    assert told(system, job_id) == ["inProgress", "finishedSuccessful"]


async def test_p5_users_are_told_once_if_the_worker_dies_before_it_can(system: System) -> None:
    first = system.worker(BEFORE_THE_LTS)
    job_id, handle = await waiting(system)
    down = Fault("PATCH", r"/jobs/", status=503, times=1_000_000)
    system.standin.faults.append(down)
    async with system.workers(REST):
        await until(lambda: down.times < 1_000_000)
        first.kill()
        system.standin.faults.remove(down)
        async with system.workers(BEFORE_THE_LTS):
            assert (await handle.result()).status_code == "finishedSuccessful"
    assert told(system, job_id) == ["inProgress", "finishedSuccessful"]


async def test_p6_a_job_that_ended_well_and_is_run_again_tells_nobody_anything(served: System) -> None:
    job_id = await served.job(await served.dataset(FILES))
    await (await served.start_job(job_id)).result()
    before = await served.job_record(job_id)
    for _ in range(2):
        again = await (await served.start_job(job_id)).result()
        assert again.status_code == "finishedSuccessful"
    assert told(served, job_id) == ["inProgress", "finishedSuccessful"]
    assert await served.job_record(job_id) == before


async def test_p7_a_job_with_a_bad_dataset_is_told_once_in_one_sentence_that_names_it(served: System) -> None:
    good, bad = await served.dataset(FILES), await served.dataset(FILES, landed=False)
    result = await served.archive(good, bad)
    assert told(served, result.job_id) == ["inProgress", "finishedWithDatasetErrors"]
    job = await served.job_record(result.job_id)
    said = "2 datasets: 1 archived, 1 not archived because of their files or records; first: "
    assert job["statusMessage"].startswith(said)
    assert bad in job["statusMessage"]
    assert "\n" not in job["statusMessage"]
    assert [one["pid"] for one in job["jobResultObject"]["datasets"]] == [bad, good]
