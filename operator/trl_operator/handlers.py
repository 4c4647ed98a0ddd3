"""kopf's part: watch streams. An event goes to whoever keeps such objects; nothing else."""

import asyncio
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import kopf

from trl_operator.constants import GROUP
from trl_operator.kube import PAGE
from trl_operator.store.watched import Watched

LOGIN_LIFE = timedelta(minutes=20)
"""Service-account tokens rotate on disk; reading them again in time never meets an expired one."""


class Backoffs(Iterable[float]):
    """1, 2, 4, 8, then 10 seconds without end, anew for each request: an outage must not end a watch."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 2.0, 4.0, 8.0), itertools.repeat(10.0))


class NoDiffs(kopf.DiffBaseStorage):
    """Nothing is compared: else kopf copies each object twice at each event, for handlers that there are none of."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


def registry(watched: Sequence[Watched]) -> kopf.OperatorRegistry:
    """Return the handlers of all watched resources."""
    found = kopf.OperatorRegistry()
    kopf.on.startup(registry=found)(partial(_configure, watched))
    kopf.on.login(registry=found)(_login)
    for each in watched:
        resource = each.resource
        kopf.on.event(resource.group, resource.version, resource.plural, registry=found)(_handler(each))
    return found


async def _configure(watched: Sequence[Watched], settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1.0
    settings.watching.chunk_size = PAGE
    for each in watched:
        place = (each.resource.group, each.resource.version, each.resource.plural)
        if each.selector:
            settings.watching.label_selectors[place] = each.selector
        if each.fields:
            settings.watching.field_selectors[place] = each.fields
    # kopf keeps each object whole for so long after its last event, those of its first list too.
    settings.queueing.idle_timeout = 0.1
    settings.queueing.exit_timeout = 2.0
    settings.networking.error_backoffs = Backoffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.enforce_retry_after = True
    # No handler here makes kopf write anything; should one slip in, it must not touch another operator's keys.
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = NoDiffs()


async def _login(**kwargs: Any) -> kopf.ConnectionInfo:
    found = kopf.login_with_kubeconfig(**kwargs) or kopf.login_with_service_account(**kwargs)
    if found is None:
        raise kopf.PermanentError("no KUBECONFIG and no service account: there is no API server to talk to")
    return dataclasses.replace(found, expiration=datetime.now(UTC) + LOGIN_LIFE)


def _handler(watched: Watched) -> Any:
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        obj: Any = event["object"]
        (watched.drop if event["type"] == "DELETED" else watched.put)(obj)

    return handle


async def watch(
    watched: Sequence[Watched], namespaces: list[str], stop: asyncio.Event, ready: asyncio.Event
) -> Exception | None:
    """Run kopf until `stop` is set, or a signal ends it; return what ended it else: it survives that an API server is
    away or busy, but not a list that is cut short, a page of a list that has expired, or an error that a watch tells.

    Raises kopf.LoginError when there is nobody to be.
    """
    try:
        await kopf.operator(
            registry=registry(watched),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
            ready_flag=ready,
        )
    except (kopf.LoginError, kopf.PermanentError):
        raise
    except Exception as error:
        # Its own classes of errors are not public, and a handler's errors do not end it.
        return error
    return None
