"""Temporal: reachable, namespace, retention, search attributes, authorization, pollers, clock."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from dataclasses import replace
from datetime import UTC, timedelta
from functools import partial
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeTaskQueueRequest,
    GetSystemInfoRequest,
    PollActivityTaskQueueRequest,
    SignalWorkflowExecutionRequest,
)
from temporalio.client import Client, TLSConfig
from temporalio.service import RPCError, RPCStatusCode

from activities.connection import answering, configured, connect
from activities.groups import LTS_QUEUES
from activities.late_writes import ended_query
from activities.polled import partitions
from activities.sweep import DATASETS, JOBS, running_query
from archiver.model import SEARCH_ATTRIBUTES
from cli import sweep_state
from cli.doctor.check import Check, Finding, fail, not_checked, ok, warn
from cli.doctor.clocks import judged
from cli.doctor.ground import Ground, now
from cli.hand import stopped_query
from cli.listing import group_query, query_of
from cli.refs import begun_query
from cli.schedules import keep_schedules, wanted
from cli.setup import INDEXED, LEAST_RETENTION, RETENTION

POLL_SECONDS = 75.0
"""Who polls does so anew at least once a minute; Temporal lists a poller for five minutes."""
CLOCK_QUEUE = "archiver-doctor"
"""Polled for a moment, because Temporal tells its time nowhere else; nothing is ever put on it."""
LONG_POLL = timedelta(seconds=60)
"""As workers poll: Temporal answers a shorter one at once, and does not note it. It is cancelled when it was noted."""
CLOSED = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED)
QUEUES = ("workflows", "catalogue", "pack", *LTS_QUEUES)


async def server(ground: Ground) -> Finding:
    ground.client = await connect(ground.settings, see_namespace=False)
    with answering():
        info = await ground.client.workflow_service.get_system_info(GetSystemInfoRequest())
    return ok(f"{_address(ground)}, server {info.server_version or 'of unknown version'}")


async def namespace(ground: Ground) -> Finding:
    client = _client(ground)
    try:
        request = DescribeNamespaceRequest(namespace=client.namespace)
        ground.namespace = await client.workflow_service.describe_namespace(request)
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return fail(f"{client.namespace} does not exist")
        return fail(
            f"{client.namespace}: {error.status.name} {error.message}"[:300], "see the rights of our credentials"
        )
    return ok(client.namespace)


async def retention(ground: Ground) -> Finding:
    assert ground.namespace is not None  # noqa: S101
    kept = ground.namespace.config.workflow_execution_retention_ttl.ToTimedelta()
    found = f"histories of closed workflows are kept {kept.total_seconds() / 86400:g} days"
    if kept >= LEAST_RETENTION:
        return ok(found)
    return warn(f"{found}: nobody can see afterwards why a dataset failed", _raise_retention(ground))


def _raise_retention(ground: Ground) -> str:
    hours = int(RETENTION.total_seconds() // 3600)
    namespace = _client(ground).namespace
    return f"archiver doctor --fix, or  temporal operator namespace update -n {namespace} --retention {hours}h"


async def search_attributes(ground: Ground) -> Finding:
    client = _client(ground)
    with answering():
        request = ListSearchAttributesRequest(namespace=client.namespace)
        there = (await client.operator_service.list_search_attributes(request)).custom_attributes
    missing = [name for name in SEARCH_ATTRIBUTES if name not in there]
    if missing:
        return fail(f"missing: {', '.join(missing)}")
    wrong = [name for name, kind in SEARCH_ATTRIBUTES.items() if there[name] != INDEXED[kind]]
    if wrong:
        remedy = f"temporal operator search-attribute remove --name {wrong[0]}, then  archiver setup"
        return fail(f"of another type than {SEARCH_ATTRIBUTES[wrong[0]]}: {', '.join(wrong)}", remedy)
    return ok(f"all {len(SEARCH_ATTRIBUTES)}")


async def schedules(ground: Ground) -> Finding:
    """What SciCat's webhook loses, only the sweep finds."""
    client, sweep = _client(ground), ground.settings.sweep
    with answering():
        wrong = [what for what, differs in await keep_schedules(client, sweep, dry_run=True) if differs]
        if wrong:
            return fail(f"not as the settings say: {', '.join(wrong)}")
        names = [name for name, schedule in wanted(sweep).items() if schedule]
        states = {name: (await client.get_schedule_handle(name).describe()).schedule.state for name in names}
    paused = [name for name, state in states.items() if state.paused]
    if paused:
        remedy = f"temporal schedule toggle --unpause --reason TEXT -n {client.namespace} -s {paused[0]}"
        return warn(f"paused: {', '.join(paused)} ({states[paused[0]].note or 'without a note'})"[:300], remedy)
    return ok(", ".join(names) or "none is wanted")


