"""Lists everything now and then: a watch does not tell what was deleted while it was interrupted."""

import asyncio
import logging
from collections.abc import Sequence

from trl_operator.errors import ApiError
from trl_operator.kube import Kube
from trl_operator.resource import Resource
from trl_operator.store.watched import Watched

logger = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 5.0


class Relist:
    """Keeps what is known true, as far as it may and can list.

    A namespace or a Role that is taken away, and a kind that is not installed, keep nothing else from going on.
    """

    def __init__(self, kube: Kube, watched: Sequence[Watched], namespaces: list[str], seconds: float) -> None:
        self._kube = kube
        self._watched = watched
        self._namespaces = namespaces
        self._seconds = seconds
        self._done = 0.0
        self._refused: dict[tuple[str, Resource], ApiError] = {}

    def age(self) -> float:
        """Return the seconds since the last relist."""
        return asyncio.get_running_loop().time() - self._done if self._done else 0.0

    @property
    def refused(self) -> int:
        """How many lists the last relist was refused: one is of one kind in one namespace."""
        return len(self._refused)

    @property
    def missing(self) -> set[Resource]:
        """Kinds that do not exist in this cluster."""
        return {resource for (_, resource), error in self._refused.items() if error.status == 404}

    def exists(self, resource: Resource) -> bool:
        """Return whether this cluster has such a kind, and it is watched; no before the first relist."""
        watched = any(each.resource == resource for each in self._watched)
        return bool(self._done) and watched and resource not in self.missing

    async def once(self) -> None:
        """List everything and take it over; raises ApiError if nothing can be listed."""
        started = asyncio.get_running_loop().time()
        refused: dict[tuple[str, Resource], ApiError] = {}
        lists = 0
        for namespace in self._namespaces or [""]:
            for each in self._watched:
                lists += 1
                try:
                    await self._take(each, namespace)
                except ApiError as error:
                    if error.status not in (403, 404):
                        raise
                    refused[namespace, each.resource] = error
        if len(refused) == lists:
            raise next(iter(refused.values()))
        self._tell(refused)
        self._refused, self._done = refused, started

    async def _take(self, watched: Watched, namespace: str) -> None:
        """Hand over a fresh list, page by page: whole, it may be as big as all jobs that ever were."""
        seen: set[str] = set()
        version = 0
        async for page, listed in self._kube.pages(watched.resource, namespace, watched.selector, watched.fields):
            version = listed
            for obj in page:
                seen.add(obj["metadata"]["uid"])
                watched.put(obj)
        watched.sweep([namespace] if namespace else [], seen, version)

    def _tell(self, refused: dict[tuple[str, Resource], ApiError]) -> None:
        """Log what has changed, once."""
        for place in refused.keys() - self._refused.keys():
            logger.warning("relist: going on without: %s", refused[place])
        for namespace, resource in self._refused.keys() - refused.keys():
            logger.warning("relist: %s can be listed again in %s", resource.plural, namespace or "all namespaces")

    async def first(self) -> None:
        """Return once everything was listed that can be."""
        while not await self._try():
            await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def keep(self, kinds_changed: asyncio.Event) -> None:
        """List everything again and again; tell when kinds have appeared or gone: kopf has to watch anew.

        kopf itself asks again and again for what it may not watch.
        """
        while True:
            await asyncio.sleep(min(self._seconds, PAUSE_AFTER_FAILURE) if self.missing else self._seconds)
            before = self.missing
            if self.age() < self._seconds and not await self._has_appeared():
                continue
            if await self._try() and self.missing != before:
                kinds_changed.set()

    async def _has_appeared(self) -> bool:
        """Return whether a kind that was missing is there for kopf too, which looks once when it starts."""
        try:
            return any([await self._kube.serves(resource) for resource in self.missing])
        except ApiError as error:
            logger.warning("relist: %s", error)
            return False

    async def _try(self) -> bool:
        try:
            await self.once()
        except ApiError as error:
            logger.warning("relist: %s", error)
            return False
        return True
