"""deploy/scicat: what is to be pasted into SciCat has its form, asks the right questions, and reaches our bridge unharmed."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import SecretStr

from activities.catalogue import verdict
from archiver import model as m
from archiver.catalogue import payloads
from archiver.settings import BridgeSettings, Settings
from bridge.auth import Guard
from bridge.body import PostedJob
from tests.scicat_side.backend import FOLDER, SCHEMA, configuration, job_type, performed, refused, render

FILES = ["jobConfig.yaml", "jobConfig.rabbitmq.yaml"]
TOKEN = "t0ken/with+signs=&<>'\""
BRIDGE = {"ARCHIVER_BRIDGE_URL": "https://bridge.example:8000", "ARCHIVER_BRIDGE_TOKEN": TOKEN}
HOSTILE = [
    "4b7e984d-42ee-471f-98e0-1225c0614beb",
    'quo"te',
    "new\nline\tand\\backslash",
    "}}}} {{{id}}} {{/if}}",
    "\u2028ünïcödé 漢字 \U0001f600",
    "<b>&amp;</b>'`=",
    "",
]


@pytest.mark.parametrize("name", FILES)
def test_the_file_has_scicats_form_and_both_sides_of_each_job_type(name: str) -> None:
    types = [job["jobType"] for job in configuration(name)["jobs"]]
    assert types == [Settings().archive.job_type, Settings().archive.retrieve_job_type]


def test_a_body_that_is_a_map_or_a_key_that_scicat_does_not_know_would_be_seen() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for change in ({"body": {"id": "x"}}, {"headrs": {}}, {"actionType": "https"}):
        found = yaml.safe_load((FOLDER / "jobConfig.yaml").read_text("utf-8"))
        found["jobs"][0]["create"]["actions"][1].update(change)
        assert not validator.is_valid(found), change


@pytest.mark.parametrize("name", FILES)
def test_who_may_update_a_job_is_a_group(name: str) -> None:
    for job in configuration(name)["jobs"]:
        assert job["update"]["auth"] == "@archivemanager", "a bare name would be a user's"
        assert job["create"]["auth"].startswith("#dataset")


def lifecycle(**fields: Any) -> dict[str, Any]:
    return {"pid": "p/1", "datasetlifecycle": {"archivable": True, **fields}}


def asked(*files: str) -> dict[str, Any]:
    return {"type": "archive", "jobParams": {"datasetList": [{"pid": "p/1", "files": list(files)}]}}


WHAT_IS_ASKED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (asked(), lifecycle(), ""),
    (asked(), lifecycle(storageLocation=""), ""),
    (asked(), lifecycle(storageLocation=None), ""),
    (asked(), lifecycle(storageLocation=Settings().archive.storage_location), ""),
    (asked(), lifecycle(storageLocation="ETHZ"), "datasetlifecycle"),
    (asked(), lifecycle(archivable=False), "datasetlifecycle.archivable"),
    (asked("a.dat"), lifecycle(), "jobParams.datasetList"),
    ({"type": "archive", "jobParams": {"datasetList": []}}, lifecycle(), "jobParams.datasetList"),
    ({"type": "archive", "jobParams": {}}, lifecycle(), "jobParams.datasetList"),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("request_", "dataset", "path"), WHAT_IS_ASKED)
def test_scicat_itself_refuses_what_the_archiver_would_refuse(
    name: str, request_: dict[str, Any], dataset: dict[str, Any], path: str
) -> None:
    said = refused(job_type(name, "archive")["create"]["actions"], request_, [dataset])
    assert said == "" if not path else f"'{path}'" in said


def test_one_dataset_of_another_archive_is_enough_to_refuse() -> None:
    actions = job_type("jobConfig.yaml", "archive")["create"]["actions"]
    assert refused(actions, asked(), [lifecycle(), lifecycle(storageLocation="PSI")])


WHAT_IS_ASKED_OF_A_RETRIEVAL: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (asked(), lifecycle(retrievable=True), ""),
    (asked("a.dat"), lifecycle(retrievable=True, archivable=False, storageLocation="archive"), ""),
    (asked(), lifecycle(retrievable=False), "datasetlifecycle.retrievable"),
    (asked(), lifecycle(), "datasetlifecycle.retrievable"),
    (asked(), lifecycle(retrievable=True, storageLocation="ETHZ"), "datasetlifecycle"),
    ({"type": "retrieve", "jobParams": {"datasetList": []}}, lifecycle(retrievable=True), "jobParams.datasetList"),
    ({"type": "retrieve", "jobParams": {}}, lifecycle(retrievable=True), "jobParams.datasetList"),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("request_", "dataset", "path"), WHAT_IS_ASKED_OF_A_RETRIEVAL)
def test_scicat_itself_refuses_a_retrieval_of_what_is_not_in_this_archive(
    name: str, request_: dict[str, Any], dataset: dict[str, Any], path: str
) -> None:
    said = refused(job_type(name, "retrieve")["create"]["actions"], request_, [dataset])
    assert said == "" if not path else f"'{path}'" in said


@pytest.mark.parametrize("name", FILES)
def test_retrieve_jobs_are_told_to_us_as_archive_jobs_are(name: str) -> None:
    told = [
        next(a for a in job_type(name, kind)["create"]["actions"] if a["actionType"] in ("url", "rabbitmq"))
        for kind in ("archive", "retrieve")
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("field", ["id", "type"])
def test_the_webhooks_body_is_json_whatever_is_in_the_job(field: str, value: str) -> None:
    job = {"id": "4b7e984d-42ee-471f-98e0-1225c0614beb", "type": "archive", field: value, "ownerUser": 'x"}'}
    (posted,) = performed(job_type("jobConfig.yaml", "archive")["create"]["actions"], {"job": job, "env": BRIDGE})
    assert json.loads(posted["body"]) == {"id": job["id"], "type": job["type"]}


def test_the_webhook_is_one_that_our_bridge_lets_in_and_understands() -> None:
    job = {"id": "4b7e984d-42ee-471f-98e0-1225c0614beb", "type": "archive"}
    token = "b" * 40
    environment = {**BRIDGE, "ARCHIVER_BRIDGE_TOKEN": token}
    (posted,) = performed(job_type("jobConfig.yaml", "archive")["create"]["actions"], {"job": job, "env": environment})
    assert (posted["method"], posted["url"]) == ("POST", "https://bridge.example:8000/api/v1/jobs")
    assert posted["headers"]["Content-Type"] == "application/json"
    guard = Guard(BridgeSettings(token=SecretStr(token)))
    assert guard.admits(posted["headers"]["Authorization"])
    assert PostedJob.model_validate_json(posted["body"]).id == job["id"]


def test_a_token_arrives_as_it_is_and_not_as_html() -> None:
    (posted,) = performed(
        job_type("jobConfig.yaml", "archive")["create"]["actions"], {"job": {"id": "x", "type": "y"}, "env": BRIDGE}
    )
    assert posted["headers"]["Authorization"] == f"Bearer {TOKEN}"


def test_a_webhook_that_fails_is_not_told_to_the_user_who_would_submit_twice() -> None:
    url = next(a for a in job_type("jobConfig.yaml", "archive")["create"]["actions"] if a["actionType"] == "url")
    assert url["ignoreErrors"] is True


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_template_has_four_closing_braces_in_a_row(path: Any) -> None:
    if path.suffix == ".md":
        return  # it may speak of them
    assert "}}}}" not in path.read_text("utf-8")
    with pytest.raises(ValueError, match="Parse error"):
        render('{"id": {{{jsonify job.id}}}}', {"job": {"id": "x"}})


def test_rabbitmq_is_told_the_queue_that_we_take_jobs_from() -> None:
    (sent,) = performed(job_type("jobConfig.rabbitmq.yaml", "archive")["create"]["actions"], {"job": {}, "env": {}})
    assert sent["queue"] in Settings().rabbitmq.queues


def test_the_two_files_differ_in_how_we_are_told_and_in_nothing_else() -> None:
    one, other = (configuration(name) for name in FILES)
    for job in (*one["jobs"], *other["jobs"]):
        actions = job["create"]["actions"]
        job["create"]["actions"] = [a for a in actions if a["actionType"] not in ("url", "rabbitmq")]
    assert one == other


# --- mail -----------------------------------------------------------------------------------------------------------------


def finished(*outcomes: m.DatasetOutcome, total: int = 0, **more: Any) -> dict[str, Any]:
    """A job as SciCat has it after the archiver's last word."""
    counts = m.Counts()
    for outcome in outcomes:
        counts = counts.plus(outcome)
    request = m.FinishJobRequest(
        job_id="j", total=total or len(outcomes), counts=counts, outcomes=list(outcomes), **more
    )
    code, message = verdict(request)
    update = payloads.job_update(code, message, payloads.job_result(message, request))
    return {"id": "j", "type": "archive", "contactEmail": "person@example.org", **update}


