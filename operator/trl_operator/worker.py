"""The workers: they take the jobs of which there is news from the queue, one after the other."""

import logging

from trl_operator.errors import ApiError, LeaseLost
from trl_operator.metrics import ControllerMetrics
from trl_operator.plan.observation import Key
from trl_operator.reconcile import Reconciler
from trl_operator.store.queue import WorkQueue

logger = logging.getLogger(__name__)


async def work(queue: WorkQueue[Key], reconciler: Reconciler, metrics: ControllerMetrics) -> None:
    """Take keys from the queue for ever. What fails is repeated with backoff: one bad job must not stop the others."""
    while True:
        key = await queue.get()
        name = "/".join(key)
        try:
            with metrics.reconcile_seconds.labels(key[0]).time():
                delay = await reconciler.reconcile(key)
        except ApiError as error:
            metrics.reconcile_errors.labels(str(error.status)).inc()
            level = logging.DEBUG if error.status == 409 else logging.WARNING
            logger.log(level, "%s: %s", name, error)
            queue.failed(key, error.retry_after)
        except LeaseLost:
            raise
        except Exception:
            # Whatever it is, it came from this job: it must not end the process, and with it all other jobs' progress.
            metrics.reconcile_errors.labels("bug").inc()
            logger.exception("%s: this is a bug; other jobs go on", name)
            queue.failed(key, at_least=5.0)
        else:
            queue.succeeded(key)
            if delay is not None:
                queue.add_later(key, delay)
        finally:
            queue.done(key)
