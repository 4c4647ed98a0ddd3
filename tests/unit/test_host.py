"""What goes on when kopf ends (everything is watched anew, a signal is heard, a fault of ours is not hidden), and where
the ports listen."""

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import ClientSession, web

from trl_operator import handlers, host
from trl_operator.settings import Shared


class Relist:
    """Lists at once."""

    async def first(self) -> None:
        pass

    async def keep(self, _: asyncio.Event) -> None:
        await asyncio.Event().wait()


def watch(stop: asyncio.Event) -> Any:
    return host.watch([], Relist(), [], asyncio.Event(), stop)  # type: ignore[arg-type]


def test_a_signal_between_two_runs_of_kopf_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    async def fails(watched: Any, namespaces: Any, restart: Any, watching: asyncio.Event) -> Exception:
        """It has taken over the signals, as kopf does, and leaves them so."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: heard.append("by nobody"))
        watching.set()
        loop.call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)
        return ValueError("an answer that ends too early")

    monkeypatch.setattr(handlers, "watch", fails)

    async def main() -> None:
        stop = host.stop_at_signals()
        await asyncio.wait_for(host.until(stop, watch(stop)), 20)

    asyncio.run(main())
    assert heard == []


def test_what_ends_kopf_before_it_watches_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> Exception:
        return TypeError("a fault of ours")

    monkeypatch.setattr(handlers, "watch", fails)

    async def main() -> None:
        await asyncio.wait_for(watch(asyncio.Event()), 20)

    with pytest.raises(TypeError, match="of ours"):
        asyncio.run(main())


def test_ports_answer_in_clusters_of_ipv4_and_of_ipv6() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as free:
        port = free.getsockname()[1]

    async def main() -> list[int]:
        async with AsyncExitStack() as stack, ClientSession() as session:
            await host.serve(stack, web.Application(), Shared().bind_address, port)
            found = []
            for address in ("127.0.0.1", "[::1]"):
                async with session.get(f"http://{address}:{port}/healthz") as answer:
                    found.append(answer.status)
            return found

    assert asyncio.run(main()) == [404, 404], "nothing is served there, and said so on both"
