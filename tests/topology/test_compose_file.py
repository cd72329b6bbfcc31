"""docker-compose.yml, Dockerfile and deploy/ hold together, as Compose's own loader reads them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from activities.groups import GROUPS, LTS_QUEUES, parse_queues
from archiver.settings import Settings, load
from cli.programs import PROGRAMS, ROOT, obtain
from tests.topology import compose

Model = dict[str, Any]


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    return compose.random_environment()


@pytest.fixture(scope="module")
def model(variables: dict[str, str]) -> Model:
    return compose.resolve(variables)


def queues_of(service: Mapping[str, Any]) -> list[str]:
    command: list[str] = service["command"]
    return parse_queues(command[command.index("--queues") + 1])


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match
    return 60 * int(match[1] or 0) + int(match[2] or 0)


# --- the loader -------------------------------------------------------------------------------------------------------------


def test_composes_own_loader_takes_the_file(model: Model) -> None:
    assert {
        "temporal",
        "postgresql",
        "temporal-ui",
        "s3",
        "scicat",
        "scicat-frontend",
        "mongodb",
        *compose.OURS,
    } <= set(model["services"])


@pytest.mark.parametrize("missing", compose.required_variables())
def test_the_file_is_refused_without_any_one_of_its_secrets(variables: dict[str, str], missing: str) -> None:
    with pytest.raises(compose.Refused, match=f"required variable {missing} is missing"):
        compose.resolve({name: value for name, value in variables.items() if name != missing})


@pytest.mark.parametrize(
    ("was", "becomes"),
    [("    image: mongo:7.0", "    imagee: mongo:7.0"), ("    restart: unless-stopped", "    restart: [1]")],
    ids=["unknown key", "wrong type"],
)
def test_a_broken_file_is_refused(variables: dict[str, str], tmp_path: Path, was: str, becomes: str) -> None:
    text = compose.COMPOSE_FILE.read_text("utf-8")
    assert was in text
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(text.replace(was, becomes, 1))
    with pytest.raises(compose.Refused):
        compose.resolve(variables, broken)


def test_every_variable_of_the_file_is_in_the_example_and_the_other_way_round() -> None:
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", compose.COMPOSE_FILE.read_text("utf-8"))) - {"ARCHIVER_IMAGE"}
    shown = set(re.findall(r"^#?([A-Z0-9_]+)=", compose.ENV_EXAMPLE.read_text("utf-8"), re.MULTILINE))
    assert used == shown


def test_every_file_that_a_service_mounts_is_there(model: Model) -> None:
    mounted = [
        Path(volume["source"])
        for service in model["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    assert len(mounted) >= 3
    assert all(path.is_file() for path in mounted), mounted


# --- secrets ----------------------------------------------------------------------------------------------------------------


def test_p8_no_secret_is_written_in_the_file() -> None:
    """Every place that names one takes it from a required variable, or from a file of Compose's secrets."""
    raw = compose.load(compose.COMPOSE_FILE, "-no-interpolation")
    seen = 0
    for name, service in raw["services"].items():
        for key, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|SECRET|PWD|TOKEN|ACCESS_KEY|URI", key):
                seen += 1
                from_file = key.endswith("_FILE") and str(value).startswith("/run/secrets/")
                assert from_file or re.search(r"\$\{[A-Z0-9_]+:\?", str(value)), f"{name}: {key}"
    for account in re.findall(r'"password": "([^"]*)"', raw["configs"]["scicat_accounts"]["content"]):
        seen += 1
        assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?[^}]*\}", account)
    assert seen >= 15


def test_p8_our_services_get_their_secrets_as_files_and_not_in_their_environment(
    model: Model, variables: dict[str, str]
) -> None:
    for name in compose.OURS:
        values = set(model["services"][name]["environment"].values())
        secrets = {variables[one] for one in ("S3_SECRET_KEY", "SCICAT_ARCHIVER_PASSWORD", "BRIDGE_TOKEN")}
        assert not values & secrets, name


def test_nothing_is_published_beyond_this_machine_and_temporals_server_not_at_all(model: Model) -> None:
    """Temporal's server runs without an authorizer: who reaches its port may do anything."""
    published = {
        name: [port.get("host_ip") for port in service["ports"]]
        for name, service in model["services"].items()
        if service.get("ports")
    }
    assert published == {name: ["127.0.0.1"] for name in ("s3", "scicat", "scicat-frontend", "temporal-ui")}
    assert list(model["services"]["temporal"]["networks"]) == ["temporal"]
    assert model["networks"]["temporal"]["internal"] is True


