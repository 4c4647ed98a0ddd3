"""Lists everything now and then: a watch does not tell what was deleted while it was interrupted."""

import asyncio
import logging

from trl_operator.cache import Cache
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.errors import ApiError
from trl_operator.kube import JOBS, PODS, PYTORCHJOBS, Kube

logger = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 5.0


class Relist:
    """Keeps the cache true. `backend` says whether PyTorchJobs exist in this cluster."""

    def __init__(self, kube: Kube, cache: Cache, namespaces: list[str], seconds: float) -> None:
        self._kube = kube
        self._cache = cache
        self._namespaces = namespaces
        self._seconds = seconds
        self._done = 0.0
        self.backend = False

    def age(self) -> float:
        """Return the seconds since the last relist."""
        return asyncio.get_running_loop().time() - self._done if self._done else 0.0

    async def once(self) -> None:
        """List everything and take it over."""
        started = asyncio.get_running_loop().time()
        for namespace in self._namespaces or [""]:
            scope = [namespace] if namespace else []
            for kind, resource in JOBS.items():
                self._cache.replace_jobs(kind, scope, *await self._kube.list(resource, namespace))
            self._cache.replace_pods(scope, *await self._kube.list(PODS, namespace, LABEL_JOB_UID))
            try:
                self._cache.replace_children(scope, *await self._kube.list(PYTORCHJOBS, namespace, LABEL_JOB_UID))
                self.backend = True
            except ApiError as error:
                if error.status != 404:
                    raise
                self.backend = False
        self._done = started

    async def first(self) -> None:
        """Return once everything was listed."""
        while not await self._try():
            await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def keep(self, backend_changed: asyncio.Event) -> None:
        """List everything again and again; tell when PyTorchJobs have appeared or gone: kopf has to watch anew."""
        while True:
            await asyncio.sleep(self._seconds if self.backend else min(self._seconds, PAUSE_AFTER_FAILURE))
            before = self.backend
            if await self._try() and self.backend != before:
                backend_changed.set()

    async def _try(self) -> bool:
        try:
            await self.once()
        except ApiError as error:
            logger.warning("relist: %s", error)
            return False
        return True
