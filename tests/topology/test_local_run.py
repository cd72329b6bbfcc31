"""The whole topology of docker-compose.yml as local processes: what the file says is what works."""

from __future__ import annotations

import io
import signal
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import bagit
import boto3
import httpx
import pytest
from temporalio.api.workflowservice.v1 import GetClusterInfoRequest
from temporalio.client import Client

from cli.servers import free_port
from tests.topology import compose
from tests.topology.local import Topology

FILES = {
    "raw/image 1.bin": b"\x00\x01" * 70_000,
    "raw/image 2.bin": bytes(range(256)) * 900,
    "notes/Überblick.txt": b"was gemessen wurde\n",
    "empty": b"",
}
STARTUP_SECONDS = 90
JOB_SECONDS = 120
SERVICES = ("worker-catalogue-pack", "worker-lts", "bridge")
"""Ours that go on running."""

pytestmark = pytest.mark.topology


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    return compose.random_environment()


@pytest.fixture(scope="module")
def topology(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """Started as ``docker compose up`` would: each service once those it depends on are healthy or done."""
    it = Topology(compose.resolve(variables), tmp_path_factory.mktemp("topology"))
    try:
        it.start_servers()
        schema = it.run("temporal-schema")
        assert schema.returncode == 0, schema.stderr[-2000:]
        it.start_temporal()
        setup = it.run("setup")
        assert setup.returncode == 0, setup.stderr[-2000:]
        for name in SERVICES:
            it.start(name)
        for name in SERVICES:
            wait_until_healthy(it, name)
        yield it
    finally:
        it.stop()


def wait_until_healthy(topology: Topology, name: str) -> None:
    until = time.monotonic() + STARTUP_SECONDS
    while (check := topology.healthy(name)).returncode and time.monotonic() < until:
        if topology.children[name].exit_code is not None:
            break
        time.sleep(0.2)
    log = topology.children[name].log.read_text("utf-8", "replace")[-2000:]
    assert check.returncode == 0, f"{name} is not healthy: {check.stdout}{check.stderr}\n{log}"


class SciCatUser:
    """Plain HTTP against SciCat, nothing of ours."""

    def __init__(self, url: str, username: str, password: str) -> None:
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=60)
        login = self._http.post("/api/v3/auth/login", json={"username": username, "password": password})
        login.raise_for_status()
        self._http.headers["Authorization"] = f"Bearer {login.json()['access_token']}"

    def post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        answer = self._http.post(path, json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, object] = answer.json()
        return made

    def get(self, path: str) -> object:
        answer = self._http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def scicat(topology: Topology, variables: dict[str, str]) -> SciCatUser:
    return SciCatUser(f"http://{topology.address('scicat')}", "archiver", variables["SCICAT_ARCHIVER_PASSWORD"])


@pytest.fixture(scope="module")
def archived(topology: Topology, scicat: SciCatUser, variables: dict[str, str]) -> tuple[str, str]:
    """A dataset put by boto3 and made by plain HTTP, and its job, started by SciCat's webhook alone; pid and job."""
    dataset = scicat.post(
        "/api/v3/datasets",
        {
            "type": "raw",
            "datasetName": "topology",
            "owner": "An Owner",
            "ownerGroup": "group-1",
            "contactEmail": "owner@example.org",
            "sourceFolder": "/data/topology",
            "creationTime": "2026-01-02T03:04:05.000Z",
            "creationLocation": "here",
            "principalInvestigator": "A Person",
        },
    )
    pid = str(dataset["pid"])
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://{topology.address('s3')}",
        aws_access_key_id=variables["S3_ACCESS_KEY"],
        aws_secret_access_key=variables["S3_SECRET_KEY"],
        region_name="us-east-1",
    )
    for path, data in FILES.items():
        s3.put_object(Bucket="landing", Key=f"{pid}/{path}", Body=data)
    listed = [{"path": path, "size": len(data), "time": "2026-01-02T03:04:05.000Z"} for path, data in FILES.items()]
    scicat.post(
        "/api/v4/origdatablocks",
        {"datasetId": pid, "size": sum(map(len, FILES.values())), "dataFileList": listed, "ownerGroup": "group-1"},
    )
    job = scicat.post(
        "/api/v4/jobs",
        {"type": "archive", "ownerGroup": "group-1", "jobParams": {"datasetList": [{"pid": pid, "files": []}]}},
    )
    until = time.monotonic() + JOB_SECONDS
    while True:
        record = scicat.get(f"/api/v4/jobs/{job['id']}")
        assert isinstance(record, dict)
        if str(record["statusCode"]).startswith("finished"):
            return pid, str(job["id"])
        assert time.monotonic() < until, (record, topology.children["bridge"].log.read_text("utf-8")[-2000:])
        time.sleep(0.2)


