"""A bounded pace at which sources take turns, however much one of them asks."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable


class Busy(Exception):
    """There is no room to wait: the caller is to try again later."""


class Pace:
    """At most so many a second, and as many at once after a pause."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._each = 1 / per_second
        self._burst = max(1.0, per_second) * self._each
        self._clock = clock
        self._next = 0.0

    def delay(self) -> float:
        """Return the seconds until the next one may go."""
        return max(0.0, self._next - self._clock())

    def take(self) -> None:
        """One goes now."""
        self._next = max(self._next, self._clock() + self._each - self._burst) + self._each


class Turns:
    """Lets callers through at a pace, each source in its turn; few of a source wait, and so many in all."""

    def __init__(self, pace: Pace, per_source: int = 4, in_all: int = 2000) -> None:
        self._pace = pace
        self._per_source = per_source
        self._in_all = in_all
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._count = 0
        self._changed = asyncio.Event()

    async def take(self, source: str) -> None:
        """Return when it is the caller's turn; raises Busy at once if too many wait."""
        queue = self._waiting.get(source, deque())
        if len(queue) >= self._per_source or self._count >= self._in_all:
            raise Busy
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._waiting[source] = queue
        self._count += 1
        self._changed.set()
        await turn

    async def run(self) -> None:
        """Give turns for ever."""
        while True:
            while not self._waiting:
                self._changed.clear()
                await self._changed.wait()
            await asyncio.sleep(self._pace.delay())
            turn = self._next()
            # Who has given up meanwhile costs nobody a turn.
            if not turn.done():
                self._pace.take()
                turn.set_result(None)

    def _next(self) -> asyncio.Future[None]:
        source, queue = self._waiting.popitem(last=False)
        turn = queue.popleft()
        self._count -= 1
        if queue:
            self._waiting[source] = queue
        return turn