# --- our services -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", compose.OURS)
def test_the_settings_of_each_of_our_services_are_known_and_agree(
    model: Model, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("s3cret-of-16-letters\n")
    for key, value in model["services"][name]["environment"].items():
        monkeypatch.setenv(key, str(tmp_path / "secret") if value.startswith("/run/secrets/") else value)
    settings = load(None)
    assert settings.s3.secret_key is not None
    assert settings.scicat.password is not None
    assert settings.lts.root == Path("/lts")


def test_p12_the_lts_worker_is_one_process_that_ends_before_its_successor_starts(model: Model) -> None:
    worker = model["services"]["worker-lts"]
    assert worker["deploy"]["replicas"] == 1
    assert worker["deploy"]["update_config"]["order"] == "stop-first"
    assert worker["deploy"]["rollback_config"]["order"] == "stop-first"
    assert worker["container_name"], "Compose scales no service that has a container name"


def test_p12_no_other_service_serves_the_lts_queues_or_sees_the_lts(model: Model) -> None:
    serving = {
        name: queues_of(service)
        for name, service in model["services"].items()
        if "--queues" in service.get("command", [])
    }
    assert [name for name, queues in serving.items() if set(queues) & set(LTS_QUEUES)] == ["worker-lts"]
    assert sorted(queue for queues in serving.values() for queue in queues) == sorted(GROUPS["all"])
    mounting = {
        name
        for name, service in model["services"].items()
        if any(volume["target"] == "/lts" for volume in service.get("volumes", []))
    }
    assert mounting == {"setup", "worker-lts"}


def test_the_packing_worker_can_be_scaled(variables: dict[str, str]) -> None:
    worker = compose.resolve({**variables, "PACK_WORKERS": "3"})["services"]["worker-catalogue-pack"]
    assert worker["deploy"]["replicas"] == 3
    assert "container_name" not in worker
    assert "ports" not in worker


@pytest.mark.parametrize("name", ["worker-catalogue-pack", "worker-lts"])
def test_a_worker_is_given_longer_to_stop_than_it_gives_its_activities(model: Model, name: str) -> None:
    service = model["services"][name]
    grace = float(service["environment"]["ARCHIVER_WORKER__GRACEFUL_SHUTDOWN_SECONDS"])
    assert seconds(service["stop_grace_period"]) > grace + 10


def test_every_service_has_a_health_check_or_runs_once(model: Model) -> None:
    once = {name for name, service in model["services"].items() if service["healthcheck"].get("disable")}
    assert once == {"setup", "temporal-schema"}
    for name, service in model["services"].items():
        if name in once:
            assert service["restart"] == "on-failure", name
        else:
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"][0] == "CMD", name


def test_nothing_waits_for_less_than_a_healthy_or_a_completed_service(model: Model) -> None:
    for name, service in model["services"].items():
        for other, how in service.get("depends_on", {}).items():
            once = model["services"][other]["healthcheck"].get("disable")
            wanted = "service_completed_successfully" if once else "service_healthy"
            assert how["condition"] == wanted, f"{name} -> {other}"


# --- versions -----------------------------------------------------------------------------------------------------------------


def test_images_are_pinned_and_of_the_versions_that_the_tests_run(model: Model) -> None:
    tags = {name: service["image"].rpartition(":")[2] for name, service in model["services"].items()}
    assert all(re.match(r"v?\d+\.\d+", tag) for tag in tags.values()), tags
    assert tags["temporal"] == PROGRAMS["temporal-server"].release
    assert tags["temporal-schema"] == PROGRAMS["temporal-sql"].release
    assert tags["s3"] == f"v{PROGRAMS['versitygw'].release}"


def test_dev_runs_the_same_minor_version_of_temporals_server_and_the_same_web_ui(model: Model) -> None:
    tags = {name: service["image"].rpartition(":")[2] for name, service in model["services"].items()}
    dev = PROGRAMS["temporal"].version
    assert dev is not None
    assert tags["temporal"].split(".")[:2] == [str(number) for number in dev[:2]]
    answer = subprocess.run([obtain("temporal"), "--version"], capture_output=True, text=True).stdout
    assert f"UI {tags['temporal-ui']}" in answer


def test_our_image_installs_nothing_unlocked_and_runs_as_nobody_in_particular(model: Model) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    stages = dockerfile.split("\nFROM ")
    assert len(stages) == 3, "a comment, and two stages"
    installs = re.findall(r"pip install [^&\n]*", dockerfile)
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-index" in line for line in installs), installs
    final = stages[-1]
    assert "pip install" not in final
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.MULTILINE)
    health = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", final, re.MULTILINE)
    assert health
    for name in ("worker-catalogue-pack", "worker-lts"):
        assert ["CMD", *json.loads(health[1])] == model["services"][name]["healthcheck"]["test"]


def test_our_image_builds_with_the_setuptools_of_the_development_lock() -> None:
    pinned = (ROOT / "deploy" / "requirements-build.lock").read_text("utf-8")
    assert pinned.startswith("setuptools==")
    assert pinned in (ROOT / "requirements-dev.lock").read_text("utf-8")


