"""Each deliberate fault: the doctor names exactly that one, with what mends it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import resource
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest

from activities.connection import connect
from archiver.catalogue import queries
from archiver.catalogue.standin.app import Account, Fault
from archiver.settings import LtsSettings
from archiver.storage.lts import MARKER
from archiver.storage.lts_directory import FileSystemLts
from archiver.storage.retrieval_directory import MARKER as ROOT_MARKER
from archiver.storage.retrieval_directory import mark
from cli.doctor import CHECKS, mend
from cli.doctor import lts as on_lts
from cli.doctor.check import Outcome, look
from cli.doctor.clocks import judged
from cli.doctor.ground import Ground
from cli.setup import set_up
from tests.doctor.conftest import Catalogue
from tests.doctor.ward import NEVER, Ward, everybody, polling, populate
from tests.needs import need, run
from tests.pipeline.faulty_s3 import EVER, FaultyS3, S3Fault
from tests.pipeline.system import PASSWORD, USER
from tests.storage.conftest import Disk

FAIL, WARN = Outcome.FAIL, Outcome.WARN


async def test_a_healthy_system_has_no_failure_and_no_warning(ward: Ward) -> None:
    seen = await ward.look(dataset=ward.pid)
    assert seen.problems == set(), seen.results
    assert seen.named(Outcome.NOT_CHECKED) == NEVER
    assert len(seen.named(Outcome.OK)) > 40


held = socket.socket()
held.bind(("127.0.0.1", 0))  # and never listens
NOBODY = "{}:{}".format(*held.getsockname())


@pytest.mark.parametrize(
    ("tables", "name", "outcome", "remedy"),
    [
        ({"scicat": {"password": "wrong"}}, "scicat login", FAIL, "check scicat.username and scicat.password"),
        ({"scicat": {"url": f"http://{NOBODY}"}}, "scicat server", FAIL, "start SciCat, or correct scicat.url"),
        ({"s3": {"endpoint": f"http://{NOBODY}"}}, "s3 server", FAIL, "start the S3 server, or correct s3.endpoint"),
        ({"s3": {"secret_key": "wrong"}}, "s3 account", FAIL, "correct s3.access_key and s3.secret_key"),
        ({"s3": {"access_key": "stranger"}}, "s3 account", FAIL, "correct s3.access_key and s3.secret_key"),
        ({"staging": {"bucket": "nonesuch"}}, "staging list", FAIL, "archiver setup  makes it"),
        ({"retrieval": {"bucket": "nonesuch"}}, "retrieval list", FAIL, "archiver setup  makes it"),
        ({"landing": {"url_template": "s3://nonesuch/{pid}/"}}, "landing list", FAIL, "archiver setup  makes it"),
        ({"landing": {"url_template": "file:///nonesuch/{pid}"}}, "landing list", FAIL, "correct landing.url_template"),
        (
            {"temporal": {"config_file": None, "address": NOBODY}},
            "temporal server",
            FAIL,
            "start it, or set TEMPORAL_ADDRESS",
        ),
        ({"doctor": {"dev": False}}, "temporal authorization", FAIL, "give Temporal TLS and an authorizer"),
        ({"lts": {"identity": "another"}}, "lts marker", FAIL, "mount the LTS"),
        ({"lts": {"root": "/nonesuch"}}, "lts marker", FAIL, "mount the LTS there, or correct lts.root"),
        ({"lts": {"reserve": "9000TiB"}}, "lts space", FAIL, "lower lts.reserve"),
        ({"lts": {"reserve": "99.99%"}}, "lts space", FAIL, "free space on the LTS, or lower lts.reserve"),
        ({"datablock": {"target_bytes": "9000TiB"}}, "lts space", WARN, "free space on the LTS, or lower lts.reserve"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
async def test_one_wrong_setting_is_named(
    ward: Ward, tables: dict[str, Mapping[str, Any]], name: str, outcome: Outcome, remedy: str
) -> None:
    (await ward.look(**tables)).only(name, outcome, remedy)


# --- Temporal -----------------------------------------------------------------------------------------------------------


async def test_a_namespace_that_does_not_exist_is_named(ward: Ward) -> None:
    seen = await ward.look(temporal=ward.elsewhere("nonesuch"))
    seen.only("temporal namespace", FAIL, "archiver setup", "nonesuch does not exist")


@pytest.fixture(scope="module")
async def namespaces(ward: Ward) -> None:
    """Two of them, prepared as setup prepares them, for pollers that are not the dev system's."""
    made = [ward.settings(temporal=ward.elsewhere(name)) for name in ("lonely", "crowded")]
    await asyncio.gather(*(set_up(settings, dry_run=False, say=lambda _: None, marker=False) for settings in made))