async def temporal(topology: Topology) -> Client:
    namespace = topology.environment("setup")["TEMPORAL_NAMESPACE"]
    return await Client.connect(topology.address("temporal"), namespace=namespace)


async def test_temporals_server_is_of_the_version_in_the_file_and_on_postgresql(topology: Topology) -> None:
    client = await temporal(topology)
    info = await client.workflow_service.get_cluster_info(GetClusterInfoRequest())
    assert info.server_version == topology.services["temporal"]["image"].rpartition(":")[2]
    assert info.persistence_store == "postgres12"
    assert info.visibility_store == "postgres12"
    assert info.history_shard_count == int(topology.services["temporal"]["environment"]["NUM_HISTORY_SHARDS"])


def test_what_runs_once_may_run_at_every_start(topology: Topology) -> None:
    schema = topology.run("temporal-schema")
    assert schema.returncode == 0, schema.stderr[-2000:]
    setup = topology.run("setup")
    assert setup.returncode == 0, setup.stderr[-2000:]
    made = [line for line in setup.stdout.splitlines() if not line.startswith("there")]
    assert made == []


def test_a_dataset_goes_through_the_whole_topology(
    topology: Topology, scicat: SciCatUser, archived: tuple[str, str]
) -> None:
    pid, job_id = archived
    job = scicat.get(f"/api/v4/jobs/{job_id}")
    assert isinstance(job, dict)
    assert job["statusCode"] == "finishedSuccessful", job
    dataset = scicat.get(f"/api/v4/datasets/{quote(pid, safe='')}")
    assert isinstance(dataset, dict)
    lifecycle = dataset["datasetlifecycle"]
    assert lifecycle["archiveStatusMessage"] == "datasetOnArchiveDisk"
    assert (lifecycle["retrievable"], lifecycle["archivable"]) == (True, False)
    datablocks = scicat.get(f"/api/v3/datasets/{quote(pid, safe='')}/datablocks")
    assert isinstance(datablocks, list)
    assert [block["archiveId"] for block in datablocks] == [f"{pid}/data/1.tar.gz"]


def test_p11_what_lies_on_the_lts_is_a_valid_bag_with_the_very_bytes(
    topology: Topology, archived: tuple[str, str]
) -> None:
    pid, _ = archived
    folder = topology.volume("lts") / pid
    bagit.Bag(str(folder)).validate(completeness_only=False)
    with tarfile.open(folder / "data" / "1.tar.gz") as tar:
        unpacked = {member.name: _bytes(tar, member) for member in tar}
    assert unpacked == FILES


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert isinstance(content, io.BufferedIOBase)
    return content.read()


def test_nothing_is_left_in_staging(topology: Topology, archived: tuple[str, str]) -> None:
    left = [path for path in (topology.volume("s3") / "staging").rglob("*") if path.is_file()]
    assert left == []


async def test_p8_no_secret_of_the_topology_is_in_a_history_or_a_log(
    topology: Topology, archived: tuple[str, str], variables: dict[str, str]
) -> None:
    client = await temporal(topology)
    texts = []
    async for workflow in client.list_workflows():
        handle = client.get_workflow_handle(workflow.id, run_id=workflow.run_id)
        texts.append((workflow.id, (await handle.fetch_history()).to_json()))
    assert len(texts) >= 3, "a job, a dataset, a datablock"
    texts += [(name, topology.children[name].log.read_text("utf-8")) for name in compose.OURS if name != "setup"]
    for name, secret in variables.items():
        if name != "S3_ACCESS_KEY":
            assert [where for where, text in texts if secret in text] == [], name


def test_p12_a_second_lts_worker_refuses_to_serve(topology: Topology) -> None:
    own_port = {"ARCHIVER_WORKER__METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}  # in a container it is its own anyway
    second = topology.run("worker-lts", more=own_port, seconds=60)
    assert second.returncode == 6, second.stderr
    assert "lock" in second.stderr


def test_workers_drain_at_the_signal_that_compose_sends_and_their_health_check_then_fails(topology: Topology) -> None:
    for name in SERVICES:
        child = topology.children[name]
        child.stop(signal.SIGTERM, seconds=60)
        assert child.exit_code == 0, child.log.read_text("utf-8")[-2000:]
        assert topology.healthy(name).returncode == 1
        topology.start(name)
        wait_until_healthy(topology, name)


def test_the_lts_worker_needs_the_lts_and_the_packing_worker_does_not(topology: Topology) -> None:
    assert topology.environment("worker-lts")["ARCHIVER_LTS__ROOT"] == str(topology.volume("lts"))
    root = Path(topology.environment("worker-catalogue-pack")["ARCHIVER_LTS__ROOT"])
    assert not root.exists(), "the packing worker ran without it"
