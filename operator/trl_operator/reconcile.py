"""The one loop: observe, decide, write the status, act, tell."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import ValidationError

from trl_contract.jobfile import AttemptFile
from trl_operator.api.job import Job, parse_known
from trl_operator.api.stored import read_status, written
from trl_operator.attempts import Attempts
from trl_operator.backend import backend_for
from trl_operator.blockers import find_blocker, things
from trl_operator.constants import API_VERSION, LABEL_ATTEMPT, LABEL_JOB_UID, MANAGER_PROGRESS, MANAGER_STATUS
from trl_operator.errors import ApiError, Refused
from trl_operator.kube import JOBS, PODS, WORKLOADS, Kube
from trl_operator.lease import Lease
from trl_operator.metrics import ControllerMetrics
from trl_operator.plan.acceptance import Blocker, check_spec
from trl_operator.plan.admission import NOT_INSTALLED, Admission
from trl_operator.plan.observation import Attempt, Child, Key, Mark, current_attempt, parse_time
from trl_operator.plan.outcome import records
from trl_operator.plan.upstream import check_cycle
from trl_operator.plan.view import View
from trl_operator.policy import stall
from trl_operator.policy.memory import attempt_file
from trl_operator.policy.start import half_since
from trl_operator.render.manifests import Installation
from trl_operator.render.run import Pinned
from trl_operator.resource import Resource
from trl_operator.runs import find_again, find_run
from trl_operator.status.conditions import Status
from trl_operator.status.decision import Decision
from trl_operator.status.events import Event, events, reported
from trl_operator.status.lifecycle import decide
from trl_operator.status.progress import last_words, without_eta
from trl_operator.status.refusal import not_read, refused
from trl_operator.store.needs import Needs
from trl_operator.store.objects import key_of
from trl_operator.store.store import Store
from trl_operator.tell import tell

logger = logging.getLogger(__name__)

PODS_LISTED_FOR = timedelta(seconds=10)
Obj = dict[str, Any]

INVALID = 422


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
        self._needs = needs
        self._lease = lease
        self._installation = installation
        self._attempts = Attempts(kube, store, needs, lease, installation)
        self._identity = identity
        self._exists = exists
        self._metrics = metrics
        self._now = now
        self._listed: dict[Key, tuple[tuple[int, str], datetime]] = {}
        """When the pods of an attempt that ends were listed: its number, and its workload's state, beside."""
        self._marks: dict[Key, Mark | None] = {}
        """What the reports of attempts that run say, since when."""

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
        view, pinned = await self._observe(job, obj)
        obj = await self._save_last_words(job, obj, view)
        decision = decide(job, obj.get("status", {}), view, self._now())
        # Before the end, after which nobody looks again.
        if (fields := without_eta(obj.get("status", {}), decision.status)) is not None:
            obj = await self._put_status(obj, fields, MANAGER_PROGRESS)
        obj = await self._write_status(obj, decision.status)
        return await self._act(job, obj, decision, pinned)

    def _forget(self, key: Key) -> None:
        self._listed.pop(key, None)
        self._marks.pop(key, None)
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
            first = error.errors(include_url=False)[0]
            message = f"spec.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}: create a new job"
            await self._refuse(obj, "False", "InvalidSpec", message)
            return None
        if unknown and "attempt" not in obj.get("status", {}):
            message = f"spec.{unknown[0]} is not known to this version of the operator: upgrade it, or remove the field"
            await self._refuse(obj, "Unknown", "NewerOperatorNeeded", message)
            return None
        return job

    async def _refuse(self, obj: Obj, value: Literal["False", "Unknown"], reason: str, message: str) -> None:
        """Say that a stored job is not accepted. What has ended stays as it is."""
        current = obj.get("status", {})
        if "completionTime" not in current:
            status = not_read(current, obj["metadata"]["generation"], value, reason, message, self._now())
            await self._write_status(obj, status)

    async def _observe(self, job: Job, obj: Obj) -> tuple[View, Pinned | None]:
        """Look at what the decision needs, and at the run that the next attempt is of if there is to be one. The store
        may lag, so what is missing in it is asked for."""
        current, attempt = obj.get("status", {}), current_attempt(obj)
        children = self._store.children(job.uid, job.namespace)
        if attempt is None:
            return await self._between(job, obj, 0, tuple(children))
        others = tuple(child for child in children if child.name != attempt.child)
        if "completionTime" in current:
            self._listed.pop(key_of(obj), None)
            self._marks.pop(key_of(obj), None)
            return View(others=tuple(children)), None
        child = next((child for child in children if child.name == attempt.child), None)
        if child is None or attempt.child_uid not in ("", child.uid):
            child = await self._attempts.live(job, attempt)
        if child is None and not attempt.child_uid:
            return await self._between(job, obj, attempt.number, others)
        if child is None or child.state != "active":
            await self._refresh_pods(attempt, child.state if child else "gone")
        admission = self._admission(child)
        if child is not None and child.suspended_by and not (job.queue_name or child.queue or admission.known):
            self._store.forget_gone_pods(replace(attempt, child_uid=child.uid))
        pods = tuple(self._store.pods(replace(attempt, child_uid=child.uid) if child else attempt))
        told = self._needs.told(attempt.job, child, pods, job.cluster.num_nodes)
        older_waits = half_since(pods, job.cluster.num_nodes) is not None and self._store.an_older_job_waits(job.uid)
        mark = self._marks[attempt.job] = stall.mark(self._marks.get(attempt.job), read_status(current))
        return View(child, others, pods, told, admission=admission, older_waits=older_waits, mark=mark), None

    def _admission(self, child: Child | None) -> Admission:
        if self._needs.admissions.enabled and not self._exists(WORKLOADS):
            return Admission(NOT_INSTALLED)
        return self._needs.admissions.of(child)

    async def _refresh_pods(self, attempt: Attempt, state: str) -> None:
        """List an attempt's pods when it is first seen in this state, and then now and then: the watch tells the rest,
        and a gang of many pods must not be listed at each one's end."""
        (seen, when), now = self._listed.get(attempt.job, ((-1, ""), self._now())), self._now()
        if seen == (attempt.number, state) and now - when < PODS_LISTED_FOR:
            return
        selector = f"{LABEL_JOB_UID}={attempt.job_uid},{LABEL_ATTEMPT}={attempt.number}"
        listed, version = await self._kube.list(PODS, attempt.job[1], selector)
        self._store.replace_attempt(attempt.job_uid, attempt.job[1], attempt.number, listed, version)
        self._listed[attempt.job] = ((attempt.number, state), now)

    async def _between(self, job: Job, obj: Obj, attempt: int, others: tuple[Child, ...]) -> tuple[View, Pinned | None]:
        """No attempt is alive: look at what stands against the next one, and at the run that it is of."""
        current = obj.get("status", {})
        installation = self._installation()
        backend = backend_for(job, read_status(current).run, installation.backend)
        key = (job.info.kind, job.namespace, job.name)
        found: Pinned | Blocker | None = check_spec(job) or check_cycle(key, self._store.dependants.waits_for)
        if not self._exists(backend.RESOURCE):
            found = Blocker("BackendUnavailable", backend.MISSING)
        # First, so that nothing is missed between the look and the wait.
        self._store.waiting.wait(key, things(job))
        if found is None:
            found = await find_run(self._kube, job, current, installation.trainer_image, backend.NAME)
        if not isinstance(found, Pinned):
            return View(others=others, blocker=found), None
        self._store.waiting.wait(key, [*things(job), *things(found.job)])
        blocker = await find_blocker(self._kube, self._needs, found.job, attempt, current, backend)
        if blocker is None:
            self._store.waiting.wait(key, ())
        return View(others=others, admission=self._admission(None), blocker=blocker, run=found.run), found

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
                view = View(started, admission=self._admission(started))
            begun = decide(job, obj["status"], view, self._now())
            await self._write_status(obj, begun.status)
            return begun.requeue
        if decision.restore and (lost := await find_again(self._kube, job, obj["status"])):
            await self._attempts.restore(*lost)
        return decision.requeue

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
