"""``archiver setup``: namespace, search attributes, schedules of the sweeps, buckets and the LTS marker. Idempotent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    RegisterNamespaceRequest,
    UpdateNamespaceRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.connection import answering, connect
from archiver.errors import OwnFault, SourceFault, StagingFault
from archiver.model import SEARCH_ATTRIBUTES
from archiver.settings import Settings
from archiver.storage.objects import Bucket
from archiver.storage.open import open_lts
from archiver.storage.retrieval_directory import mark
from cli.schedules import keep_schedules

RETENTION = timedelta(days=30)
"""How long a new namespace keeps the histories of closed workflows."""
LEAST_RETENTION = timedelta(days=7)
"""A namespace that keeps them shorter is made to keep them for ``RETENTION``."""
NAMESPACE_SECONDS = 60
INDEXED = {
    "Keyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "Int": IndexedValueType.INDEXED_VALUE_TYPE_INT,
}
"""Temporal's names of the types in ``SEARCH_ATTRIBUTES``."""

Step = tuple[str, bool]
"""What was looked at, and whether it had to be made."""


async def set_up(settings: Settings, *, dry_run: bool, say: Callable[[str], None], marker: bool = True) -> int:
    """Make what is missing; returns how many things were (or, dry, would be) made. May be repeated.

    Without ``marker`` the LTS is left alone: one that lost its mount also has none.
    """
    made = 0
    client = await connect(settings, see_namespace=False)
    with answering():
        steps = [*await _namespace(client, dry_run), *await _search_attributes(client, dry_run)]
        steps += await keep_schedules(client, settings.sweep, dry_run=dry_run)
    steps += await asyncio.to_thread(lambda: list(_stores(settings, dry_run, marker)))
    for what, missing in steps:
        made += missing
        say(f"{('would make' if dry_run else 'made') if missing else 'there':<10} {what}")
    return made


async def _namespace(client: Client, dry_run: bool) -> list[Step]:
    what = f"Temporal namespace {client.namespace}"
    try:
        there = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
        short = there.config.workflow_execution_retention_ttl.ToTimedelta() < LEAST_RETENTION
        return [(what, False), *(await _retention(client, dry_run) if short else ())]
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
    if not dry_run:
        request = RegisterNamespaceRequest(namespace=client.namespace)
        request.workflow_execution_retention_period.FromTimedelta(RETENTION)
        await client.workflow_service.register_namespace(request)
    return [(what, True)]


async def _retention(client: Client, dry_run: bool) -> list[Step]:
    """Keep histories longer; where only the provider may change that (Temporal Cloud), ``doctor`` tells of it."""
    request = UpdateNamespaceRequest(namespace=client.namespace)
    request.config.workflow_execution_retention_ttl.FromTimedelta(RETENTION)
    if not dry_run:
        try:
            await client.workflow_service.update_namespace(request)
        except RPCError:
            return []
    return [(f"{RETENTION.days} days of histories in Temporal namespace {client.namespace}", True)]


async def _search_attributes(client: Client, dry_run: bool) -> list[Step]:
    there: dict[str, IndexedValueType.ValueType] = {}
    # A new namespace is not known everywhere at once.
    for attempt in range(tries := 10 * NAMESPACE_SECONDS):
        try:
            answer = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace=client.namespace)
            )
            there = dict(answer.custom_attributes)
            break
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND or dry_run or attempt == tries - 1:
                if dry_run:
                    break
                raise
            await asyncio.sleep(0.1)
    for name, kind in SEARCH_ATTRIBUTES.items():
        if name in there and there[name] != INDEXED[kind]:
            raise OwnFault(
                f"Temporal search attribute {name} has another type",
                expected=kind,
                found=IndexedValueType.Name(there[name]),
                next_step=f"temporal operator search-attribute remove --name {name}, then archiver setup",
            )
    missing = [name for name in SEARCH_ATTRIBUTES if name not in there]
    if missing and not dry_run:
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=client.namespace,
                search_attributes={name: INDEXED[SEARCH_ATTRIBUTES[name]] for name in missing},
            )
        )
    return [(f"search attribute {name}", name in missing) for name in SEARCH_ATTRIBUTES]


def _stores(settings: Settings, dry_run: bool, marker: bool) -> Iterator[Step]:
    buckets = [
        Bucket(settings.staging.bucket, settings.s3, StagingFault),
        Bucket(settings.retrieval.bucket, settings.s3, StagingFault),
    ]
    template = settings.landing.url_template
    if template.startswith("s3://"):
        name = template.removeprefix("s3://").split("/")[0]
        if "{" not in name:
            buckets.append(Bucket(name, settings.landing.s3 or settings.s3, SourceFault))
    for bucket in buckets:
        yield f"bucket {bucket.name}", bucket.ensure(dry_run=dry_run)
    if not marker:
        return
    for root in dict.fromkeys(settings.retrieval.roots):
        yield f"marker of the directory for retrieved data {root}", mark(root, dry_run=dry_run)
    lts = open_lts(settings)
    yield f"marker of LTS {settings.lts.identity!r} in {lts.where()}", lts.setup(dry_run=dry_run)
