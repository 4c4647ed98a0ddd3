"""What is decided about a job is decided on this: what the watches have told, and live objects where they may lag."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from trl_operator.api.job import Job
from trl_operator.api.stored import read_status
from trl_operator.backend import BACKENDS, backend_for, child_from
from trl_operator.blockers import find_blocker, things
from trl_operator.constants import LABEL_ATTEMPT, LABEL_JOB_UID
from trl_operator.kube import PODS, WORKLOADS, Kube
from trl_operator.plan.acceptance import Blocker, check_spec
from trl_operator.plan.admission import NOT_INSTALLED, Admission
from trl_operator.plan.observation import Attempt, Child, Key, Mark, controller_uid, current_attempt
from trl_operator.plan.retained import reused
from trl_operator.plan.upstream import check_cycle
from trl_operator.plan.view import View
from trl_operator.policy import stall
from trl_operator.policy.start import half_since
from trl_operator.render.manifests import Installation
from trl_operator.render.run import Pinned
from trl_operator.resource import Resource
from trl_operator.runs import find_run
from trl_operator.store.needs import Needs
from trl_operator.store.objects import key_of
from trl_operator.store.store import Store

PODS_LISTED_FOR = timedelta(seconds=10)
Obj = dict[str, Any]


class Observer:
    """Looks at jobs, and remembers of each what it must not ask for again."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        needs: Needs,
        installation: Callable[[], Installation],
        exists: Callable[[Resource], bool],
        now: Callable[[], datetime],
    ) -> None:
        self._kube = kube
        self._store = store
        self._needs = needs
        self._installation = installation
        self._exists = exists
        self._now = now
        self._listed: dict[Key, tuple[tuple[int, str], datetime]] = {}
        """When the pods of an attempt that ends were listed: its number, and its workload's state, beside."""
        self._marks: dict[Key, Mark | None] = {}
        """What the reports of attempts that run say, since when."""

    def forget(self, key: Key) -> None:
        """The job has ended, or is gone."""
        self._listed.pop(key, None)
        self._marks.pop(key, None)

    async def look(self, job: Job, obj: Obj) -> tuple[View, Pinned | None]:
        """Return what the decision about a stored job needs; beside it the run of the next attempt, if that one may
        begin."""
        attempt = current_attempt(obj)
        children = tuple(self._store.children(job.uid, job.namespace))
        if attempt is None:
            return await self._between(job, obj, 0, children)
        if "completionTime" in obj["status"]:
            self.forget(key_of(obj))
            return View(others=children), None
        child = await self._child(job, attempt, children)
        others = tuple(other for other in children if other.name != attempt.child)
        if child is None and not attempt.child_uid:
            return await self._between(job, obj, attempt.number, others)
        return await self._during(job, obj, attempt, child, others), None

    # -- no attempt is alive

    async def _between(self, job: Job, obj: Obj, attempt: int, others: tuple[Child, ...]) -> tuple[View, Pinned | None]:
        found = await self._next(job, obj, attempt)
        if isinstance(found, Blocker):
            return View(others=others, blocker=found), None
        claim = reused(self._needs.claim(job.namespace, job.storage_claim), job)
        return View(others=others, admission=self.admission(None), run=found.run, reused=claim), found

    async def _next(self, job: Job, obj: Obj, attempt: int) -> Pinned | Blocker:
        """Return the run that the next attempt is of, or what stands against that one. Then the job waits for all that
        it names: from before the look on, so that nothing is missed between the two."""
        key, current, installation = key_of(obj), obj.get("status", {}), self._installation()
        backend = backend_for(job, read_status(current).run, installation.backend)
        self._store.waiting.wait(key, things(job))
        if not self._exists(backend.RESOURCE):
            return Blocker("BackendUnavailable", backend.MISSING)
        if blocker := check_spec(job) or check_cycle(key, self._store.dependants.waits_for):
            return blocker
        found = await find_run(self._kube, job, current, installation.trainer_image, backend.NAME)
        if isinstance(found, Blocker):
            return found
        # What it is pinned to names the claims of the jobs that it builds on.
        self._store.waiting.wait(key, [*things(job), *things(found.job)])
        if blocker := await find_blocker(self._kube, self._needs, found.job, attempt, current, backend):
            return blocker
        self._store.waiting.wait(key, ())
        return found

    # -- the attempt has a workload, or had one

    async def _child(self, job: Job, attempt: Attempt, children: tuple[Child, ...]) -> Child | None:
        """Return the attempt's workload; of what the store is not certain is asked for."""
        known = next((child for child in children if child.name == attempt.child), None)
        if known is not None and self._is_certain(known, attempt):
            return known
        found = await self._kube.get(BACKENDS[attempt.backend].RESOURCE, job.namespace, attempt.child)
        if found is None or controller_uid(found["metadata"]) != job.uid:
            return None
        return child_from(found)

    def _is_certain(self, known: Child, attempt: Attempt) -> bool:
        """Whether this is the attempt's workload, as it is. One that is suspended although it has pods was let go
        before them or suspended after them, and the watch of pods may be ahead of its own."""
        if attempt.child_uid not in ("", known.uid):
            return False
        return known.deleting or not known.suspended_by or not self._store.pods(attempt)

    async def _during(
        self, job: Job, obj: Obj, attempt: Attempt, child: Child | None, others: tuple[Child, ...]
    ) -> View:
        if child is None or child.state != "active":
            await self._refresh_pods(attempt, child.state if child else "gone")
        admission = self.admission(child)
        if child is not None:
            attempt = replace(attempt, child_uid=child.uid)
            if child.suspended_by and not (job.queue_name or child.queue or admission.known):
                self._store.forget_gone_pods(attempt)
        nodes, pods = job.cluster.num_nodes, tuple(self._store.pods(attempt))
        mark = stall.mark(self._marks.get(attempt.job), read_status(obj["status"]))
        self._marks[attempt.job] = mark
        return View(
            child,
            others,
            pods,
            self._needs.told(attempt.job, child, pods, nodes),
            admission=admission,
            mark=mark,
            older_waits=half_since(pods, nodes) is not None and self._store.an_older_job_waits(job.uid),
        )

    def admission(self, child: Child | None) -> Admission:
        """Return what Kueue says of an attempt's workload."""
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
