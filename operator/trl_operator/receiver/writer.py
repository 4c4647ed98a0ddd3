"""Puts the newest report of each job into its status: all jobs at once, at a pace of this process."""

import asyncio
import heapq
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trl_contract.report import Progress
from trl_operator.constants import API_VERSION, MANAGER_PROGRESS
from trl_operator.errors import ApiError
from trl_operator.kube import JOBS, WRITE_SECONDS, Kube
from trl_operator.metrics import ReceiverMetrics
from trl_operator.plan.observation import Key
from trl_operator.receiver.store import Store
from trl_operator.receiver.turns import Pace
from trl_operator.status.events import reported
from trl_operator.status.progress import DONE, is_newer, progress_fields
from trl_operator.tell import tell

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""A write that failed is repeated after so long, and after twice as long each time."""
MAX_RETRY_SECONDS = 60.0
REPORTER = "trl-operator-receiver"


@dataclass(frozen=True)
class Pending:
    """The newest report of a job that is not in its status yet."""

    uid: str
    progress: Progress
    percentage: int | None

    @property
    def known(self) -> dict[str, Any]:
        """As a status shows it, to compare a later report with."""
        return {"attempt": self.progress.attempt, "lastUpdateTime": self.progress.last_update_time}


class Writer:
    """Each job is written at most once per interval, an attempt's first report at 100 % at once.

    What is due longest goes first, at most `per_second` a second: when more is reported, intervals widen. A write that
    hangs holds up nobody but its own job.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        metrics: ReceiverMetrics,
        interval: float,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._store = store
        self._metrics = metrics
        self._interval = interval
        self._clock = clock
        self._pace = Pace(per_second, clock)
        self.pending: dict[Key, Pending] = {}
        self._due: list[tuple[float, Key]] = []
        self._writing: set[Key] = set()
        self._written: OrderedDict[Key, float] = OrderedDict()
        self._failed: dict[Key, tuple[int, float]] = {}
        """How often in a row a job's write failed, and when it may be repeated."""
        self._wake = asyncio.Event()

    def put(self, key: Key, pending: Pending) -> None:
        """Have this report written in its time, in place of an earlier one that waits."""
        self.pending[key] = pending
        self._plan(key)

    async def run(self) -> None:
        """Write for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                if (delay := self._delay()) > 0:
                    self._wake.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(None if delay == float("inf") else delay):
                            await self._wake.wait()
                    continue
                _, key = heapq.heappop(self._due)
                # A job may be planned more than once: what is over, or was put off, is planned anew or dropped.
                if key not in self.pending or key in self._writing:
                    continue
                if self._due_at(key) > self._clock():
                    self._plan(key)
                    continue
                self._pace.take()
                self._writing.add(key)
                tasks.create_task(self._write(key, self.pending.pop(key)))

    def _plan(self, key: Key) -> None:
        if key not in self._writing:
            heapq.heappush(self._due, (self._due_at(key), key))
            self._wake.set()

    def _delay(self) -> float:
        if not self._due:
            return float("inf")
        return max(self._due[0][0] - self._clock(), self._pace.delay())

    def _due_at(self, key: Key) -> float:
        pending, job = self.pending[key], self._store.jobs.get(key)
        known = job.progress if job else {}
        # Whoever is done again and again waits like everybody else.
        again = (known.get("attempt"), known.get("percentage")) == (pending.progress.attempt, DONE)
        interval = 0.0 if pending.percentage == DONE and not again else self._interval
        return max(self._written.get(key, -interval) + interval, self._failed.get(key, (0, 0.0))[1])

    async def _write(self, key: Key, pending: Pending) -> None:
        try:
            if await self._save(key, pending):
                self._remember(key)
            self._failed.pop(key, None)
        except ApiError as error:
            logger.log(logging.DEBUG if error.status == 409 else logging.WARNING, "progress of %s: %s", key, error)
            if error.final:
                self._metrics.reports.labels("refused-by-api-server").inc()
                self._failed.pop(key, None)
            else:
                self._put_off(key, pending, error.retry_after)
        except Exception:
            # Whatever it is, it came from this report: it must not end the process, and with it all other reports.
            logger.exception("progress of %s: this is a bug; other jobs go on", key)
        finally:
            self._writing.discard(key)
            if key in self.pending:
                self._plan(key)

    def _remember(self, key: Key) -> None:
        """Only writes of the last interval make others wait; what is older would pile up, job by job."""
        now = self._clock()
        self._written[key] = now
        self._written.move_to_end(key)
        while next(iter(self._written.values())) + self._interval < now:
            self._written.popitem(last=False)

    def _put_off(self, key: Key, pending: Pending, at_least: float) -> None:
        times = self._failed.get(key, (0, 0.0))[0] + 1
        pause = min(RETRY_SECONDS * 2 ** min(times - 1, 10), MAX_RETRY_SECONDS)
        self._failed[key] = (times, self._clock() + max(pause, at_least))
        self.pending.setdefault(key, pending)

    async def _save(self, key: Key, pending: Pending) -> bool:
        """Write a report; return whether its job is still there and goes on.

        The write names the version that was read: of a status, the API server does not compare uids, and a job of the
        same name may have taken the place of the one that is meant.
        """
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                obj = await self._kube.get(JOBS[key[0]], key[1], key[2])
        except TimeoutError as error:
            raise ApiError(0, f"not read within {WRITE_SECONDS:g} s") from error
        if obj is None or obj["metadata"]["uid"] != pending.uid or "completionTime" in obj.get("status", {}):
            return False
        if not is_newer(pending.progress, obj.get("status", {})):
            return True
        status = progress_fields(pending.progress, pending.percentage, obj.get("status", {}))
        metadata = {name: obj["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": API_VERSION, "kind": key[0], "metadata": metadata, "status": status}
        stored = await self._kube.apply(JOBS[key[0]], key[1], body, MANAGER_PROGRESS, "status")
        self._store.put_job(stored)
        await tell(self._kube, stored, reported(obj.get("status", {}), status), REPORTER, datetime.now(UTC))
        return True