GOOD = m.DatasetOutcome(pid="20.500/good", outcome="archived", message="archived: 3 files", datablocks=1, files=3)
BAD = m.DatasetOutcome(
    pid="20.500/<b>",
    outcome="failed",
    message="file 'a&b' is missing",
    error=m.ErrorInfo(type="MissingFiles", kind="content", message="file 'a&b' is missing"),
)
LOST = m.DatasetOutcome(
    pid="20.500/lost",
    outcome="failed",
    message="S3 is gone",
    error=m.ErrorInfo(type="StagingFault", message="S3 is gone"),
)
ENDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "all": (finished(GOOD), "finishedSuccessful", "Your datasets are archived"),
    "some": (finished(GOOD, BAD), "finishedWithDatasetErrors", "Some of your datasets are not archived"),
    "none": (finished(LOST), "finishedUnsuccessful", "Your archive job was not done"),
    "stopped": (
        finished(total=2, stopped=m.StopRequest(reason="tape is full", who="op")),
        "finishedUnsuccessful",
        "Your archive job was not done",
    ),
    "refused": (
        finished(problem=m.ErrorInfo(type="Refused", kind="refused", message="it names no dataset")),
        "finishedUnsuccessful",
        "Your archive job was not done",
    ),
}


def mails(job: dict[str, Any], name: str = "jobConfig.yaml") -> list[dict[str, Any]]:
    context = {"job": job, "request": {}, "env": {"SCICAT_FRONTEND_URL": "https://scicat.example"}}
    return performed(job_type(name, "archive")["update"]["actions"], context)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("end", ENDS)
