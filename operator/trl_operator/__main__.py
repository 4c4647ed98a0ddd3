"""python -m trl_operator: the controller process."""

import asyncio
import logging
import os
import signal
import ssl
import sys
from contextlib import AsyncExitStack

import kopf
from aiohttp import web
from pydantic import ValidationError

from trl_operator import certs, handlers
from trl_operator.cache import Cache
from trl_operator.errors import ApiError, LeaseLost
from trl_operator.health import Health
from trl_operator.kube import Kube
from trl_operator.lease import Lease
from trl_operator.metrics import Metrics
from trl_operator.plan.observation import Key
from trl_operator.queue import WorkQueue
from trl_operator.receiver import Receiver
from trl_operator.reconcile import Reconciler, work
from trl_operator.relist import PAUSE_AFTER_FAILURE, Relist
from trl_operator.render.manifests import Installation
from trl_operator.settings import Settings, from_environment

logger = logging.getLogger("trl_operator")

CERTIFICATE_CHECK_SECONDS = 3600.0


async def run(settings: Settings) -> None:
    """Serve and work until a signal ends the process; raises LeaseLost when another replica takes over."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(await Kube.connect())
        queue: WorkQueue[Key] = WorkQueue()
        cache, metrics, lease = Cache(), Metrics(), Lease(kube, settings)
        relist = Relist(kube, cache, settings.namespaces, settings.relist_seconds)
        health = Health(queue.oldest_seconds, relist.age, settings.relist_seconds)
        metrics.gauge("trl_operator_queue_keys", lambda: len(queue))
        metrics.gauge("trl_operator_leader", lambda: float(lease.outlasts(0)))
        metrics.gauge("trl_operator_refused_lists", lambda: float(relist.refused))
        await _serve(stack, health.application(metrics), settings.bind_address, settings.health_port, None)
        pem = await _first_certificate(kube, settings)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certs.load(tls, pem)
        receiver = Receiver(kube, cache, metrics, settings.progress_seconds)
        await _serve(stack, receiver.application(), settings.bind_address, settings.receiver_port, tls)
        installation = Installation(settings.trainer_image, settings.receiver_url, pem["ca.crt"].decode())
        reconciler = Reconciler(kube, cache, lease, installation, settings.identity, lambda: relist.backend, metrics)
        filled = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(health.beat()),
                tasks.create_task(receiver.write()),
                tasks.create_task(_renew(kube, settings, tls)),
                tasks.create_task(_watch(cache, relist, settings, health, filled, stop)),
                tasks.create_task(_lead(lease, cache, queue, reconciler, metrics, settings, filled)),
            ]
            await stop.wait()
            for task in running:
                task.cancel()
        try:
            await lease.release()
        except ApiError as error:
            logger.warning("the lease was not given back, it ends by itself: %s", error)


async def _serve(
    stack: AsyncExitStack, app: web.Application, address: str, port: int, tls: ssl.SSLContext | None
) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, address, port, ssl_context=tls).start()


async def _first_certificate(kube: Kube, settings: Settings) -> certs.Pem:
    """Return the receiver's certificate, however long the API server takes to answer."""
    while True:
        try:
            return await certs.ensure(kube, settings)
        except ApiError as error:
            logger.warning("certificates: %s", error)
            await asyncio.sleep(PAUSE_AFTER_FAILURE)


async def _renew(kube: Kube, settings: Settings, tls: ssl.SSLContext) -> None:
    while True:
        await asyncio.sleep(CERTIFICATE_CHECK_SECONDS)
        try:
            certs.load(tls, await certs.ensure(kube, settings))
        except ApiError as error:
            logger.warning("certificates: %s", error)


async def _watch(
    cache: Cache, relist: Relist, settings: Settings, health: Health, filled: asyncio.Event, stop: asyncio.Event
) -> None:
    """Fill the cache, then let kopf keep it; kopf starts anew when kinds appear or go.

    kopf takes over the signals of the process: when it ends without being asked to, the process is to end.
    """
    await relist.first()
    filled.set()
    while not stop.is_set():
        restart, ready = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(relist.keep(restart))
            watcher = tasks.create_task(handlers.watch(cache, settings.namespaces, restart, ready))
            await ready.wait()
            health.ready = True
            await watcher
            keeper.cancel()
        if not restart.is_set():
            stop.set()


async def _lead(
    lease: Lease,
    cache: Cache,
    queue: WorkQueue[Key],
    reconciler: Reconciler,
    metrics: Metrics,
    settings: Settings,
    filled: asyncio.Event,
) -> None:
    """Wait for the lease and the cache, then work for as long as the lease is held."""
    await lease.acquire()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(lease.keep())
        await filled.wait()
        cache.follow(queue.add)
        for _ in range(settings.workers):
            tasks.create_task(work(queue, reconciler, metrics))


def main() -> int:
    """Run the operator; return its exit code."""
    kopf.configure(log_format=kopf.LogFormat.JSON)
    # kopf tells of every event that it has handled; that is two lines per pod and second in a busy cluster.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    try:
        settings = from_environment(os.environ)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            print(f"TRL_OPERATOR_{str(problem['loc'][0]).upper()}: {problem['msg']}", file=sys.stderr)
        return 2
    lost = False
    try:
        asyncio.run(run(settings))
    except* LeaseLost:
        logger.error("the lease is lost: this process ends, so that another replica can lead")
        lost = True
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
