"""What the controller and the receiver do alike as processes: settings, logs, ports, watches, signals."""

import asyncio
import logging
import os
import signal
import ssl
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import kopf
from aiohttp import web
from pydantic import ValidationError

from trl_operator import handlers
from trl_operator.settings import Shared, from_environment
from trl_operator.store.relist import Relist
from trl_operator.store.watched import Watched

S = TypeVar("S", bound=Shared)

logger = logging.getLogger(__name__)

SOUND_SECONDS = 60.0
"""Watches that have held for so long begin anew after a short pause."""


def configure_logging() -> None:
    """One JSON object a line."""
    kopf.configure(log_format=kopf.LogFormat.JSON)
    # kopf tells of every event that it has handled; that is two lines per pod and second in a busy cluster.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_frames)


def _without_frames(record: logging.LogRecord) -> bool:
    """What ends a watcher of kopf's goes through four of its tasks, and each tells all frames. We begin anew."""
    if record.name.startswith("kopf.") and " has failed: " in record.getMessage():
        record.exc_info = record.exc_text = None
    return True


def read_settings(model: type[S]) -> S | None:
    """Return the settings; None after having said what is wrong with them."""
    try:
        return from_environment(model, os.environ)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name, *inside = problem["loc"]
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inside)
            said = problem["msg"].removeprefix("Value error, ")
            print(f"TRL_OPERATOR_{str(name).upper()}{place}: {said}", file=sys.stderr)
        return None


def stop_at_signals() -> asyncio.Event:
    """Return what SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    _listen(stop)
    return stop


def _listen(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def until(stop: asyncio.Event, *work: Coroutine[Any, Any, None]) -> None:
    """Do all of `work` until `stop` is set; what one of them raises ends all.

    All that goes on for long is to be one of `work`: when kopf ends, to start anew, it cancels every task that has
    begun after it and does not end within 5 seconds, also those that are not its own.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each) for each in work]
        await stop.wait()
        for task in running:
            task.cancel()


async def serve(
    stack: AsyncExitStack, app: web.Application, address: str | None, port: int, tls: ssl.SSLContext | None = None
) -> None:
    """Answer on a port until the stack unwinds."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, address, port, ssl_context=tls).start()


async def watch(
    watched: Sequence[Watched],
    relist: Relist,
    namespaces: list[str],
    filled: asyncio.Event,
    stop: asyncio.Event,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """List everything, then let kopf keep it; kopf starts anew when kinds appear or go, and when it fails.

    kopf takes over the signals of the process: when it ends without being asked to, the process is to end. Raises what
    ends it before it has begun to watch: that would end it again.
    """
    await relist.first()
    filled.set()
    pauses, clock = iter(handlers.Backoffs()), asyncio.get_running_loop().time
    while not stop.is_set():
        restart, watching, began = asyncio.Event(), asyncio.Event(), clock()
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(relist.keep(restart)), tasks.create_task(_tell(watching, ready))]
            failure = await handlers.watch(watched, namespaces, restart, watching)
            for task in beside:
                task.cancel()
        # Nobody else hears a signal until kopf has begun again.
        _listen(stop)
        if failure is not None:
            if not watching.is_set():
                raise failure
            logger.warning("everything is listed and watched anew: %s: %s", type(failure).__name__, failure)
            if clock() - began > SOUND_SECONDS:
                pauses = iter(handlers.Backoffs())
            await asyncio.sleep(next(pauses))
            await relist.first()
        elif not restart.is_set():
            stop.set()


async def _tell(happened: asyncio.Event, tell: Callable[[], None]) -> None:
    await happened.wait()
    tell()
