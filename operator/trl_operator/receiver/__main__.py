"""python -m trl_operator.receiver: the receiver's process."""

import asyncio
import resource
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from trl_operator import host
from trl_operator.health import Health
from trl_operator.kube import Kube
from trl_operator.metrics import ReceiverMetrics
from trl_operator.receiver.app import Receiver
from trl_operator.receiver.reviews import Reviews
from trl_operator.receiver.serving import Serving
from trl_operator.receiver.store import Store
from trl_operator.receiver.writer import Writer
from trl_operator.settings import ReceiverSettings
from trl_operator.store.relist import Relist

CONNECTIONS = 512
"""For writes: as many as can hang at a write's pace and timeouts, so that none waits for another's."""


async def run(settings: ReceiverSettings) -> None:
    """Take reports until a signal ends the process."""
    stop = host.stop_at_signals()
    async with AsyncExitStack() as stack:
        # Whoever floods us with tokens takes no connection away from the writes.
        writing = await stack.enter_async_context(await Kube.connect(CONNECTIONS))
        asking = await stack.enter_async_context(await Kube.connect())
        store, metrics = Store(), ReceiverMetrics()
        watched = store.watched()
        relist = Relist(writing, watched, settings.namespaces, settings.relist_seconds)
        health = Health(relist.age, settings.relist_seconds)
        serving = Serving(Path(settings.tls_folder))
        reviews = Reviews(asking)
        writer = Writer(writing, store, metrics, settings.progress_seconds, settings.writes_per_second)
        receiver = Receiver(store, reviews, writer, metrics)
        metrics.gauge(
            "trl_operator_receiver_pending", "Jobs whose newest report is not written.", lambda: len(writer.pending)
        )
        await host.serve(stack, health.application(metrics), settings.bind_address, settings.health_port)

        async def take_reports(filled: asyncio.Event) -> None:
            await filled.wait()
            await serving.first()
            await host.serve(
                stack, receiver.application(), settings.bind_address, settings.receiver_port, serving.context
            )
            health.ready = True
            await serving.keep()

        filled = asyncio.Event()
        await host.until(
            stop,
            health.beat(),
            host.watch(watched, relist, settings.namespaces, filled, stop),
            take_reports(filled),
            reviews.turns.run(),
            writer.run(),
        )


def main() -> int:
    """Run the receiver; return its exit code."""
    host.configure_logging()
    # Many container runtimes give 1,024 files at first, and each connection is one.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settings = host.read_settings(ReceiverSettings)
    if settings is None:
        return 2
    asyncio.run(run(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