@pytest.mark.parametrize(
    ("queue", "remedy"), [("pack", "--queues pack"), ("lts-copy", "--queues lts, once and nowhere else")]
)
async def test_a_queue_that_nobody_polls_is_named(ward: Ward, namespaces: None, queue: str, remedy: str) -> None:
    temporal = ward.elsewhere("lonely" if queue == "pack" else "crowded-not")
    if queue != "pack":
        await set_up(ward.settings(temporal=temporal), dry_run=False, say=lambda _: None, marker=False)
    client = await connect(ward.settings(temporal=temporal))
    async with polling(client, *everybody(but=queue)):
        (await ward.look(temporal=temporal)).only(f"pollers {queue}", FAIL, remedy, "nobody polls")


async def test_p12_two_processes_on_one_lts_queue_are_named_and_two_packers_are_well(
    ward: Ward, namespaces: None
) -> None:
    temporal = ward.elsewhere("crowded")
    client = await connect(ward.settings(temporal=temporal))
    second = [("lts-copy", "other:2:lts"), ("pack", "other:2:pack")]
    async with polling(client, *everybody(), *second):
        seen = await ward.look(temporal=temporal)
    seen.only("pollers lts-copy", FAIL, "stop all but one", "2 processes poll archiver-lts-copy, exactly 1 may")
    assert "other:2:lts" in seen["pollers lts-copy"].finding.found