def test_each_way_to_end_is_one_mail_that_says_it_in_the_summarys_words(end: str, name: str) -> None:
    job, code, heading = ENDS[end]
    assert job["statusCode"] == code
    (mail,) = mails(job, name)
    assert mail["to"] == "person@example.org"
    assert mail["subject"] == f"SciCat archive job j: {code}"
    assert heading in mail["body"]
    assert mail["body"].count(as_html(job["statusMessage"])) == 1
    for outcome in job["jobResultObject"]["datasets"]:
        assert as_html(outcome["pid"]) in mail["body"]
        assert outcome["outcome"] == "archived" or mail["body"].count(as_html(outcome["message"])) == 1
    assert "{{" not in mail["body"]


def test_what_users_wrote_is_text_in_the_mail_and_no_html() -> None:
    (mail,) = mails(finished(GOOD, BAD))
    assert "20.500/<b>" not in mail["body"]
    assert "20.500/&lt;b&gt;" in mail["body"]


def test_where_templates_do_not_see_the_result_object_the_status_message_says_the_same() -> None:
    job = {**finished(GOOD, BAD), "jobParams": {"datasetList": [{"pid": GOOD.pid}, {"pid": BAD.pid}]}}
    del job["jobResultObject"]
    (mail,) = mails(job)
    assert as_html(job["statusMessage"]) in mail["body"]
    for outcome in (GOOD, BAD):
        assert f"<li>{as_html(outcome.pid)}</li>" in mail["body"]


def test_progress_is_no_mail() -> None:
    assert (
        mails({"id": "j", "type": "archive", **payloads.job_update(payloads.IN_PROGRESS, "Archiving 1 dataset.")}) == []
    )


URL = "http://s3/retrieval/20.500/good/a%20b?X-Amz-Date=1&X-Amz-Signature=2"
LINKS = {
    "result": [{"datasetId": "20.500/good", "name": "<i>a b", "size": 7, "archiveId": "x", "url": URL}],
    "downloadScript": "#!/bin/sh",
    "validUntil": "2026-12-01T12:00:00Z",
}
BACK = m.DatasetOutcome(pid="20.500/good", outcome="retrieved", message="retrieved: 3 files", files=3)
RETRIEVALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "all": (finished(BACK), "finishedSuccessful", "Your data is here"),
    "some": (finished(BACK, BAD), "finishedWithDatasetErrors", "Some of your data could not be retrieved"),
    "none": (finished(LOST), "finishedUnsuccessful", "Your retrieve job was not done"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("end", RETRIEVALS)
def test_a_retrieval_ends_with_a_mail_of_its_links_and_of_what_went_wrong(end: str, name: str) -> None:
    job, code, heading = RETRIEVALS[end]
    job = {**job, "type": "retrieve", "jobResultObject": job["jobResultObject"] | (LINKS if end != "none" else {})}
    context = {"job": job, "request": {}, "env": {"SCICAT_FRONTEND_URL": "https://scicat.example"}}
    (mail,) = performed(job_type(name, "retrieve")["update"]["actions"], context)
    assert (mail["to"], mail["subject"]) == ("person@example.org", f"SciCat retrieve job j: {code}")
    assert heading in mail["body"]
    assert mail["body"].count(as_html(job["statusMessage"])) == 1
    assert (f'<a href="{as_html(URL)}">&lt;i&gt;a b</a>' in mail["body"]) == (end != "none")
    assert ("2026-12-01T12:00:00Z" in mail["body"]) == (end != "none")
    for outcome in job["jobResultObject"]["datasets"]:
        if outcome["outcome"] == "failed":
            assert mail["body"].count(as_html(outcome["message"])) == 1
    assert ("#!/bin/sh" in mail["body"]) == (end != "none")
    assert "{{" not in mail["body"]


def test_progress_of_a_retrieval_is_no_mail() -> None:
    update = payloads.job_update(payloads.IN_PROGRESS, "Retrieving 1 dataset.")
    context = {"job": {"id": "j", "type": "retrieve", **update}}
    assert performed(job_type("jobConfig.yaml", "retrieve")["update"]["actions"], context) == []


def as_html(text: str) -> str:
    return render("{{text}}", {"text": text})