# --- SciCat and Temporal --------------------------------------------------------------------------------------------------------


def test_scicat_knows_our_job_types_and_gives_our_account_what_it_needs(model: Model) -> None:
    """Contract 1.8 (both create and update, groups with @) and 4 (ADMIN_GROUPS and DELETE_GROUPS)."""
    jobs = {
        job["jobType"]: job
        for job in yaml.safe_load((ROOT / "deploy/scicat/jobConfig.yaml").read_text("utf-8"))["jobs"]
    }
    assert set(jobs) >= {Settings().archive.job_type, "retrieve"}
    accounts = {item["username"]: item for item in json.loads(model["configs"]["scicat_accounts"]["content"])}
    ours = accounts[model["services"]["worker-lts"]["environment"]["ARCHIVER_SCICAT__USERNAME"]]
    environment = model["services"]["scicat"]["environment"]
    for groups in ("ADMIN_GROUPS", "DELETE_GROUPS"):
        assert ours["role"] in environment[groups].split(",")
    for job in jobs.values():
        assert job["create"]["auth"].startswith("#dataset")
        assert job["update"]["auth"] == f"@{ours['role']}"


def test_scicat_is_told_where_the_bridge_listens_and_the_token_that_the_bridge_knows(
    model: Model, variables: dict[str, str]
) -> None:
    bridge, scicat = model["services"]["bridge"], model["services"]["scicat"]["environment"]
    assert scicat["ARCHIVER_BRIDGE_URL"] == f"http://bridge:{bridge['environment']['ARCHIVER_BRIDGE__PORT']}"
    assert bridge["environment"]["ARCHIVER_BRIDGE__HOST"] == "0.0.0.0"
    assert scicat["ARCHIVER_BRIDGE_TOKEN"] == variables["BRIDGE_TOKEN"]
    assert bridge["environment"]["ARCHIVER_BRIDGE__TOKEN_FILE"] == "/run/secrets/bridge_token"
    assert "bridge_token" in {secret["source"] for secret in bridge["secrets"]}
    assert set(bridge["networks"]) & set(model["services"]["scicat"]["networks"])


def test_links_to_retrieved_data_begin_as_requesters_reach_the_s3_server(variables: dict[str, str]) -> None:
    def told(**more: str) -> set[str]:
        services = compose.resolve({**variables, **more})["services"]
        return {services[name]["environment"]["ARCHIVER_RETRIEVAL__PUBLIC_ENDPOINT"] for name in compose.OURS}

    assert told() == {"http://localhost:7070"}
    assert told(S3_PORT="9000") == {"http://localhost:9000"}
    assert told(S3_PUBLIC_URL="https://s3.example.org") == {"https://s3.example.org"}


def test_scicat_is_told_how_to_send_mails_and_where_their_links_lead(model: Model, variables: dict[str, str]) -> None:
    """The names of backend-next's configuration.ts."""
    sites = {"SMTP_HOST": "smtp.example.org", "SMTP_PORT": "465", "SMTP_SECURE": "yes", "EMAIL_FROM": "a@example.org"}
    environment = compose.resolve({**variables, **sites, "SCICAT_FRONTEND_PUBLIC_URL": "https://scicat.example.org"})
    told = environment["services"]["scicat"]["environment"]
    assert {name: told[name] for name in sites} == sites
    assert told["EMAIL_TYPE"] == "smtp"
    assert told["SCICAT_FRONTEND_URL"] == "https://scicat.example.org"
    assert model["services"]["scicat"]["environment"]["SMTP_HOST"] == ""


def test_scicats_frontend_is_told_where_the_backend_is_and_that_there_are_jobs(model: Model) -> None:
    config = json.loads(model["configs"]["scicat_frontend"]["content"])
    assert config == {"lbBaseURL": "http://localhost:3000", "jobsEnabled": True, "archiveWorkflowEnabled": True}


@pytest.mark.topology
def test_temporals_dynamic_configuration_has_only_keys_that_this_server_knows() -> None:
    file = ROOT / "deploy" / "temporal" / "dynamicconfig.yaml"
    done = subprocess.run(
        [obtain("temporal-server"), "validate-dynamic-config", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout


def test_the_command_that_makes_env_fills_every_required_variable(tmp_path: Path) -> None:
    """The one in .env.example's head, run as it stands there."""
    text = compose.ENV_EXAMPLE.read_text("utf-8")
    command = next(line.removeprefix("#").strip() for line in text.splitlines() if "openssl rand" in line)
    (tmp_path / ".env.example").write_text(text)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=60)
    made = tmp_path / ".env"
    values = dict(line.split("=", 1) for line in shlex.split(made.read_text("utf-8"), comments=True))
    assert set(values) == set(compose.required_variables())
    assert len(set(values.values())) == len(values)
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in values.values())
    assert made.stat().st_mode & 0o077 == 0
