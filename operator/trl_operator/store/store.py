"""The newest known state of each object that is watched."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from trl_operator.backend import BACKENDS, Backend, child_from, pod_from
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.kube import JOBS, PODS
from trl_operator.plan.observation import Attempt, Child, Key, Pod
from trl_operator.store.dependants import Dependants
from trl_operator.store.held import Held
from trl_operator.store.objects import StoredJob, key_of, news, stored_job
from trl_operator.store.waiting import Waiting
from trl_operator.store.watched import Watched, covers

Obj = dict[str, Any]
T = TypeVar("T", Child, Pod)


class Store:
    """Jobs by key, workloads and pods by the uid of their job; `follow` tells of which there is news.

    A pod that is gone stays while its job is known and has not ended, and its attempt is not over: its last words say
    why it failed.
    """

    def __init__(self, backends: Sequence[Backend] = tuple(BACKENDS.values())) -> None:
        """`backends` may run attempts."""
        self.backends = backends
        self._changed: Callable[[Key], None] = lambda _: None
        self.jobs: dict[Key, StoredJob] = {}
        self._children: dict[tuple[str, str], Child] = {}
        self._children_of: dict[str, dict[str, Child]] = {}
        self._pods: dict[str, Pod] = {}
        self._pods_of: dict[str, dict[str, Pod]] = {}
        self._own_news: dict[Key, int] = {}
        self._own_children: set[tuple[str, str]] = set()
        self.unseen = Held()
        """Jobs that were told once, whole, if they have no attempt."""
        self.waiting = Waiting(lambda key: self._changed(key))
        self.dependants = Dependants()

    def watched(self) -> list[Watched]:
        """Return what has to be watched to keep this store."""
        jobs = [
            Watched(found, self.put_job, self.drop_job, partial(self.sweep_jobs, kind)) for kind, found in JOBS.items()
        ]
        return [
            *jobs,
            Watched(PODS, self.put_pod, self.drop_pod, self.sweep_pods, LABEL_JOB_UID),
            *(
                Watched(each.RESOURCE, self.put_child, self.drop_child, self.sweep_children, LABEL_JOB_UID)
                for each in self.backends
            ),
        ]

    def follow(self, changed: Callable[[Key], None]) -> None:
        """Call `changed` with every known job now, and from now on with each job of which there is news.

        A replica that stands by follows nothing: it would only collect the keys of jobs that are long gone.
        """
        self._changed = changed
        self.wake_all()

    def wake_owner(self, namespace: str, name: str, uid: str) -> None:
        """Tell of the job of a pod or a workload; of a workload the name will do."""
        found = self._pods.get(uid) or self._children.get((namespace, name))
        if found is not None and uid in ("", found.uid):
            self._tell_owner(found.job)

    def _tell_owner(self, key: Key) -> None:
        """What belongs to a job goes after it, and may be known before it: then its own arrival tells."""
        if key in self.jobs:
            self._changed(key)

    def wake_all(self) -> None:
        for key in list(self.jobs):
            self._changed(key)

    # -- jobs

    def put_job(self, obj: Obj) -> None:
        job = stored_job(obj)
        known = self.jobs.get(job.key)
        if known is not None and known.version >= job.version:
            return
        self.jobs[job.key] = job
        self.unseen.take(job.key)
        if job.attempt is None and (known is None or known.uid != job.uid):
            self.unseen.put(job.key, obj)
        for uid in {job.uid, known.uid if known else ""}:
            self._forget_pods(uid)
        if known is None or known.uid != job.uid or job.news not in (known.news, self._own_news.get(job.key)):
            self._changed(job.key)
        self.dependants.put(job)
        if known is None or (known.uid, known.phase) != (job.uid, job.phase):
            self._tell_of_upstream(job)

    def drop_job(self, obj: Obj) -> None:
        """Forget this very job and all pods of it that are gone."""
        self.forget_job(key_of(obj), obj["metadata"]["uid"])

    def forget_job(self, key: Key, uid: str) -> None:
        known = self.jobs.get(key)
        if known is not None and known.uid == uid:
            del self.jobs[key]
            self.unseen.take(key)
            self._own_news.pop(key, None)
            self._forget_pods(uid)
            self.waiting.wait(key, ())
            self.dependants.drop(key)
            self._changed(key)
            self._tell_of_upstream(known)

    def _tell_of_upstream(self, job: StoredJob) -> None:
        """What became of a job concerns those that wait for its result, and its end those whose result it has used."""
        self.waiting.wake(job.key)
        if job.ended or job.key not in self.jobs:
            for upstream in job.uses:
                self._changed(upstream)

    def phases(self) -> Counter[tuple[str, str]]:
        """Return how many jobs there are of each kind in each phase."""
        return Counter((job.key[0], job.phase) for job in self.jobs.values())

    def is_over(self, key: Key) -> bool:
        """Return whether a job has ended and nothing of it is left to be ended, deleted or said."""
        job = self.jobs.get(key)
        if job is None or not job.ended or not job.observed or job.has_ttl:
            return False
        last = job.attempt.number if job.attempt else 0
        children = self.children(job.uid, key[1])
        return all(child.attempt == last and (job.succeeded or child.state != "active") for child in children)

    def expect_status(self, obj: Obj, status: Obj) -> None:
        """The status that is about to be written to a job is no news, whichever comes first, its answer or its event.

        Called before the write; `status` is all of it.
        """
        self._own_news[key_of(obj)] = news(obj, status)

    # -- workloads

    def put_child(self, obj: Obj) -> None:
        child = child_from(obj)
        if child is None:
            self.drop_child(obj)
            return
        place = child.job[1], child.name
        known = self._children.get(place)
        if known is not None and known.version >= child.version:
            return
        self._forget_child(known)
        self._children[place] = child
        self._children_of.setdefault(child.owner_uid, {})[child.name] = child
        expected = known is None and place in self._own_children and child.state == "active" and not child.deleting
        self._own_children.discard(place)
        if not expected and _is_news(known, child):
            self._tell_owner(child.job)

    def drop_child(self, obj: Obj) -> None:
        """Forget this very workload."""
        metadata = obj["metadata"]
        known = self._children.get((metadata["namespace"], metadata["name"]))
        if known is not None and known.uid == metadata["uid"]:
            self.forget_child(known)

    def forget_child(self, child: Child) -> None:
        """Forget this very workload: it is gone."""
        known = self._children.get((child.job[1], child.name))
        if known is not None and known.uid == child.uid:
            self._forget_child(known)
            self._tell_owner(known.job)

    def _forget_child(self, known: Child | None) -> None:
        if known is not None:
            del self._children[known.job[1], known.name]
            _discard(self._children_of, known.owner_uid, known.name)

    def expect_child(self, namespace: str, name: str) -> None:
        """A workload that is about to be created is no news. Called before it is."""
        self._own_children.add((namespace, name))

    def children(self, job_uid: str, namespace: str) -> list[Child]:
        """Return the workloads of a job: in another namespace, a uid in an ownerReference says nothing."""
        return [child for child in self._children_of.get(job_uid, {}).values() if child.job[1] == namespace]

    # -- pods

    def put_pod(self, obj: Obj) -> None:
        pod = pod_from(obj)
        if pod is None:
            self._vanish(obj["metadata"]["uid"])
            return
        known = self._pods.get(pod.uid)
        if known is None or (known.version < pod.version and not known.gone):
            self._store(pod)

    def drop_pod(self, obj: Obj) -> None:
        """Remember the pod as gone, in its last state, if anybody may still ask for it."""
        self.put_pod(obj)
        self._vanish(obj["metadata"]["uid"])

    def _vanish(self, uid: str) -> None:
        pod = self._pods.get(uid)
        if pod is not None and not pod.gone:
            self._store(pod.vanished())

    def _store(self, pod: Pod) -> None:
        known = self._pods.get(pod.uid)
        self._pods[pod.uid] = pod
        self._pods_of.setdefault(pod.job_uid, {})[pod.uid] = pod
        self._forget_unless_wanted(pod)
        if _is_news(known, pod):
            self._tell_owner(pod.job)

    def _forget_pods(self, job_uid: str) -> None:
        for pod in list(self._pods_of.get(job_uid, {}).values()):
            self._forget_unless_wanted(pod)

    def _forget_unless_wanted(self, pod: Pod) -> None:
        """Events come in any order: whoever is the last to know of a pod's end forgets it."""
        if not self._is_wanted(pod):
            self._forget(pod)

    def _forget(self, pod: Pod) -> None:
        del self._pods[pod.uid]
        _discard(self._pods_of, pod.job_uid, pod.uid)

    def _is_wanted(self, pod: Pod) -> bool:
        """Whether the pod is of its job's attempt, or of the next one, of which the job's watch has yet to tell.

        A pod that is there may be known before its job, and may report once more after its job has ended.
        """
        job = self.jobs.get(pod.job)
        if job is None or job.uid != pod.job_uid:
            return not pod.gone
        current = job.attempt.number if job.attempt else 0
        return current <= pod.attempt <= current + 1 and not (pod.gone and job.ended)

    def forget_gone_pods(self, attempt: Attempt) -> None:
        """They have not failed it: others come in their place."""
        for pod in filter(lambda pod: pod.finished, self.pods(attempt)):
            self._forget(pod)

    def pods(self, attempt: Attempt) -> list[Pod]:
        return [pod for pod in self._pods_of.get(attempt.job_uid, {}).values() if attempt.has(pod)]

    def an_older_job_waits(self, uid: str) -> bool:
        """Return whether a job older than the one with this uid has pods with a node and pods without one."""
        ages: dict[str, tuple[str, str]] = {}
        for other, pods in self._pods_of.items():
            job = self.jobs.get(next(iter(pods.values())).job)
            if job is not None and job.uid == other:
                ages[other] = (job.created, other)
        placed = {other: {bool(p.node) for p in self._pods_of[other].values() if not p.finished} for other in ages}
        return uid in ages and any(ages[other] < ages[uid] for other in ages if len(placed[other]) == 2)

    # -- fresh lists: watches do not tell what was deleted while they were cut off

    def sweep_jobs(self, kind: str, namespaces: list[str], uids: set[str], version: int) -> None:
        for key, job in list(self.jobs.items()):
            if key[0] == kind and covers(namespaces, key[1]) and job.uid not in uids and job.version <= version:
                self.forget_job(key, job.uid)

    def sweep_children(self, namespaces: list[str], uids: set[str], version: int) -> None:
        for (namespace, _), child in list(self._children.items()):
            if covers(namespaces, namespace) and child.uid not in uids and child.version <= version:
                self.forget_child(child)

    def sweep_pods(self, namespaces: list[str], uids: set[str], version: int) -> None:
        known = [pod for pod in self._pods.values() if covers(namespaces, pod.job[1])]
        self._sweep_pods(known, uids, version)

    def replace_attempt(self, job_uid: str, namespace: str, attempt: int, listed: Iterable[Obj], version: int) -> None:
        """Take over a fresh list of the pods of one attempt."""
        known = list(self._pods_of.get(job_uid, {}).values())
        known = [pod for pod in known if (pod.job[1], pod.attempt) == (namespace, attempt)]
        seen = set()
        for obj in listed:
            seen.add(obj["metadata"]["uid"])
            self.put_pod(obj)
        self._sweep_pods(known, seen, version)

    def _sweep_pods(self, known: list[Pod], uids: set[str], version: int) -> None:
        for pod in known:
            if pod.uid not in uids and pod.version <= version:
                self._vanish(pod.uid)


def _discard(index: dict[str, dict[str, T]], owner: str, name: str) -> None:
    del index[owner][name]
    if not index[owner]:
        del index[owner]


def _is_news(known: T | None, found: T) -> bool:
    """Whether anything but the version differs: much of what others write into an object means nothing to us."""
    return known is None or replace(known, version=found.version) != found
