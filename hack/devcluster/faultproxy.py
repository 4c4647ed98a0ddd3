"""A proxy between one client and the real API server, which a test may make misbehave at a chosen request."""

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import aiohttp
from aiohttp import web

HOP_BY_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding", "accept-encoding"}

Verdict = int | Literal["pass", "reset", "hang", "truncate"]
"""pass: as if there were no proxy; reset: the connection breaks; hang (before only): there is never an answer; truncate
(after only): half of the answer, and a length that says nothing of it; a number: this answer (429 with Retry-After: 3)
without asking anybody."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes

    @property
    def writes(self) -> bool:
        return self.method in ("POST", "PUT", "PATCH", "DELETE")


def _pass(_: Request) -> Verdict:
    return "pass"


class FaultProxy:
    """A context manager: inside it `url` leads to the API server, and every request is shown to two functions.

    `before(request)` says what becomes of it before the API server sees it, `after(request)` once the API server has
    answered and before the client knows. They run in the proxy's own thread and may kill the client.
    """

    def __init__(self, upstream: str, ca: Path) -> None:
        self.before: Callable[[Request], Verdict] = _pass
        self.after: Callable[[Request], Verdict] = _pass
        self._upstream = upstream
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(30):
            raise TimeoutError("the fault proxy did not start within 30 s")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port: int = runner.addresses[0][1]
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        shown = Request(request.method, request.path, await request.read())
        verdict = self.before(shown)
        if verdict == "hang":
            await self._stop.wait()
        if answer := self._judge(verdict, request):
            return answer
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        headers["Accept-Encoding"] = "identity"
        timeout = aiohttp.ClientTimeout(total=None)
        url = f"{self._upstream}{request.path_qs}"
        async with self._session.request(
            request.method, url, headers=headers, data=shown.body or None, timeout=timeout
        ) as upstream:
            verdict = self.after(shown)
            if verdict == "truncate":
                whole = await upstream.read()
                return web.Response(status=upstream.status, body=whole[: len(whole) // 2])
            if answer := self._judge(verdict, request):
                return answer
            kept = {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=upstream.status, headers=kept)
            with suppress(ConnectionError):  # the client may be gone
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            return response

    def _judge(self, verdict: Verdict, request: web.Request) -> web.Response | None:
        if verdict == "pass":
            return None
        if verdict in ("reset", "hang"):
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        assert isinstance(verdict, int), "there is no answer yet"
        headers = {"Retry-After": "3"} if verdict == 429 else {}
        body = {"kind": "Status", "message": "by the fault proxy", "code": verdict}
        return web.json_response(body, status=verdict, headers=headers)
