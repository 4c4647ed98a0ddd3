"""kopf's part: watch streams. An event updates the cache, which puts the job's key into the queue; nothing else."""

import asyncio
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from trl_operator.api.kinds import KINDS
from trl_operator.cache import Cache, key_of
from trl_operator.constants import GROUP, KUBEFLOW_GROUP, LABEL_JOB_UID, VERSION
from trl_operator.kube import PAGE

LOGIN_LIFE = timedelta(minutes=20)
"""Service-account tokens rotate on disk; reading them again in time never meets an expired one."""


class Backoffs(Iterable[float]):
    """1, 2, 4, 8, then 10 seconds without end, anew for each request: an outage must not end a watch."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 2.0, 4.0, 8.0), itertools.repeat(10.0))


def registry(cache: Cache) -> kopf.OperatorRegistry:
    """Return the handlers of all watched resources."""
    found = kopf.OperatorRegistry()
    kopf.on.startup(registry=found)(_configure)
    kopf.on.login(registry=found)(_login)
    for info in KINDS.values():
        kopf.on.event(GROUP, VERSION, info.plural, registry=found)(_job_handler(cache))
    kopf.on.event(KUBEFLOW_GROUP, "v1", "pytorchjobs", registry=found)(_child_handler(cache))
    kopf.on.event("", "v1", "pods", registry=found)(_pod_handler(cache))
    return found


async def _configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1.0
    settings.watching.chunk_size = PAGE
    settings.watching.label_selectors["", "v1", "pods"] = LABEL_JOB_UID
    settings.watching.label_selectors[KUBEFLOW_GROUP, "v1", "pytorchjobs"] = LABEL_JOB_UID
    settings.queueing.idle_timeout = 2.0
    settings.queueing.exit_timeout = 2.0
    settings.networking.error_backoffs = Backoffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.enforce_retry_after = True
    # No handler here makes kopf write anything; should one slip in, it must not touch another operator's keys.
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP, key="last-handled")


async def _login(**kwargs: Any) -> kopf.ConnectionInfo:
    found = kopf.login_with_kubeconfig(**kwargs) or kopf.login_with_service_account(**kwargs)
    if found is None:
        raise kopf.PermanentError("no KUBECONFIG and no service account: there is no API server to talk to")
    return dataclasses.replace(found, expiration=datetime.now(UTC) + LOGIN_LIFE)


def _job_handler(cache: Cache) -> Any:
    async def job(event: kopf.RawEvent, **_: Any) -> None:
        obj: Any = event["object"]
        if event["type"] == "DELETED":
            cache.drop_job(key_of(obj))
        else:
            cache.put_job(obj)

    return job


def _child_handler(cache: Cache) -> Any:
    async def child(event: kopf.RawEvent, **_: Any) -> None:
        obj: Any = event["object"]
        if event["type"] == "DELETED":
            cache.drop_child(obj["metadata"]["namespace"], obj["metadata"]["name"])
        else:
            cache.put_child(obj)

    return child


def _pod_handler(cache: Cache) -> Any:
    async def pod(event: kopf.RawEvent, **_: Any) -> None:
        obj: Any = event["object"]
        if event["type"] == "DELETED":
            cache.drop_pod(obj)
        else:
            cache.put_pod(obj)

    return pod


async def watch(cache: Cache, namespaces: list[str], stop: asyncio.Event, ready: asyncio.Event) -> None:
    """Run kopf until `stop` is set."""
    await kopf.operator(
        registry=registry(cache),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
        ready_flag=ready,
    )
