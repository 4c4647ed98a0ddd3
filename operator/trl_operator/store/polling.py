"""Objects that jobs wait for and nobody watches: a user's ConfigMaps, looked at now and then."""

import asyncio
import heapq
import logging

from trl_operator.errors import ApiError
from trl_operator.kube import CONFIG_MAPS, Kube
from trl_operator.store.waiting import Thing, Waiting

logger = logging.getLogger(__name__)

PER_SECOND = 2.0
"""Looks of this process, however many jobs wait for however many objects."""
FIRST_SECONDS = 2.0
MAX_SECONDS = 30.0
"""What is waited for is looked at after a tenth of the time that it has been waited for, within these bounds."""


class Polling:
    """Wakes the jobs that wait for a ConfigMap when another version of it is there than at the first look."""

    def __init__(self, kube: Kube, waiting: Waiting, per_second: float = PER_SECOND) -> None:
        self._kube = kube
        self._waiting = waiting
        self._pause = 1 / per_second
        self._since: dict[Thing, float] = {}
        self._seen: dict[Thing, str | None] = {}
        self._due: list[tuple[float, Thing]] = []

    async def run(self) -> None:
        """Look for ever: at what is due longest first, and at one object after the other."""
        while True:
            await asyncio.sleep(self._pause)
            now = asyncio.get_running_loop().time()
            self._take_up(now)
            if self._due and self._due[0][0] <= now:
                _, thing = heapq.heappop(self._due)
                if self._waiting.is_waited_for(thing):
                    await self._look(thing)
                    waited = now - self._since[thing]
                    pause = min(max(waited / 10, FIRST_SECONDS), MAX_SECONDS)
                    heapq.heappush(self._due, (now + pause, thing))
                else:
                    del self._since[thing]
                    self._seen.pop(thing, None)

    def _take_up(self, now: float) -> None:
        for thing in self._waiting.waited_for("ConfigMap"):
            if thing not in self._since:
                self._since[thing] = now
                heapq.heappush(self._due, (now, thing))

    async def _look(self, thing: Thing) -> None:
        try:
            version = await self._kube.version(CONFIG_MAPS, thing[1], thing[2])
        except ApiError as error:
            logger.warning("%s/%s: %s", thing[1], thing[2], error)
            return
        if version is not None and version != self._seen.get(thing):
            self._waiting.wake(thing)
        self._seen[thing] = version
