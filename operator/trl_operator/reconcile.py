"""The one loop: observe, decide, write the status, act, tell."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from trl_contract.jobfile import AttemptFile
from trl_operator.api.job import Job, parse_known, why_refused
from trl_operator.api.stored import owned, read_status, written
from trl_operator.attempts import Attempts
from trl_operator.constants import API_VERSION, MANAGER_PROGRESS, MANAGER_STATUS
from trl_operator.errors import ApiError, Refused
from trl_operator.kube import JOBS, Kube
from trl_operator.lease import Lease
from trl_operator.metrics import ControllerMetrics
from trl_operator.observer import Observer
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import Child, Key, current_attempt, parse_time
from trl_operator.plan.outcome import records
from trl_operator.plan.view import View
from trl_operator.policy.memory import attempt_file
from trl_operator.policy.preemption import boost
from trl_operator.render.manifests import Installation
from trl_operator.render.run import Pinned
from trl_operator.resource import Resource
from trl_operator.runs import find_again
from trl_operator.status.conditions import Status
from trl_operator.status.decision import Decision, finite, sooner
from trl_operator.status.events import Event, events, reported
from trl_operator.status.lifecycle import decide
from trl_operator.status.progress import last_words, without_eta
from trl_operator.status.refusal import not_read, refused
from trl_operator.status.size import fit
from trl_operator.store.needs import Needs
from trl_operator.store.objects import key_of
from trl_operator.store.store import Store
from trl_operator.tell import tell

logger = logging.getLogger(__name__)

Obj = dict[str, Any]

INVALID = 422
REFUSED_BOOST_SECONDS = 30.0
"""Until a boost that was refused is tried again."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Brings one job a step further at each call; may be killed between any two of its requests."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        needs: Needs,
        lease: Lease,
        installation: Callable[[], Installation],
        identity: str,
        exists: Callable[[Resource], bool],
        metrics: ControllerMetrics,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._kube = kube
        self._store = store
        self._lease = lease
        self._installation = installation
        self._boosts = needs.admissions.boosts
        self._attempts = Attempts(kube, store, needs, lease, installation)
        self._observer = Observer(kube, store, needs, installation, exists, now)
        self._identity = identity
        self._metrics = metrics
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """Bring the job a step further; return the seconds after which it wants another look, if any."""
        if self._store.is_over(key):
            return None
        obj = self._store.unseen.take(key) or await self._kube.get(JOBS[key[0]], *key[1:])
        if obj is None:
            self._forget(key)
            return None
        if "deletionTimestamp" in obj["metadata"]:
            return None
        job = await self._read(obj)
        if job is None:
            return None
        view, pinned = await self._observer.look(job, obj)
        if pinned is not None:
            job = replace(job, cluster=pinned.job.cluster, defaults=pinned.job.defaults)
        obj = await self._save_last_words(job, obj, view)
        decision = decide(job, obj.get("status", {}), view, self._now())
        # Before the end, after which nobody looks again.
        if (fields := without_eta(obj.get("status", {}), decision.status)) is not None:
            obj = await self._put_status(obj, fields, MANAGER_PROGRESS)
        obj = await self._write_status(obj, decision.status)
        requeue = await self._act(job, obj, decision, pinned)
        return requeue if decision.delete else await self._boost(job, obj, view, requeue)

    def _forget(self, key: Key) -> None:
        self._observer.forget(key)
        if known := self._store.jobs.get(key):
            self._store.forget_job(key, known.uid)

    async def _read(self, obj: Obj) -> Job | None:
        """Return the typed form of a stored job; None if it has none, which its status then tells.

        The CRD may be newer than this process, and gives every stored job its new fields: a job that has an attempt
        goes on without them, any other waits for an operator that knows them.
        """
        try:
            job, unknown = parse_known(obj)
        except ValidationError as error:
            await self._refuse(obj, "False", "InvalidSpec", f"{why_refused(error)}; create a new job")
            return None
        if unknown and "attempt" not in obj.get("status", {}):
            message = f"spec.{unknown[0]} is not known to this version of the operator: upgrade it, or remove the field"
            await self._refuse(obj, "Unknown", "NewerOperatorNeeded", message)
            return None
        installation = self._installation()
        try:
            return installation.of(job, obj)
        except ValidationError as error:
            if job.cluster.run_policy.cancel:
                return replace(installation, job_defaults=()).of(job, obj)
            remedy = (
                "the admin has to shorten these, or create a new job that says less, or an empty list for none of them"
            )
            message = f"{why_refused(error)}, with what jobDefaults add: {remedy}"
            await self._refuse(obj, "False", "InvalidSpec", message)
            return None

    async def _refuse(self, obj: Obj, value: Literal["False", "Unknown"], reason: str, message: str) -> None:
        """Say that a stored job is not accepted. What has ended stays as it is."""
        current = obj.get("status", {})
        if "completionTime" not in current:
            status = not_read(current, obj["metadata"]["generation"], value, reason, message, self._now())
            await self._write_status(obj, status)

    async def _save_last_words(self, job: Job, obj: Obj, view: View) -> Obj:
        """Write the progress that exit records carry, so that the end does not depend on the receiver."""
        current, attempt = obj.get("status", {}), current_attempt(obj)
        if attempt is None or "completionTime" in current:
            return obj
        succeeded = view.succeeded(job.cluster.num_nodes)
        fields = last_words(records(view.pods), attempt.number, succeeded, current)
        if fields is None:
            return obj
        try:
            stored = await self._put_status(obj, fields, MANAGER_PROGRESS)
            await self._tell(obj, reported(current, fields))
            return stored
        except ApiError as error:
            if error.status != INVALID:
                raise
            # What a container says must not keep its job from ending.
            self._metrics.last_words.labels("refused").inc()
            logger.warning("last words of %s/%s: %s", obj["metadata"]["namespace"], obj["metadata"]["name"], error)
            return obj

    async def _write_status(self, obj: Obj, status: Status) -> Obj:
        """Write the status if it changed, then tell what happened."""
        before = obj.get("status", {})
        status = fit(status, owned(before, MANAGER_PROGRESS))
        if written(read_status(before)) == status:
            return obj
        obj = await self._put_status(obj, status)
        self._count(obj["kind"], before, status)
        await self._tell(obj, events(before, status))
        return obj

    def _count(self, kind: str, before: Status, status: Status) -> None:
        if status.get("restarts", 0) > before.get("restarts", 0):
            self._metrics.restarts.labels(kind, read_status(status).reason("Running")).inc()
        if "completionTime" in status and "completionTime" not in before:
            ended = parse_time(status["completionTime"]) or self._now()
            seconds = (ended - (parse_time(status.get("startTime")) or ended)).total_seconds()
            self._metrics.job_seconds.labels(kind, status["phase"]).observe(seconds)

    async def _put_status(self, obj: Obj, status: Status, manager: str = MANAGER_STATUS) -> Obj:
        """Write one manager's part of the status, unless the object has changed since it was read."""
        self._lease.check()
        metadata = {name: obj["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": API_VERSION, "kind": obj["kind"], "metadata": metadata, "status": status}
        if manager == MANAGER_STATUS:
            self._store.expect_status(obj, status)
        stored = await self._kube.apply(JOBS[obj["kind"]], metadata["namespace"], body, manager, "status")
        self._store.put_job(stored)
        return stored

    async def _act(self, job: Job, obj: Obj, decision: Decision, pinned: Pinned | None) -> float | None:
        for child in decision.delete:
            await self._attempts.delete(child)
        if decision.delete_job:
            if self._store.dependants.has(key_of(obj)):
                # The end of whoever awaits it tells.
                return None
            self._lease.check()
            version = obj["metadata"]["resourceVersion"]
            await self._kube.delete(JOBS[job.info.kind], job.namespace, job.name, job.uid, version)
            return None
        if decision.create:
            assert pinned is not None, "an attempt begins only when nothing stands against it"
            started = await self._start(pinned, obj, attempt_file(read_status(decision.status)))
            if isinstance(started, Blocker):
                view = View(blocker=started)
            else:
                view = View(started, admission=self._observer.admission(started))
            begun = decide(job, obj["status"], view, self._now())
            await self._write_status(obj, begun.status)
            return begun.requeue
        if decision.restore and (lost := await find_again(self._kube, job, obj["status"])):
            await self._attempts.restore(*lost)
        return decision.requeue

    async def _boost(self, job: Job, obj: Obj, view: View, requeue: float | None) -> float | None:
        """Have Kueue prefer an attempt that would lose all that it has done; return when to look again."""
        if not self._boosts or view.child is None or view.child.deleting or not view.admission.known:
            return requeue
        wanted, left = boost(job, read_status(obj["status"]), view.admission, self._now())
        try:
            await self._attempts.boost(view.child, view.admission, wanted)
        except ApiError as error:
            # A wish only: what is against it, like a webhook that is down, must not keep the job from being looked at.
            self._metrics.reconcile_errors.labels(str(error.status)).inc()
            logger.warning("%s/%s/%s: priority boost: %s", job.info.kind, job.namespace, job.name, error)
            left = min(left, max(error.retry_after, REFUSED_BOOST_SECONDS))
        return finite(sooner(requeue, left))

    async def _start(self, pinned: Pinned, obj: Obj, attempt: AttemptFile) -> Child | Blocker:
        """Start the attempt; what the API server has against it goes into the status before it is tried again.

        A quota or an admission policy may refuse for days, and so may a webhook that is down.
        """
        try:
            return await self._attempts.start(pinned, attempt)
        except Refused as error:
            # A name that is taken is looked at again at once, and a busy server asks for patience.
            if error.status not in (409, 429):
                status = refused(pinned.job, obj["status"], error.what, error.message, self._now())
                await self._write_status(obj, status)
            raise

    async def _tell(self, obj: Obj, found: Iterable[Event]) -> None:
        await tell(self._kube, obj, found, self._identity, self._now())
