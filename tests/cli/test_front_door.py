"""Exit codes and messages: four lines and a number, whatever happens."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from activities.connection import Unreachable
from archiver import errors, model
from cli import exits, jobs, main
from cli.servers import free_port
from tests.cli.running import archiver, command, environment
from tests.spawn import spawn


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SettingsInvalid("x"), 2),
        (errors.MissingFiles("x"), 4),
        (errors.CatalogueRecordInvalid("x"), 4),
        (errors.UnknownDataset("x"), 5),
        (exits.NotFound("x"), 5),
        (errors.NoBag("x", retryable=False), 5),
        (errors.Refused("x"), 6),
        (Unreachable("x"), 7),
        (errors.StagingFault("x"), 7),
        (errors.CatalogueFault("x", retryable=False), 1),
        (errors.IntegrityMismatch("x"), 8),
        (errors.Stopped("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: errors.ArchiverError, code: int) -> None:
    assert exits.exit_code(error) == code


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({"archived": 2, "already_archived": 1}, 0),
        ({"archived": 1, "content_errors": 1}, 3),
        ({"content_errors": 2}, 4),
        ({"content_errors": 1, "system_errors": 1}, 1),
        ({"cancelled": 1}, 1),
    ],
)
def test_a_jobs_end_has_its_exit_code(counts: dict[str, int], code: int) -> None:
    result = model.ArchiveJobResult(job_id="j", status_code="s", message="m", counts=model.Counts(**counts))
    assert jobs.code_of(result) == code


def test_a_job_that_failed_as_a_whole_is_a_failure() -> None:
    assert jobs.code_of(None) == 1


@pytest.mark.parametrize("arguments", [["stauts", "x"], ["status"], ["demo", "--megabytes", "0"], ["--nope"]])
def test_usage_errors_are_2_and_on_stderr(tmp_path: Path, arguments: list[str]) -> None:
    ended = archiver(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Usage: archiver" in ended.stderr.replace("python -m cli.main", "archiver")


def test_a_misspelt_command_is_answered_with_the_right_one(tmp_path: Path) -> None:
    assert "status" in archiver("stauts", "x", cwd=tmp_path).stderr


@pytest.mark.parametrize("arguments", [["status", "x"], ["start", "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11"], ["setup"]])
def test_a_temporal_that_is_not_there_is_7_in_four_lines(tmp_path: Path, arguments: list[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    ended = archiver(*arguments, cwd=tmp_path, TEMPORAL_ADDRESS=address)
    assert ended.returncode == 7
    assert re.fullmatch(
        rf"error    Temporal does not answer at {address}\nexpected .+\nfound    .+\nnext     .+TEMPORAL_ADDRESS.+\n",
        ended.stderr,
    )


def test_a_namespace_that_is_not_there_is_told_with_the_remedy(tmp_path: Path, temporal_address: str) -> None:
    ended = archiver("status", "x", cwd=tmp_path, TEMPORAL_ADDRESS=temporal_address, TEMPORAL_NAMESPACE="elsewhere")
    assert ended.returncode == 7
    assert "has no namespace 'elsewhere'" in ended.stderr
    assert "archiver setup" in ended.stderr


def test_a_job_id_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    ended = archiver("start", "20.500.1/abc", cwd=tmp_path)
    assert ended.returncode == 2
    assert "is no job id" in ended.stderr


def test_errors_are_json_where_json_is_asked_for(tmp_path: Path) -> None:
    ended = archiver("--json", "start", "nonsense", cwd=tmp_path)
    told = json.loads(ended.stdout)
    assert told["version"] == 1
    assert told["error"]["type"] == "SettingsInvalid"
    assert "nonsense" in told["error"]["message"]


def test_json_may_stand_behind_the_command_and_errors_have_their_four_parts(tmp_path: Path) -> None:
    ended = archiver("start", "nonsense", "--json", cwd=tmp_path)
    told = json.loads(ended.stdout)["error"]
    assert {key: told[key] for key in ("error", "expected", "found")} == {
        "error": "'nonsense' is no job id",
        "expected": "the UUID of a SciCat job",
        "found": "'nonsense'",
    }
    assert set(told) == {"type", "message", "error", "expected", "found", "next"}
    assert json.loads(archiver("config", "show", "--json", cwd=tmp_path).stdout)["settings"]


def test_wrong_usage_is_json_too_where_json_is_asked_for(tmp_path: Path) -> None:
    ended = archiver("stauts", "x", "--json", cwd=tmp_path)
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["error"]["next"]
    assert "Did you mean" in ended.stderr


def test_the_help_has_groups_in_order_and_tells_the_exit_codes(tmp_path: Path) -> None:
    text = archiver("--help", cwd=tmp_path, COLUMNS="200").stdout
    places = [text.index(panel) for panel in main.PANELS]
    assert places == sorted(places)
    for command_ in main.PANEL_OF:
        assert re.search(rf"^.? {command_} ", text, re.MULTILINE), command_
    assert "8 integrity mismatch" in " ".join(text.split())


def test_the_version_is_told(tmp_path: Path) -> None:
    assert re.fullmatch(r"archiver \d+\.\d+\S*\n", archiver("--version", cwd=tmp_path).stdout)


def test_what_the_sdk_prints_of_its_own_errors_is_told_in_words(tmp_path: Path) -> None:
    ended = archiver("status", "x", cwd=tmp_path, TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}")
    assert "found    Connection refused\n" in ended.stderr
    assert "tonic" not in ended.stderr


def test_an_unforeseen_error_meets_nobody_as_a_traceback(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command("config", "schema"),
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error    unexpected OSError")
    assert "Traceback" not in ended.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    line = " ".join(command("config", "schema")) + " | head -n 1; exit ${PIPESTATUS[0]}"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.stdout.startswith("[temporal]")
    assert ended.stderr == ""


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    # A Temporal that takes the connection and says nothing: the command waits.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        more = environment(TEMPORAL_ADDRESS=f"127.0.0.1:{silent.getsockname()[1]}")
        running = spawn(
            command("status", "x"), cwd=tmp_path, env=more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        silent.settimeout(60)
        with silent.accept()[0]:
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Traceback" not in said


def test_scicat_of_ones_own_needs_an_account(tmp_path: Path) -> None:
    ended = archiver("dev", "--data-dir", tmp_path / "d", "--scicat-url", "http://127.0.0.1:1", cwd=tmp_path)
    assert ended.returncode == 2
    assert "--scicat-user and --scicat-password" in ended.stderr


HEAVY = ("boto3", "obstore", "httpx", "uvicorn", "starlette", "worker", "activities.catalogue")
"""What takes a command longer to load than to do its work."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["config", "check"],
        ["status", "x"],
        ["jobs"],
        ["watch", "x"],
        ["cancel", "x", "--reason", "y"],
        ["retry", "x"],
        ["archive", "a/b"],
        ["verify", "a/b"],
        ["pause", "--show"],
        ["health"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_loads_only_what_it_uses_so_that_it_answers_at_once(tmp_path: Path, arguments: list[str]) -> None:
    program = (
        "import sys, cli.main as m\n"
        f"sys.argv = ['archiver', *{arguments!r}]\n"
        "code = m.run()\n"
        f"print(code, *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr, flush=True)\n"
        "import os; os._exit(0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr.splitlines()[-1].split()[1:] == [], ended.stderr
