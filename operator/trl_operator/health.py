"""/healthz, /readyz and /metrics."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from trl_operator.metrics import Metrics

MAX_LAG_SECONDS = 10.0
MAX_HEAD_SECONDS = 300.0
RELIST_PERIODS = 3


class Health:
    """Measures the event loop's lag and knows the ages that tell a stuck process from a quiet one."""

    def __init__(
        self, relist_age: Callable[[], float], relist_seconds: float, oldest_key: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.ready = False
        self._oldest_key = oldest_key
        self._relist_age = relist_age
        self._relist_seconds = relist_seconds
        self._beat = 0.0

    async def beat(self) -> None:
        """Note for ever that the loop turns."""
        while True:
            self._beat = asyncio.get_running_loop().time()
            await asyncio.sleep(1.0)

    def problems(self) -> list[str]:
        """Return what is wrong with this process; nothing is good."""
        found = []
        lag = asyncio.get_running_loop().time() - self._beat - 1.0
        if lag > MAX_LAG_SECONDS:
            found.append(f"the event loop lags {lag:.0f} s")
        if self._oldest_key() > MAX_HEAD_SECONDS:
            found.append(f"the queue's head waits {self._oldest_key():.0f} s")
        if self._relist_age() > RELIST_PERIODS * self._relist_seconds:
            found.append(f"the last relist is {self._relist_age():.0f} s old")
        return found

    def application(self, metrics: Metrics) -> web.Application:
        """Return the web application with the three routes."""

        async def healthz(_: web.Request) -> web.Response:
            found = self.problems()
            return web.Response(status=500 if found else 200, text="\n".join(found) or "ok")

        async def readyz(_: web.Request) -> web.Response:
            return web.Response(status=200 if self.ready else 503, text="ok" if self.ready else "starting")

        async def show(_: web.Request) -> web.Response:
            return web.Response(text=metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

        app = web.Application()
        app.router.add_get("/healthz", healthz)
        app.router.add_get("/readyz", readyz)
        app.router.add_get("/metrics", show)
        return app
