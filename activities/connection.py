"""The connection to Temporal: Temporal's own environment configuration over the defaults in our settings."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode

from archiver.errors import SystemFault
from archiver.settings import Settings

CONNECT_SECONDS = 10.0


class Unreachable(SystemFault):
    """Temporal does not answer, or has no such namespace, or one without our search attributes."""

    side = "temporal"


def configured(settings: Settings) -> dict[str, Any]:
    """What ``Client.connect`` is to be given, address and namespace always. Raises ``Unreachable``."""
    temporal = settings.temporal
    try:
        config: dict[str, Any] = dict(
            ClientConfig.load_client_connect_config(
                profile=temporal.profile if "TEMPORAL_PROFILE" not in os.environ else None,
                config_file=(
                    str(temporal.config_file)
                    if temporal.config_file and "TEMPORAL_CONFIG_FILE" not in os.environ
                    else None
                ),
            )
        )
    except (RuntimeError, ValueError) as error:
        raise Unreachable(
            f"Temporal's environment configuration cannot be used: {error}",
            next_step="check TEMPORAL_* variables and temporal.config_file",
        ) from None
    config["target_host"] = config.get("target_host") or temporal.address
    config.setdefault("namespace", temporal.namespace)
    return config


async def connect(settings: Settings, *, runtime: Runtime | None = None, see_namespace: bool = True) -> Client:
    """A client; with ``see_namespace`` its namespace was seen to exist. Raises ``Unreachable`` saying what to do."""
    config = configured(settings)
    address, namespace = config["target_host"], config["namespace"]
    if runtime is not None:
        config["runtime"] = runtime
    try:
        client = await asyncio.wait_for(
            Client.connect(data_converter=pydantic_data_converter, **config), timeout=CONNECT_SECONDS
        )
        if see_namespace:
            request = DescribeNamespaceRequest(namespace=client.namespace)
            await client.workflow_service.describe_namespace(request, timeout=timedelta(seconds=CONNECT_SECONDS))
    except (RuntimeError, TimeoutError) as error:
        raise Unreachable(
            f"Temporal does not answer at {address}",
            expected="a Temporal frontend",
            found=_reason(error),
            next_step="start it, or set TEMPORAL_ADDRESS or temporal.address",
        ) from None
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise Unreachable(
                f"Temporal at {address} has no namespace {namespace!r}",
                expected=f"namespace {namespace!r}",
                found="none of that name",
                next_step="archiver setup  makes it",
            ) from None
        raise Unreachable(
            f"Temporal at {address} refuses us: {error.message}", next_step="check TLS and API key settings"
        ) from None
    return client


def _reason(error: Exception) -> str:
    """Why there is no connection, out of what the SDK's core prints of its own errors."""
    told = re.findall(r'(?:message|error): "([^"]+)"', str(error))
    return (
        told[-1]
        if told
        else "no answer in time"
        if isinstance(error, TimeoutError)
        else str(error)[:100] or "no answer"
    )


@contextmanager
def answering() -> Iterator[None]:
    """Around calls of a connected client: what Temporal refuses or does not answer becomes ``Unreachable``."""
    try:
        yield
    except RPCError as error:
        # A start or a query that names what the namespace does not have.
        if error.status == RPCStatusCode.INVALID_ARGUMENT and "search attribute" in error.message.lower():
            raise Unreachable(
                "Temporal's namespace lacks search attributes of ours",
                expected="those that archiver setup makes",
                found=error.message[:200],
                next_step="archiver setup  makes them",
            ) from None
        raise Unreachable(
            "Temporal did not do what it was asked",
            expected="an answer",
            found=f"{error.status.name}: {error.message}"[:300],
            next_step="see that it runs and that our account may do this, then try again",
        ) from None
