"""A keyed work queue: a key is worked on by one worker at a time, and never forgotten while something is to do."""

import asyncio
import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 60.0


class WorkQueue(Generic[K]):
    """Keys wait in the order of their arrival; adding one that waits changes nothing, adding one that is being worked
    on makes it wait again afterwards. A key that has failed rests, whoever adds it. Only for one event loop."""

    def __init__(self, waited: Callable[[float], None] = lambda _: None) -> None:
        """`waited` is told how many seconds each key has waited for a worker."""
        self._waited = waited
        self._waiting: dict[K, float] = {}
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        self._filled = asyncio.Event()

    def add(self, key: K) -> None:
        """Make the key wait for a worker now, or once it has rested."""
        now = asyncio.get_running_loop().time()
        if key in self._working:
            self._again.add(key)
        elif self._not_before.get(key, 0.0) > now:
            self.add_later(key, 0.0)
        elif key not in self._waiting:
            self._cancel(key)
            self._waiting[key] = now
            self._filled.set()

    def add_later(self, key: K, seconds: float) -> None:
        """Make the key wait for a worker after `seconds`, or earlier if something earlier is planned; never before it
        has rested."""
        loop = asyncio.get_running_loop()
        when = max(loop.time() + seconds, self._not_before.get(key, 0.0))
        planned = self._timers.get(key)
        if planned is not None and planned.when() <= when:
            return
        self._cancel(key)
        self._timers[key] = loop.call_at(when, self._due, key)

    def _due(self, key: K) -> None:
        del self._timers[key]
        self._not_before.pop(key, None)
        self.add(key)

    def _cancel(self, key: K) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def get(self) -> K:
        """Return the key that waited longest; the caller must call `done` with it."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        key = next(iter(self._waiting))
        self._waited(asyncio.get_running_loop().time() - self._waiting.pop(key))
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The worker is through with the key."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def failed(self, key: K, at_least: float = 0.0) -> None:
        """Let the key rest for a backoff that grows with each failure in a row, then add it. No event shortens it: what
        failed for a reason of somebody else's would be repeated at the pace at which its failures are told."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        backoff = min(FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 20), MAX_BACKOFF_SECONDS)
        rest = max(backoff * random.uniform(0.8, 1.2), at_least)
        self._not_before[key] = asyncio.get_running_loop().time() + rest
        self._cancel(key)
        self.add_later(key, rest)

    def succeeded(self, key: K) -> None:
        """The next failure of the key is a first one."""
        self._failures.pop(key, None)

    def oldest_seconds(self) -> float:
        """Return how long the key at the head has waited; 0 if none waits."""
        if not self._waiting:
            return 0.0
        return asyncio.get_running_loop().time() - next(iter(self._waiting.values()))

    def __len__(self) -> int:
        return len(self._waiting)
