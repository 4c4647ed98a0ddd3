"""A proxy between one client and the real API server, which a test may make misbehave at a chosen request."""

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import aiohttp
from aiohttp import web

HOP_BY_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding", "accept-encoding"}


@dataclass(frozen=True)
class Delay:
    """The request or its answer waits so long, then all is as if there were no proxy."""

    seconds: float


Verdict = int | Delay | Literal["pass", "reset", "hang", "truncate", "stale"]
"""pass: as if there were no proxy; reset: the connection breaks; hang (before only): there is never an answer; truncate
(after only): half of the answer, and a length that says nothing of it; stale (before only): the first answer that this
very list was given, from the API server's past; a number: this answer (429 with Retry-After: 3) without asking
anybody."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes
    query: str = ""
    status: int = 0
    """What the API server has answered."""

    @property
    def writes(self) -> bool:
        return self.method in ("POST", "PUT", "PATCH", "DELETE")

    @property
    def watches(self) -> bool:
        return "watch=" in self.query

    @property
    def resource(self) -> str:
        """What it is about: `dpojobs`, or `dpojobs/status` for a subresource."""
        parts = self.path.strip("/").split("/")
        parts = parts[2 if parts[0] == "api" else 3 :]
        if len(parts) > 2 and parts[0] == "namespaces":
            parts = parts[2:]
        return "/".join(parts[:1] + parts[2:])

    @property
    def lists(self) -> bool:
        return self.method == "GET" and not self.watches and self.path.endswith(f"/{self.resource}")


def _pass(_: Request) -> Verdict:
    return "pass"


class FaultProxy:
    """A context manager: inside it `url` leads to the API server, and every request is shown to two functions.

    `before(request)` says what becomes of it before the API server sees it, `after(request)` once the API server has
    answered and before the client knows. They run in the proxy's own thread and may kill the client.
    Watches can be frozen and cut, those that are open too.
    """

    def __init__(self, upstream: str, ca: Path) -> None:
        self.before: Callable[[Request], Verdict] = _pass
        self.after: Callable[[Request], Verdict] = _pass
        self._upstream = upstream
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._started = threading.Event()
        self._first: dict[str, bytes] = {}  # the first answer to each list
        self._watches: set[asyncio.Transport] = set()
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

    def remembers(self, request: Request) -> bool:
        """Whether there is a past to answer this from: it is a whole list, asked for before."""
        return request.lists and "elector=" not in request.query and _place(request) in self._first

    def freeze_watches(self) -> None:
        """From now on watches stay open and tell nothing; what they have to tell is kept."""
        self._loop.call_soon_threadsafe(self._thawed.clear)

    def thaw_watches(self) -> None:
        """Watches tell all that happened meanwhile, and go on."""
        self._loop.call_soon_threadsafe(self._thawed.set)

    def cut_watches(self) -> None:
        """The connection of every open watch breaks."""

        def cut() -> None:
            for transport in self._watches:
                transport.abort()

        self._loop.call_soon_threadsafe(cut)

    async def _serve(self) -> None:
        self._loop, self._stop, self._thawed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._thawed.set()
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
        shown = Request(request.method, request.path, await request.read(), request.query_string)
        verdict = await _delayed(self.before(shown))
        if verdict == "hang":
            await self._stop.wait()
        if verdict == "stale":
            if past := self._first.get(_place(shown)):
                return web.Response(body=past, content_type="application/json")
            verdict = "pass"
        if answer := self._judge(verdict, request):
            return answer
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        headers["Accept-Encoding"] = "identity"
        timeout = aiohttp.ClientTimeout(total=None)
        url = f"{self._upstream}{request.path_qs}"
        async with self._session.request(
            request.method, url, headers=headers, data=shown.body or None, timeout=timeout
        ) as upstream:
            if shown.lists and upstream.status == 200:
                self._first.setdefault(_place(shown), await upstream.read())
            verdict = await _delayed(self.after(replace(shown, status=upstream.status)))
            if verdict == "truncate":
                whole = await upstream.read()
                half = whole[: len(whole) // 2]
                return web.Response(status=upstream.status, body=half, content_type=upstream.content_type)
            if answer := self._judge(verdict, request):
                return answer
            kept = {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_BY_HOP}
            if not shown.watches:
                return web.Response(status=upstream.status, headers=kept, body=await upstream.read())
            return await self._stream(request, upstream, kept)

    async def _stream(
        self, request: web.Request, upstream: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=upstream.status, headers=headers)
        transport = request.transport
        if transport is not None:
            self._watches.add(transport)
        try:
            with suppress(ConnectionError):  # the client may be gone
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await self._thawed.wait()
                    await response.write(chunk)
                await response.write_eof()
        finally:
            if transport is not None:
                self._watches.discard(transport)
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


def _place(request: Request) -> str:
    return f"{request.path}?{request.query}"


async def _delayed(verdict: Verdict) -> Verdict:
    if not isinstance(verdict, Delay):
        return verdict
    await asyncio.sleep(verdict.seconds)
    return "pass"
