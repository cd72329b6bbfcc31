"""``archiver dev``: everything on one machine, that starts, goes on, and ends as a whole."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cli.sample import HOSTILE_NAMES
from cli.servers import free_port
from tests.cli.dev import Dev
from tests.cli.running import archiver

FIELDS = {
    "temporal_address",
    "temporal_ui",
    "namespace",
    "s3_endpoint",
    "s3_access_key",
    "s3_secret_key",
    "buckets",
    "landing_url_template",
    "lts_root",
    "scicat_url",
    "scicat_user",
    "scicat_password",
    "bridge_url",
    "bridge_token",
}
JOB = "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11"


def until(holds: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """One system for the tests that leave it running; its caller's environment points elsewhere."""
    system = Dev(tmp_path_factory.mktemp("dev"))
    try:
        yield system.start(
            TEMPORAL_ADDRESS="127.0.0.1:1", TEMPORAL_NAMESPACE="elsewhere", ARCHIVER_LTS__ROOT="/nowhere"
        )
    finally:
        system.end()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Dev]:
    """A system of the test's own, not started; ended whatever happens."""
    it = Dev(tmp_path)
    try:
        yield it
    finally:
        it.end()


@pytest.fixture
def own(system: Dev) -> Dev:
    """The same, started."""
    return system.start()


def test_dev_json_says_where_everything_is_and_is_readable_by_its_owner_only(dev: Dev) -> None:
    info = dev.info
    assert set(info) == FIELDS
    assert set(info["buckets"]) == {"landing", "staging", "retrieval"}
    assert info["landing_url_template"] == "s3://landing/{pid}/"
    assert Path(info["lts_root"]).is_absolute()
    assert httpx.get(info["temporal_ui"], trust_env=False).status_code == 200
    for name in ("dev.json", "archiver.toml", "state.json", "temporal.toml"):
        assert stat.S_IMODE((dev.data / name).stat().st_mode) == 0o600, name


def test_what_dev_prints_has_the_addresses(dev: Dev) -> None:
    for field in ("temporal_address", "temporal_ui", "s3_endpoint", "scicat_url", "bridge_url"):
        assert dev.info[field] in dev.said()


def test_what_dev_prints_has_pages_of_the_web_ui_and_how_to_get_a_dataset(dev: Dev) -> None:
    for name in ("jobs", "datasets under way", "datasets that failed"):
        (line,) = (line for line in dev.said().splitlines() if line.startswith(f"{name}  "))
        assert httpx.get(line.split()[-1], trust_env=False).status_code == 200
    assert f"archiver dev sample --data-dir {dev.data}" in dev.said()