async def authorization(ground: Ground) -> Finding:
    """A signal to a workflow that does not exist, by a caller without our credentials: NOT_FOUND means it may."""
    config = configured(ground.settings)
    namespace = _client(ground).namespace
    try:
        anonymous = await Client.connect(config["target_host"], namespace=namespace, tls=_without_certificate(config))
        request = SignalWorkflowExecutionRequest(
            namespace=namespace,
            workflow_execution=WorkflowExecution(workflow_id=f"archiver-doctor/{ground.run}"),
            signal_name="archiver-doctor",
            identity=ground.run,
        )
        await anonymous.workflow_service.signal_workflow_execution(request)
    except RuntimeError:
        return ok("callers without our credentials cannot connect")
    except RPCError as error:
        if error.status in CLOSED:
            return ok(f"callers without our credentials are refused ({error.status.name})")
        if error.status != RPCStatusCode.NOT_FOUND:
            return not_checked(f"an anonymous signal to no workflow: {error.status.name} {error.message}"[:300])
    if ground.settings.doctor.dev and _is_loopback(config["target_host"]):
        return ok("open to everybody on this machine, as a dev system is")
    return fail("anybody who reaches it may start, signal and terminate workflows, without any credentials")


def _without_certificate(config: dict[str, Any]) -> bool | TLSConfig:
    tls = config.get("tls")
    if isinstance(tls, TLSConfig):
        return replace(tls, client_cert=None, client_private_key=None)
    return bool(tls or (config.get("api_key") and tls is None))


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def clock(ground: Ground) -> Finding:
    client = _client(ground)
    asked = now()
    request = PollActivityTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=CLOCK_QUEUE), identity=ground.run
    )
    poll = asyncio.create_task(client.workflow_service.poll_activity_task_queue(request, timeout=LONG_POLL))
    try:
        while not poll.done():
            await asyncio.sleep(0.05)
            for poller in await _pollers(client, CLOCK_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY):
                if poller.identity == ground.run:
                    seen = poller.last_access_time.ToDatetime(tzinfo=UTC)
                    return judged(seen - now(), seen - asked)
        return not_checked("Temporal does not list its pollers")
    finally:
        poll.cancel()
        with contextlib.suppress(asyncio.CancelledError, RPCError):
            await poll


async def lists(ground: Ground) -> Finding:
    """Each list of workflows that the sweeps, ``jobs`` and ``retry`` ask for, by the functions that make it."""
    asked = {
        "the sweep for jobs": running_query(JOBS),
        "the sweep for leftovers": running_query(DATASETS),
        "the sweep for leftovers, of what ended": ended_query("'ArchiveJob'", now()),
        "archiver jobs --failed": query_of(failed=True, since="1d"),
        "archiver jobs --running": query_of(running=True),
        "archiver jobs --group": group_query("archiver-doctor"),
        "archiver retry": stopped_query("archiver-doctor", retrieve=False),
        "whoever shortens a job's id": begun_query("0"),
    }
    for who, query in asked.items():
        try:
            await _client(ground).count_workflows(query)
        except RPCError as error:
            return fail(f"Temporal refuses what {who} asks for: {error.message}"[:300])
    return ok(f"{len(asked)} lists, as the sweeps, archiver jobs and retry ask for them")


async def sweeps(ground: Ground) -> Finding:
    """The sweeps that ran until now."""
    with answering():
        failing = await sweep_state.failing(_client(ground))
    if failing:
        return fail("; ".join(sweep_state.line(state) for state in failing))
    return ok("none fails again and again")