async def test_a_missing_search_attribute_is_named_and_fix_makes_it(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporal = ward.elsewhere("poor")
    settings = ward.settings(temporal=temporal)
    with monkeypatch.context() as patched:
        patched.delitem(__import__("cli.setup").setup.SEARCH_ATTRIBUTES, "Stage")
        await set_up(settings, dry_run=False, say=lambda _: None, marker=False)
    client = await connect(settings)
    async with polling(client, *everybody()):
        seen = await ward.look(temporal=temporal)
        seen.only("temporal search attributes", FAIL, "archiver doctor --fix", "missing: Stage")
        mended = await ward.cli("doctor", "--fix", temporal=temporal)
    assert mended.returncode == 0, mended.stdout
    assert "made       search attribute Stage" in mended.stderr
    assert "ok           temporal search attributes" in mended.stdout


async def test_a_retention_that_is_short_is_named_and_fix_lengthens_it(ward: Ward, namespaces: None) -> None:
    temporal = ward.elsewhere("forgetful")
    settings = ward.settings(temporal=temporal)
    await set_up(settings, dry_run=False, say=lambda _: None, marker=False)
    client = await connect(settings)
    request = UpdateNamespaceRequest(namespace="forgetful")
    request.config.workflow_execution_retention_ttl.FromTimedelta(timedelta(days=1))
    await client.workflow_service.update_namespace(request)
    async with polling(client, *everybody()):
        (await ward.look(temporal=temporal)).only("temporal retention", WARN, "archiver doctor --fix", "kept 1 days")
        await mend(settings, lambda _: None)
        assert (await ward.look(temporal=temporal)).problems == set()


async def test_a_schedule_that_is_not_as_the_settings_say_is_named(ward: Ward) -> None:
    seen = await ward.look(sweep={"every_seconds": 77.0})
    seen.only("temporal schedules", FAIL, "archiver setup", "not as the settings say: schedule archiver-sweep")


async def test_a_paused_schedule_is_told_with_its_note(ward: Ward) -> None:
    handle = (await connect(ward.settings())).get_schedule_handle("archiver-sweep")
    await handle.pause(note="Ada looks at something")
    try:
        seen = await ward.look()
    finally:
        await handle.unpause()
    seen.only("temporal schedules", WARN, "temporal schedule toggle --unpause", "Ada looks at something")


@pytest.fixture
async def mutual_tls(ward: Ward, tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """Temporal behind a proxy that asks for a client's certificate: its address, and the folder of the certificates."""
    need("openssl")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    # One certificate for server and client, and not the authority's own, which no TLS library takes for either.
    leaf = "-subj /CN=temporal -CA ca.pem -CAkey ca-key.pem -keyout key.pem -out cert.pem"
    leaf += " -addext basicConstraints=CA:FALSE -addext subjectAltName=IP:127.0.0.1"
    for more in ("-subj /CN=authority -keyout ca-key.pem -out ca.pem", leaf):
        command = [*make, *more.split()]
        await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    host, port = ward.dev.info["temporal_address"].split(":")
    open_ones: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection(host, port)
        open_ones.update((writer, upstream))
        await asyncio.gather(pump(reader, upstream), pump(upstream_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", tmp_path
    finally:
        server.close()
        for writer in open_ones:
            writer.close()


async def test_a_temporal_that_refuses_strangers_is_well_outside_dev(ward: Ward, mutual_tls: tuple[str, Path]) -> None:
    address, folder = mutual_tls
    config = folder / "temporal.toml"
    files = {"server_ca_cert_path": "ca.pem", "client_cert_path": "cert.pem", "client_key_path": "key.pem"}
    tls = {key: str(folder / name) for key, name in files.items()}
    config.write_text(tomli_w.dumps({"profile": {"default": {"address": address, "namespace": "default", "tls": tls}}}))
    seen = await ward.look(temporal={"config_file": str(config)}, doctor={"dev": False, "check_seconds": 60.0})
    assert seen.problems == set(), seen.results
    assert "without our credentials" in seen["temporal authorization"].finding.found


# --- SciCat -------------------------------------------------------------------------------------------------------------

RIGHTS = {
    "scicat update lifecycle": ("PATCH", "/datasetlifecycle$", "UPDATE_DATASET_LIFECYCLE_GROUPS"),
    "scicat update dataset": ("PATCH", "/datasets/archiver-doctor/[^/]*$", "ADMIN_GROUPS"),
    "scicat create datablock": ("POST", "/datablocks$", "CREATE_DATASET_PRIVILEGED_GROUPS"),
    "scicat update job": ("PATCH", "/jobs/", "UPDATE_JOB_PRIVILEGED_GROUPS"),
    "scicat create job": ("POST", "/jobs$", "CREATE_JOB_PRIVILEGED_GROUPS"),
    "scicat read origdatablocks": ("GET", "/origdatablocks/count$", "ADMIN_GROUPS"),
    "scicat read datablocks": ("GET", "/datasets/.*/datablocks/count$", "ADMIN_GROUPS"),
}


@pytest.mark.parametrize("name", RIGHTS)
async def test_a_right_that_the_account_lacks_is_named(ward: Ward, catalogue: Catalogue, name: str) -> None:
    server = catalogue()
    populate(server, (USER, PASSWORD))
    method, path, remedy = RIGHTS[name]
    server.standin.faults.append(Fault(method, path, times=100, status=403, body={"message": "Forbidden resource"}))
    before = len(server.standin.log)
    seen = await ward.look(scicat={"url": server.url, "username": USER, "password": PASSWORD})
    seen.only(name, WARN if name == "scicat create job" else FAIL, remedy, "403")
    wrote = [
        (method, path, status)
        for method, path, status in server.standin.log[before:]
        if method != "GET" and status < 300
    ]
    assert [path for _, path, _ in wrote if not path.endswith("/login")] == []
    assert "DELETE" not in {method for method, _, _ in server.standin.log[before:]}


async def test_the_classic_role_archivemanager_is_told_what_it_lacks(ward: Ward, catalogue: Catalogue) -> None:
    server = catalogue(Account("archiveManager", PASSWORD, archivemanager=True))
    populate(server, (USER, PASSWORD))
    seen = await ward.look(scicat={"url": server.url, "username": "archiveManager", "password": PASSWORD})
    assert seen.named(FAIL) == {
        *("scicat read origdatablocks", "scicat read datablocks"),
        *("scicat create datablock", "scicat update dataset"),
    }
    # What it may do is not proved for every group, and so is never green.
    assert {"scicat update lifecycle", "scicat update job"} <= seen.named(Outcome.NOT_CHECKED)


async def test_rights_over_all_groups_are_not_green_where_there_is_nothing_to_try_them_on(
    ward: Ward, catalogue: Catalogue
) -> None:
    server = catalogue()
    seen = await ward.look(scicat={"url": server.url, "username": USER, "password": PASSWORD})
    assert seen.problems == set()
    assert set(RIGHTS) <= seen.named(Outcome.NOT_CHECKED)


async def test_a_list_that_scicat_refuses_is_named_with_who_asks_for_it_by_the_same_code(
    ward: Ward, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = catalogue()
    populate(server, (USER, PASSWORD))
    asked = queries.jobs

    def as_once(*given: Any, after: str = "", **how: Any) -> queries.Query:
        query = asked(*given, after=after, **how)
        return replace(query, filter={**query.filter, "where": {**query.filter["where"], "_id": {"$gt": after}}})

    monkeypatch.setattr(queries, "jobs", as_once)
    seen = await ward.look(scicat={"url": server.url, "username": USER, "password": PASSWORD})
    seen.only("scicat lists", FAIL, "docs/scicat.md", "what the sweep for jobs (archive, jobSubmitted) asks for")
    assert "Property where._id" in seen["scicat lists"].finding.found
    assert seen["scicat jobs"].finding.outcome == Outcome.NOT_CHECKED


async def test_every_list_that_we_know_how_to_ask_for_is_tried(
    ward: Ward, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = catalogue()
    populate(server, (USER, PASSWORD))
    made = {
        name: one
        for name, one in vars(queries).items()
        if inspect.isfunction(one) and one.__module__ == queries.__name__ and not name.startswith("_")
    }
    tried: set[str] = set()
    for name, one in made.items():

        def noted(*given: Any, _name: str = name, _one: Any = one, **how: Any) -> Any:
            tried.add(_name)
            return _one(*given, **how)

        monkeypatch.setattr(queries, name, noted)
    seen = await ward.look(scicat={"url": server.url, "username": USER, "password": PASSWORD})
    assert seen["scicat lists"].finding.outcome == Outcome.OK
    assert tried == made.keys(), "a new list is to be tried by the doctor too"


async def test_jobs_that_nobody_took_are_told(ward: Ward, catalogue: Catalogue) -> None:
    server = catalogue()
    populate(server, (USER, PASSWORD))
    old = {
        "id": "j",
        "_id": "j",
        "type": "archive",
        "statusCode": "jobSubmitted",
        "createdAt": "2026-01-01T00:00:00.000Z",
    }
    server.standin.store.insert("jobs", "j", {**old, "createdBy": USER, "jobParams": {}})
    seen = await ward.look(scicat={"url": server.url, "username": USER, "password": PASSWORD})
    seen.only("scicat jobs", WARN, "archiver sweep", "1 jobs were submitted more than 10 min ago")


# --- clocks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "late", "outcome"),
    [("s3", 3600, FAIL), ("s3", 20, WARN), ("scicat", -3600, FAIL), ("scicat", -20, WARN)],
)
async def test_a_clock_that_is_wrong_is_named(
    ward: Ward, s3_proxy: FaultyS3, scicat_proxy: FaultyS3, server: str, late: int, outcome: Outcome
) -> None:
    proxy, tables = (
        (s3_proxy, {"s3": {"endpoint": s3_proxy.url}})
        if server == "s3"
        else (scicat_proxy, {"scicat": {"url": scicat_proxy.url}})
    )
    proxy.faults.append(S3Fault("GET", "", times=EVER, late=late))
    (await ward.look(**tables)).only(f"{server} clock", outcome, "let NTP set the clocks of both machines")


@pytest.mark.parametrize(
    ("ahead", "width", "outcome"),
    [
        (0, 1, Outcome.OK),
        (4, 1, Outcome.OK),
        (70, 200, Outcome.OK),
        (7, 1, WARN),
        (-59, 1, WARN),
        (62, 1, FAIL),
        (-999, 9, FAIL),
    ],
)
def test_a_clock_is_blamed_only_for_what_the_answer_proves(ahead: float, width: float, outcome: Outcome) -> None:
    least, most = (timedelta(seconds=ahead + half) for half in (-width / 2, width / 2))
    assert judged(least, most).outcome == outcome


# --- buckets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "pattern", "name", "right"),
    [
        ("GET", r"/staging\?list-type", "staging list", "s3:ListBucket"),
        ("DELETE", r"/staging/[^?]*$", "staging delete", "s3:DeleteObject"),
        ("POST", r"/staging\?delete", "staging delete", "s3:DeleteObject"),
        ("PUT", r"/staging/[^?]*$", "staging put", "s3:PutObject"),
        ("GET", r"/staging/[^?]*/get", "staging get", "s3:GetObject"),
        ("POST", r"/staging/.*\?uploads", "staging multipart", "s3:PutObject"),
        ("PUT", r"/staging/.*partNumber=", "staging multipart", "s3:PutObject"),
        ("DELETE", r"/staging/.*uploadId=", "staging multipart", "s3:AbortMultipartUpload"),
        ("GET", r"/staging\?.*uploads.*prefix=(&|$)", "staging leftover uploads", ""),
        ("DELETE", r"/retrieval/[^?]*(x-id=DeleteObject)?$", "retrieval delete", "s3:DeleteObject"),
    ],
)
async def test_a_right_that_our_s3_account_lacks_is_named(
    ward: Ward, s3_proxy: FaultyS3, method: str, pattern: str, name: str, right: str
) -> None:
    s3_proxy.faults.append(S3Fault(method, pattern, times=EVER, status=403, message="AccessDenied"))
    seen = await ward.look(s3={"endpoint": s3_proxy.url})
    seen.only(name, FAIL, right)
    if name.endswith("delete"):
        # What could not be removed was not put.
        which = name.split()[0]
        assert seen[f"{which} put"].finding.outcome == Outcome.NOT_CHECKED


async def test_an_upload_that_was_left_over_is_told(ward: Ward) -> None:
    upload = ward.s3.create_multipart_upload(Bucket="staging", Key="datasets/a/b/1.tar.gz")["UploadId"]
    try:
        (folder,) = (ward.dev.data / "s3" / "staging").rglob(upload)
        os.utime(folder, (time.time() - 3 * 86400,) * 2)
        seen = await ward.look()
    finally:
        ward.s3.abort_multipart_upload(Bucket="staging", Key="datasets/a/b/1.tar.gz", UploadId=upload)
    seen.only("staging leftover uploads", WARN, "archiver sweep", "1 uploads older than a day")


# --- where retrieved data is fetched -----------------------------------------------------------------------------------


async def test_links_are_tried_at_the_address_that_requesters_have(ward: Ward, s3_proxy: FaultyS3) -> None:
    seen = await ward.look(retrieval={"public_endpoint": s3_proxy.url})
    assert seen.problems == set()
    assert seen["retrieval links"].finding.found.startswith(s3_proxy.url)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (S3Fault("GET", "/link", times=EVER, status=403), "403"),
        (S3Fault("GET", "/link", times=EVER, flip=True), "gives other bytes than were put"),
    ],
)
async def test_p8_an_address_whose_links_do_not_work_is_named_and_no_link_is_told(
    ward: Ward, s3_proxy: FaultyS3, fault: S3Fault, found: str
) -> None:
    s3_proxy.faults.append(fault)
    seen = await ward.look(retrieval={"public_endpoint": s3_proxy.url})
    seen.only("retrieval links", FAIL, "", found)
    assert "X-Amz" not in str(seen.results)


async def test_an_address_of_links_that_cannot_be_reached_from_here_is_told(ward: Ward) -> None:
    seen = await ward.look(retrieval={"public_endpoint": f"http://{NOBODY}"})
    seen.only("retrieval links", WARN, "correct retrieval.public_endpoint", "cannot be reached from here")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory for retrieved data."""
    (tmp_path / "shared").mkdir()
    mark(tmp_path / "shared", dry_run=False)
    return tmp_path / "shared"


async def test_directories_for_retrieved_data_are_tried_and_left_as_they_were(ward: Ward, shared: Path) -> None:
    (shared / ".archiver-doctor" / "host.1.abc").mkdir(parents=True)
    os.utime(shared / ".archiver-doctor" / "host.1.abc", (1, 1))
    (shared / "theirs").write_text("data")
    (shared / "inner").mkdir()
    mark(shared / "inner", dry_run=False)
    retrieval = {"roots": [str(shared), str(shared / "inner"), str(shared)], "reserve": "1MiB"}
    for seen in await asyncio.gather(*(ward.look(retrieval=retrieval) for _ in range(2))):
        assert seen.problems == set(), seen.results
        assert seen["retrieval roots"].finding.found == f"{shared}, {shared}/inner"
    left = sorted(str(path.relative_to(shared)) for path in shared.rglob("*"))
    assert left == [ROOT_MARKER, "inner", f"inner/{ROOT_MARKER}", "theirs"]


async def test_a_directory_that_is_not_there_is_named_and_not_made(ward: Ward, shared: Path) -> None:
    seen = await ward.look(retrieval={"roots": [str(shared), str(shared / "none")], "reserve": "1MiB"})
    seen.only("retrieval roots", FAIL, "mount it, or correct retrieval.roots", f"{shared}/none: No such file")
    assert [path.name for path in shared.iterdir()] == [ROOT_MARKER]


async def test_a_directory_without_its_marker_is_named(ward: Ward, shared: Path) -> None:
    (shared / ROOT_MARKER).unlink()
    seen = await ward.look(retrieval={"roots": [str(shared)], "reserve": "1MiB"})
    seen.only("retrieval roots", FAIL, "archiver setup", f"{shared}: no {ROOT_MARKER}")
    assert list(shared.iterdir()) == []


async def test_a_directory_on_a_read_only_mount_is_named(ward: Ward, memory: Path) -> None:
    mark(memory, dry_run=False)
    run("mount", "-o", "remount,ro", str(memory))
    seen = await ward.look(retrieval={"roots": [str(memory)], "reserve": "1MiB"})
    seen.only("retrieval roots", FAIL, "mount it read-write", "Read-only file system")


@pytest.mark.parametrize(
    ("reserve", "remedy"), [("9000TiB", "lower retrieval.reserve"), ("99.99%", "free space there, or lower")]
)
async def test_a_directory_without_room_is_named(ward: Ward, memory: Path, reserve: str, remedy: str) -> None:
    mark(memory, dry_run=False)
    (memory / "full").write_bytes(b"x" * 2**20)
    seen = await ward.look(retrieval={"roots": [str(memory)], "reserve": reserve})
    seen.only("retrieval space", FAIL, remedy, str(memory))


async def test_names_that_a_directory_cannot_hold_are_told(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    mark(tmp_path / "root", dry_run=False)
    touch = Path.touch

    def fat(path: Path, *given: Any, **more: Any) -> None:
        if set(":?") & set(path.name):
            raise OSError(errno.EINVAL, "Invalid argument")
        touch(path, *given, **more)

    monkeypatch.setattr(Path, "touch", fat)
    seen = await ward.look(retrieval={"roots": [str(tmp_path / "root")]})
    seen.only("retrieval roots", WARN, "another directory, or by links", "names with : ? cannot be written")


# --- landing zone -------------------------------------------------------------------------------------------------------


async def test_a_landing_directory_that_is_empty_is_named(ward: Ward, tmp_path: Path) -> None:
    (tmp_path / "landing").mkdir()
    seen = await ward.look(landing={"url_template": f"file://{tmp_path}/landing/{{pid}}"})
    seen.only("landing list", FAIL, "mount the landing zone", "is empty")


async def test_a_landing_directory_whose_files_have_certain_versions_is_well(ward: Ward, tmp_path: Path) -> None:
    (tmp_path / "landing" / "p1" / "raw").mkdir(parents=True)
    (tmp_path / "landing" / "p1" / "raw" / "a.h5").write_bytes(b"x")
    landing = {"url_template": f"file://{tmp_path}/landing{{source_folder}}", "delete_after_archive": True}
    seen = await ward.look(landing=landing)
    assert "'p1/raw/a.h5' has a version" in seen["landing files"].finding.found
    assert f"may remove files in {tmp_path}/landing/p1/raw" in seen["landing delete"].finding.found
    assert seen.problems == set()


@pytest.mark.parametrize(
    ("setting", "outcome", "remedy"),
    [("read_twice", WARN, "docs/landing.md"), ("refuse", FAIL, "set landing.without_version to read_twice")],
)
async def test_a_landing_directory_whose_times_are_whole_seconds_is_told(
    ward: Ward, tmp_path: Path, setting: str, outcome: Outcome, remedy: str
) -> None:
    disk = Disk(tmp_path / "image", tmp_path / "disk", 32 * 2**20, "-I", "128")
    try:
        (disk.folder / "p1").mkdir()
        (disk.folder / "p1" / "a.h5").write_bytes(b"x")
        landing = {"url_template": f"file://{disk.folder}/{{source_folder}}", "without_version": setting}
        seen = await ward.look(landing=landing)
    finally:
        disk.unmount()
    seen.only("landing files", outcome, remedy, "'p1/a.h5' has change times of whole seconds")


async def test_objects_without_an_etag_are_told(ward: Ward) -> None:
    # Past the server, and before all others.
    path = Path(ward.dev.data) / "s3" / ward.dev.info["buckets"]["landing"] / "0"
    path.write_bytes(b"x")
    try:
        seen = await ward.look()
    finally:
        path.unlink()
    seen.only("landing files", WARN, "docs/landing.md", "'0' has no strong ETag: such files are read twice")


async def test_a_landing_directory_whose_times_move_by_themselves_is_told(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "a.h5").write_bytes(b"x")
    versions = iter(("1:1:1", "2:2:1"))
    monkeypatch.setattr("cli.doctor.landing.version_beneath", lambda root, path: next(versions))
    seen = await ward.look(landing={"url_template": f"file://{tmp_path}/landing/{{pid}}"})
    seen.only("landing files", WARN, "without caches of attributes", "1:1:1, then 2:2:1")


async def test_a_dataset_whose_files_are_not_all_there_is_told(ward: Ward) -> None:
    info = ward.dev.info
    found = ward.s3.get_object(Bucket=info["buckets"]["landing"], Key=f"{ward.pid}/raw/b c.h5")["Body"].read()
    ward.s3.delete_object(Bucket=info["buckets"]["landing"], Key=f"{ward.pid}/raw/b c.h5")
    try:
        seen = await ward.look(dataset=ward.pid)
    finally:
        ward.s3.put_object(Bucket=info["buckets"]["landing"], Key=f"{ward.pid}/raw/b c.h5", Body=found)
    seen.only("landing dataset", FAIL, "landing.url_template", "1 of 2 files are not in s3://landing/")
    assert "'raw/b c.h5'" in seen["landing dataset"].finding.found


async def test_a_dataset_that_scicat_does_not_know_is_told(ward: Ward) -> None:
    seen = await ward.look(dataset="no/such")
    assert seen.named(FAIL) == {"landing dataset", "scicat read origdatablocks"}
    assert seen["landing dataset"].remedy == "check the pid"


# --- LTS ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 32 MiB, set up as an LTS."""
    root = tmp_path / "memory"
    root.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=32m", "none", str(root))
    try:
        FileSystemLts(LtsSettings(root=root, identity="dev")).setup()
        yield root
    finally:
        subprocess.run(["umount", "-l", str(root)], capture_output=True)


LITTLE = {"datablock": {"target_bytes": "1MiB"}}


async def test_an_lts_in_memory_is_told_because_nothing_read_from_it_is_proved(ward: Ward, memory: Path) -> None:
    seen = await ward.look(lts={"root": str(memory), "reserve": "1MiB"}, **LITTLE)
    seen.only("lts direct io", WARN, "use a disk as LTS", "lies in memory")


async def test_a_read_only_lts_is_named(ward: Ward, memory: Path) -> None:
    run("mount", "-o", "remount,ro", str(memory))
    seen = await ward.look(lts={"root": str(memory), "reserve": "1MiB"}, **LITTLE)
    seen.only("lts write", FAIL, "mount the LTS read-write", "Read-only file system")


async def test_a_full_lts_is_named_once_for_its_space_and_once_for_writing(ward: Ward, memory: Path) -> None:
    filler = memory / "filler"
    with filler.open("wb") as file:
        space = os.statvfs(memory)
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)
    seen = await ward.look(lts={"root": str(memory), "reserve": "0B"}, **LITTLE)
    assert seen.problems == {"lts space", "lts write"}
    assert seen["lts write"].remedy == "free space on the LTS"


async def test_an_lts_without_marker_gets_none_by_fix(ward: Ward, tmp_path: Path) -> None:
    root = tmp_path / "unmounted"
    root.mkdir()
    await mend(ward.settings(lts={"root": str(root)}), lambda _: None)
    (await ward.look(lts={"root": str(root)})).only("lts marker", FAIL, "mount the LTS")
    assert not (root / MARKER).exists()


async def test_a_file_system_without_o_direct_is_told(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **how: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more, **how)

    monkeypatch.setattr(os, "open", refuse)
    seen = await ward.look()
    seen.only("lts direct io", WARN, "set lts.direct_io to never", "no O_DIRECT here: read back by fsync+DONTNEED")


async def test_a_file_system_without_reservation_is_told(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_lts, "reserve", lambda descriptor, size: False)
    (await ward.look()).only("lts reservation", WARN, "use a file system with fallocate")


async def test_p3_a_file_system_on_which_names_are_taken_over_is_named(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_lts, "publish", os.replace)
    (await ward.look()).only("lts publish", FAIL, "mount an LTS that has link(2)", "overwritten")


async def test_p12_a_file_system_that_does_not_lock_is_named(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda descriptor, operation: None)
    (await ward.look()).only("lts lock", FAIL, "set worker.lock_dir to a directory on a local disk")


async def test_a_partial_file_that_was_left_over_is_told(ward: Ward) -> None:
    left = ward.lts / "a" / "b" / "data" / ".1.tar.gz.x-1.partial"
    left.parent.mkdir(parents=True)
    try:
        left.write_bytes(b"x")
        assert (await ward.look()).problems == set()  # it may be in work
        os.utime(left, (time.time() - 3 * 86400,) * 2)
        seen = await ward.look()
    finally:
        shutil.rmtree(ward.lts / "a")
    seen.only("lts leftovers", WARN, "archiver sweep", "a/b/data/.1.tar.gz.x-1.partial")


# --- machine ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("files", "outcome"), [(64, FAIL), (512, WARN)])
async def test_a_low_limit_of_open_files_is_told(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, files: int, outcome: Outcome
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, 4096))
    (await ward.look()).only("machine open files", outcome, "ulimit -n 4096", f"{files} (hard limit 4096)")


# --- servers that hang --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "key", "prefix", "name"),
    [
        ("scicat", "url", "http://", "scicat server"),
        ("s3", "endpoint", "http://", "s3 server"),
        ("temporal", "address", "", "temporal server"),
    ],
)
async def test_a_server_that_hangs_costs_seconds(ward: Ward, table: str, key: str, prefix: str, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tables: dict[str, dict[str, Any]] = {table: {key: f"{prefix}127.0.0.1:{silent.getsockname()[1]}"}}
        if table == "temporal":
            tables[table]["config_file"] = None
        of_it = [check for check in CHECKS if check.name == name or check.needs == (name,)]
        results = await look(of_it, Ground(ward.settings(**tables)), 1.0)
    assert {one.check.name for one in results if one.finding.outcome == FAIL} == {name}
    assert results[0].finding.found == "no answer within 1 s"
    assert {one.finding.found for one in results[1:]} == {f"needs: {name}"}