@pytest.mark.parametrize("more", [(), ("--hostile",)])
def test_a_sample_dataset_is_made_archived_and_brought_back(dev: Dev, more: tuple[str, ...]) -> None:
    made = archiver(
        "dev", "sample", "--data-dir", dev.data, "--size", "2MiB", "--files", "5", "--json", *more, cwd=dev.folder
    )
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["files"] == 1 + 10 + 5 + 4 + 1 + (len(HOSTILE_NAMES) if more else 0)
    assert told["next"].startswith(f"archiver -c {dev.data}/archiver.toml archive {told['pid']}")
    config = dev.data / "archiver.toml"
    ended = archiver("-c", config, "archive", told["pid"], "--wait", cwd=dev.folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    listed = json.loads(archiver("-c", config, "ls", told["pid"], "--files", "--json", cwd=dev.folder).stdout)
    paths = {one["path"] for block in listed["datablocks"] for one in block["listed"]}
    assert len(paths) == told["files"]
    assert not more or paths >= set(HOSTILE_NAMES)
    back = archiver("-c", config, "retrieve", told["pid"], "--wait", cwd=dev.folder)
    assert back.returncode == 0, back.stdout + back.stderr
    assert not [*dev.data.glob("sample-*")], "nothing is left of what was uploaded"


def test_a_sample_without_a_dev_says_what_to_start(tmp_path: Path) -> None:
    ended = archiver("dev", "sample", cwd=tmp_path)
    assert ended.returncode == 6
    assert "error    no archiver dev runs in archiver-dev\n" in ended.stderr
    size = archiver("dev", "sample", "--size", "much", cwd=tmp_path)
    assert size.returncode == 2
    assert "much" in size.stderr


def test_p8_no_secret_is_printed_logged_or_on_a_command_line(dev: Dev) -> None:
    texts = [dev.said(), *(log.read_text("utf-8", "replace") for log in (dev.data / "logs").iterdir())]
    texts += [" ".join(child.cmdline()) for child in dev.children().values()]
    for secret in (dev.info["s3_secret_key"], dev.info["scicat_password"], dev.info["bridge_token"]):
        assert not any(secret in text for text in texts)


def test_the_settings_file_is_of_this_system_with_absolute_paths(dev: Dev) -> None:
    settings = tomllib.loads((dev.data / "archiver.toml").read_text())
    assert settings["temporal"]["address"] == dev.info["temporal_address"]
    assert settings["lts"]["root"] == dev.info["lts_root"]
    assert dev.archiver("config", "check").returncode == 0


def test_setup_has_nothing_left_to_do(dev: Dev) -> None:
    for flags in ([], ["--dry-run"]):
        done = dev.archiver("--json", "setup", *flags)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["made"] == 0
        assert any("marker of LTS" in step for step in told["steps"])
        assert any("namespace default" in step for step in told["steps"])


def test_setup_on_an_empty_namespace_tells_first_and_then_makes(dev: Dev, tmp_path: Path) -> None:
    more = {"TEMPORAL_NAMESPACE": f"new-{os.getpid()}", "ARCHIVER_LTS__ROOT": str(tmp_path)}
    more |= {"ARCHIVER_STAGING__BUCKET": f"staging-{os.getpid()}"}
    planned = json.loads(dev.archiver("--json", "setup", "--dry-run", **more).stdout)
    made = dev.archiver("--json", "setup", **more)
    again = json.loads(dev.archiver("--json", "setup", **more).stdout)
    assert made.returncode == 0, made.stderr
    assert (
        planned["made"] == json.loads(made.stdout)["made"] == 13
    )  # namespace, 7 attributes, 3 schedules, bucket, marker
    assert again["made"] == 0


def test_a_dataset_is_archived_by_one_command_and_told_by_another(dev: Dev) -> None:
    pid = dev.dataset({"a.txt": b"hello", "b/ü c.bin": bytes(100_000)})
    done = dev.archiver("--json", "archive", pid, "--wait")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status_code"] == "finishedSuccessful"
    assert dev.lifecycle(pid)["archiveStatusMessage"] == "datasetOnArchiveDisk"
    job = dev.archiver("status", told["job_id"])
    assert job.returncode == 0
    assert pid in job.stdout
    assert "ARCHIVED" in job.stdout
    assert f"{pid}  " in dev.archiver("status", pid).stdout


def test_p3_the_same_job_started_again_is_a_success_that_changes_nothing(dev: Dev) -> None:
    pid = dev.dataset({"a.txt": b"once"})
    job = json.loads(dev.archiver("--json", "archive", pid, "--wait").stdout)["job_id"]
    before = {path: path.stat().st_mtime_ns for path in (Path(dev.info["lts_root"]) / pid).rglob("*")}
    again = dev.archiver("--json", "start", job, "--wait")
    assert again.returncode == 0
    assert json.loads(again.stdout)["counts"]["already_archived"] == 1
    assert {path: path.stat().st_mtime_ns for path in (Path(dev.info["lts_root"]) / pid).rglob("*")} == before


def test_p7_a_job_that_went_half_well_is_3_and_its_status_names_the_file(dev: Dev) -> None:
    good = dev.dataset({"a.txt": b"good"})
    bad = dev.dataset({"a.txt": b"bad"}, listed={"a.txt": 3, "missing.txt": 5})
    done = dev.archiver("--json", "archive", good, bad, "--wait")
    assert done.returncode == 3, done.stderr
    told = json.loads(done.stdout)
    assert told["status_code"] == "finishedWithDatasetErrors"
    assert "missing.txt" in dev.archiver("status", told["job_id"]).stdout


def test_a_content_error_alone_is_4(dev: Dev) -> None:
    bad = dev.dataset({"a.txt": b"bad"}, listed={"a.txt": 4})
    assert dev.archiver("archive", bad, "--wait").returncode == 4


def test_an_unknown_dataset_is_5_and_makes_no_job(dev: Dev) -> None:
    done = dev.archiver("archive", "20.500.12345/none")
    assert done.returncode == 5
    assert "SciCat knows no dataset 20.500.12345/none" in done.stderr


def test_an_unknown_job_is_5_and_nothing_is_started(dev: Dev) -> None:
    done = dev.archiver("start", JOB, "--wait")
    assert done.returncode == 5
    assert f"SciCat knows no job {JOB}" in done.stderr
    status = dev.archiver("status", JOB)
    assert status.returncode == 5
    assert "nothing is known" in status.stderr


def test_a_second_dev_on_the_same_directory_is_refused(dev: Dev) -> None:
    second = archiver("dev", "--data-dir", dev.data, cwd=dev.folder)
    assert second.returncode == 6
    assert "another archiver dev runs in" in second.stderr
    assert (dev.data / "dev.json").exists()


def test_a_port_in_use_is_a_usage_error_that_names_it(dev: Dev, tmp_path: Path) -> None:
    taken = dev.info["s3_endpoint"].rpartition(":")[2]
    refused = archiver("dev", "--data-dir", tmp_path / "d", "--s3-port", taken, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"port {taken} is in use" in refused.stderr


def test_a_scicat_of_ones_own_takes_the_place_of_the_stand_in(dev: Dev, system: Dev) -> None:
    info = dev.info
    account = {"SCICAT_USER": info["scicat_user"], "SCICAT_PASSWORD": info["scicat_password"]}
    system.start("--scicat-url", info["scicat_url"], **account)
    assert system.info["scicat_url"] == info["scicat_url"]
    assert len(system.running()) == 5
    assert info["scicat_password"] not in (system.data / "state.json").read_text()
    pid = system.dataset({"a.txt": b"hello"})
    assert system.archiver("archive", pid, "--wait").returncode == 0
    assert dev.lifecycle(pid)["archiveStatusMessage"] == "datasetOnArchiveDisk"


def test_p5_children_that_die_are_started_again_and_it_is_said(own: Dev) -> None:
    died = own.children()
    for child in died.values():
        child.kill()
    until(lambda: not {c.pid for c in died.values()} & {c.pid for c in own.running()}, "the dead are noticed")
    until(lambda: len(own.running()) == 6, "all are there again")
    until(lambda: own.archiver("setup").returncode == 0, "Temporal and S3 answer")
    until(own.logs_in, "SciCat answers")
    pid = own.dataset({"a.txt": b"after"})
    assert own.archiver("archive", pid, "--wait").returncode == 0
    for name in (
        "Temporal server",
        "S3 server",
        "SciCat stand-in",
        "worker workflows,catalogue,pack",
        "worker lts",
        "bridge",
    ):
        assert f"{name} ended with -9: starting it again in 1 s" in own.said()


def test_status_says_when_no_worker_answers(own: Dev) -> None:
    pid = own.dataset({"a.txt": b"x"})
    worker = own.children()["pack"]
    seen: list[str] = []

    def told() -> bool:
        # Asked within the 10 s after which Temporal takes the task from the worker that stands still, and counts a try.
        job = json.loads(own.archiver("--json", "archive", pid).stdout)["job"]
        status = own.archiver("status", job)
        assert status.returncode == 0, status.stderr
        assert "RUNNING" in status.stdout
        seen.append(status.stdout)
        return "no worker answers" in status.stdout

    worker.suspend()
    try:
        until(told, f"no worker answers: {seen}")
    finally:
        worker.resume()


def test_ctrl_c_stops_everything(own: Dev) -> None:
    children = own.running()
    assert own.end(signal.SIGINT) == 0
    assert not any(child.is_running() for child in children)
    assert not (own.data / "dev.json").exists()


def test_sigterm_stops_everything_and_the_next_start_goes_on(own: Dev) -> None:
    first = own.info
    pid = own.dataset({"a.txt": b"kept"})
    job = json.loads(own.archiver("--json", "archive", pid, "--wait").stdout)["job_id"]
    children = own.running()
    assert own.end(signal.SIGTERM) == 0
    assert not any(child.is_running() for child in children)
    assert not (own.data / "dev.json").exists()
    own.start()
    assert own.info == first
    assert "ARCHIVED" in own.archiver("status", job).stdout
    assert own.lifecycle(pid)["archiveStatusMessage"] == "datasetOnArchiveDisk"


def test_p5_a_dev_that_is_killed_takes_its_children_with_it_and_starts_again_at_once(own: Dev) -> None:
    children = own.running()
    own.end(signal.SIGKILL)
    (own.data / "dev.json").unlink()  # a killed one leaves it; the next start removes it before anything else
    own.start()
    until(lambda: not any(child.is_running() for child in children), "the children of the killed one are gone")
    pid = own.dataset({"a.txt": b"after"})
    assert own.archiver("archive", pid, "--wait").returncode == 0


def test_a_signal_while_it_starts_stops_what_was_started(system: Dev) -> None:
    system.launch("--temporal-port", str(free_port()))
    until(lambda: len(system.running()) >= 1, "the first child runs")
    children = system.running()
    assert system.end(signal.SIGTERM) == 130
    until(lambda: not any(child.is_running() for child in children), "what was started is gone")
    assert not (system.data / "dev.json").exists()