async def pollers(queue: str, ground: Ground) -> Finding:
    kind = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
    name = f"archiver-{queue}"
    if queue == "workflows":
        kind, name = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, "archiver"
    with answering():
        ages: dict[str, float] = {}
        for poller in await _pollers(_client(ground), name, kind):
            age = (now() - poller.last_access_time.ToDatetime(tzinfo=UTC)).total_seconds()
            ages[poller.identity] = min(age, ages.get(poller.identity, age))
    alive = {identity: age for identity, age in ages.items() if age < POLL_SECONDS}
    alone = queue in LTS_QUEUES
    said = ", ".join(f"{identity} (polled {age:.0f} s ago)" for identity, age in sorted(alive.items()))
    if not alive:
        return fail(f"nobody polls {name}: what is put there waits" + (f"; last was {max(ages)}" if ages else ""))
    if alone and len(alive) > 1:
        return fail(
            f"{len(alive)} processes poll {name}, exactly 1 may (P12): {said}",
            f"stop all but one; one that ended less than {POLL_SECONDS:.0f} s ago is still counted: look again then",
        )
    return ok(said if len(alive) == 1 else f"{len(alive)} processes")


async def _pollers(client: Client, queue: str, kind: TaskQueueType.ValueType) -> list[PollerInfo]:
    """Of all partitions: a process with few pollers may poll only some of them."""
    requests = [
        DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=name), task_queue_type=kind)
        for name in await partitions(client, queue)
    ]
    answers = await asyncio.gather(*(client.workflow_service.describe_task_queue(request) for request in requests))
    return [poller for answer in answers for poller in answer.pollers]


def _client(ground: Ground) -> Client:
    assert ground.client is not None  # noqa: S101
    return ground.client


def _address(ground: Ground) -> str:
    return str(configured(ground.settings)["target_host"])


def _serve(queue: str) -> str:
    group = "lts" if queue in LTS_QUEUES else queue
    only = ", once and nowhere else" if queue in LTS_QUEUES else ""
    return f"start  archiver worker --queues {group}{only}"


CHECKS = (
    Check(
        "temporal server", "connects, and asks for the server's version", "start it, or set TEMPORAL_ADDRESS", server
    ),
    Check("temporal namespace", "is there", "archiver setup", namespace, ("temporal server",)),
    Check(
        "temporal retention",
        f"histories of closed workflows are kept at least {LEAST_RETENTION.days} days",
        "archiver doctor --fix",
        retention,
        ("temporal namespace",),
    ),
    Check(
        "temporal search attributes",
        "each is there, and of its type",
        "archiver doctor --fix  makes them",
        search_attributes,
        ("temporal namespace",),
    ),
    Check(
        "temporal schedules",
        "those of the sweeps are as the settings say, and not paused",
        "archiver setup",
        schedules,
        ("temporal namespace",),
    ),
    Check(
        "temporal lists",
        "asks for the lists of workflows that the sweeps, archiver jobs and retry ask for, by the same code",
        "archiver doctor --fix  makes the search attributes; Temporal needs a visibility store that knows OR and IN",
        lists,
        ("temporal search attributes",),
    ),
    Check(
        "sweeps",
        f"none of them failed {sweep_state.REPEATEDLY} times or more in a row",
        "mend what it says, then  archiver sweep",
        sweeps,
        ("temporal namespace",),
    ),
    Check(
        "temporal authorization",
        "a caller without our credentials may not signal (a workflow that does not exist); open is well only with doctor.dev "
        "on a loopback address",
        "give Temporal TLS and an authorizer, us TEMPORAL_TLS_* or TEMPORAL_API_KEY, and its port a firewall (deploy/README.md)",
        authorization,
        ("temporal namespace",),
    ),
    Check(
        "temporal clock",
        "its time, as it notes a poll of the empty queue archiver-doctor, against this machine's",
        "let NTP set the clocks of both machines",
        clock,
        ("temporal namespace",),
    ),
    *(
        Check(
            f"pollers {queue}",
            f"exactly one process polls archiver-{queue} (P12)"
            if queue in LTS_QUEUES
            else f"a worker polls {'archiver' if queue == 'workflows' else f'archiver-{queue}'}",
            _serve(queue),
            partial(pollers, queue),
            ("temporal namespace",),
        )
        for queue in QUEUES
    ),
)
