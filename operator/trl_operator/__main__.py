"""python -m trl_operator: the controller process."""

import asyncio
import gc
import logging
import sys
from contextlib import AsyncExitStack

from trl_operator import host
from trl_operator.backend import BACKENDS
from trl_operator.certs import Certificates
from trl_operator.errors import ApiError, LeaseLost
from trl_operator.health import Health
from trl_operator.kube import Kube
from trl_operator.lease import Lease
from trl_operator.metrics import ControllerMetrics
from trl_operator.plan.observation import Key
from trl_operator.reconcile import Reconciler
from trl_operator.render.manifests import Installation
from trl_operator.settings import Settings
from trl_operator.store.needs import Needs
from trl_operator.store.polling import Polling
from trl_operator.store.queue import WorkQueue
from trl_operator.store.relist import Relist
from trl_operator.store.store import Store
from trl_operator.worker import work

logger = logging.getLogger("trl_operator")

LEASE_CONNECTIONS = 2

# A reconcile leaves thousands of short-lived objects and hardly a cycle; looking for cycles after every 700 of them,
# as Python does, takes a thirtieth of a job's CPU time.
GARBAGE_THRESHOLDS = 20_000, 20, 20


async def run(settings: Settings) -> None:
    """Work until a signal ends the process; raises LeaseLost when another replica takes over."""
    stop = host.stop_at_signals()
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(await Kube.connect())
        # However busy the workers are, a renewal never waits for a connection.
        lease = Lease(await stack.enter_async_context(await Kube.connect(LEASE_CONNECTIONS)), settings)
        store = Store([found for name, found in BACKENDS.items() if name in settings.backends])
        metrics, certificates = ControllerMetrics(), Certificates(kube, settings)
        queue: WorkQueue[Key] = WorkQueue(metrics.queue_wait_seconds.observe)
        needs = Needs(store, settings.kueue, settings.checkpoint_aware_preemption)
        watched = [*store.watched(), *needs.watched()]
        relist = Relist(kube, watched, settings.namespaces, settings.relist_seconds)
        health = Health(relist.age, settings.relist_seconds, queue.oldest_seconds)
        metrics.gauge("trl_operator_queue_keys", "Jobs that wait for a look.", lambda: len(queue))
        metrics.gauge("trl_operator_leader", "1 on the replica that leads.", lambda: float(lease.outlasts(0)))
        refused = "Lists of one kind in one namespace that the API server refused."
        metrics.gauge("trl_operator_refused_lists", refused, lambda: float(relist.refused))
        metrics.jobs(lambda: store.phases() if lease.outlasts(0) else {})
        await host.serve(stack, health.application(metrics), settings.bind_address, settings.health_port)

        def installation() -> Installation:
            ca = certificates.ca.decode()
            return Installation(
                settings.trainer_image,
                settings.receiver_url,
                ca,
                settings.backend,
                settings.pod_security,
                tuple(filter(None, settings.copied_labels.split(","))),
                tuple(filter(None, settings.copied_annotations.split(","))),
                settings.job_defaults,
            )

        def ready() -> None:
            health.ready = True
            # kopf starts anew when kinds have appeared, and jobs may have waited for one.
            store.wake_all()

        reconciler = Reconciler(kube, store, needs, lease, installation, settings.identity, relist.exists, metrics)
        filled, leading, working = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            await lease.acquire()
            leading.set()
            await lease.keep()

        async def prepare() -> None:
            await leading.wait()
            await certificates.first()
            await filled.wait()
            store.follow(queue.add)
            working.set()
            await certificates.keep(settings.certificate_seconds)

        async def serve() -> None:
            await working.wait()
            await work(queue, reconciler, metrics)

        async def poll() -> None:
            await working.wait()
            await Polling(kube, store.waiting).run()

        await host.until(
            stop,
            health.beat(),
            host.watch(watched, relist, settings.namespaces, filled, stop, ready),
            hold(),
            prepare(),
            poll(),
            *(serve() for _ in range(settings.workers)),
        )
        try:
            await lease.release()
        except ApiError as error:
            logger.warning("the lease was not given back, it ends by itself: %s", error)


def main() -> int:
    """Run the operator; return its exit code."""
    host.configure_logging()
    settings = host.read_settings(Settings)
    if settings is None:
        return 2
    # Modules and schemas stay to the end: nothing is gained by looking through them again.
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    lost = False
    try:
        asyncio.run(run(settings))
    except* LeaseLost as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        logger.error("%s: this process ends, so that another replica can lead", error)
        lost = True
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
