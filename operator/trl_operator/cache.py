"""What the watches saw: jobs, their workloads and pods, kept small."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from trl_operator.backend import BACKENDS, child_from, pod_from
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.kube import JOBS, PODS
from trl_operator.plan.observation import Attempt, Child, Key, Pod
from trl_operator.watched import Watched, covers

Obj = dict[str, Any]

JOB_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def key_of(obj: Obj) -> Key:
    """Return the key of a job."""
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


class Cache:
    """The newest known state of each object.

    Of jobs only identity and status are kept: a spec may be big, and whoever decides reads the live object.
    A pod that is gone stays while its job is known and has not ended, and its attempt is not over: its last words say
    why it failed.
    """

    def __init__(self) -> None:
        self._changed: Callable[[Key], None] = _ignore
        self.jobs: dict[Key, Obj] = {}
        self._children: dict[tuple[str, str], Child] = {}
        self._pods: dict[str, Pod] = {}
        self._pods_of: dict[str, set[str]] = {}

    def watched(self) -> list[Watched]:
        """Return what has to be watched to keep this cache."""

        def drop_job(obj: Obj) -> None:
            self.drop_job(key_of(obj))

        def drop_child(obj: Obj) -> None:
            self.drop_child(obj["metadata"]["namespace"], obj["metadata"]["name"])

        jobs = [Watched(found, self.put_job, drop_job, partial(self.sweep_jobs, kind)) for kind, found in JOBS.items()]
        return [
            *jobs,
            Watched(PODS, self.put_pod, self.drop_pod, self.sweep_pods, LABEL_JOB_UID),
            *(
                Watched(each.RESOURCE, self.put_child, drop_child, self.sweep_children, LABEL_JOB_UID)
                for each in BACKENDS
            ),
        ]

    def follow(self, changed: Callable[[Key], None]) -> None:
        """Call `changed` with every known job now, and from now on with each job that something happens to.

        A replica that stands by follows nothing: it would only collect the keys of jobs that are long gone.
        """
        self._changed = changed
        for key in list(self.jobs):
            changed(key)

    def put_job(self, obj: Obj) -> None:
        key = key_of(obj)
        known = self.jobs.get(key)
        if known is None or _version(known) < _version(obj):
            metadata = {name: obj["metadata"].get(name) for name in JOB_METADATA}
            self.jobs[key] = {"kind": obj["kind"], "metadata": metadata, "status": obj.get("status", {})}
            for uid in {metadata["uid"], known["metadata"]["uid"] if known else ""}:
                self._forget_pods(uid)
            self._changed(key)

    def drop_job(self, key: Key) -> None:
        """Forget a job and all pods of it that are gone."""
        if obj := self.jobs.pop(key, None):
            self._forget_pods(obj["metadata"]["uid"])
            self._changed(key)

    def put_child(self, obj: Obj) -> None:
        child = child_from(obj)
        if child is None:
            self.drop_child(obj["metadata"]["namespace"], obj["metadata"]["name"])
            return
        known = self._children.get((child.job[1], child.name))
        if known is None or known.version < child.version:
            self._children[child.job[1], child.name] = child
            self._changed(child.job)

    def drop_child(self, namespace: str, name: str) -> None:
        if child := self._children.pop((namespace, name), None):
            self._changed(child.job)

    def forget_child(self, child: Child) -> None:
        """Forget this very workload: it is gone."""
        known = self._children.get((child.job[1], child.name))
        if known is not None and known.uid == child.uid:
            self.drop_child(child.job[1], child.name)

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
        self._pods[pod.uid] = pod
        self._pods_of.setdefault(pod.job_uid, set()).add(pod.uid)
        self._forget_unless_wanted(pod)
        self._changed(pod.job)

    def _forget_pods(self, job_uid: str) -> None:
        for uid in list(self._pods_of.get(job_uid, ())):
            self._forget_unless_wanted(self._pods[uid])

    def _forget_unless_wanted(self, pod: Pod) -> None:
        """Events come in any order: whoever is the last to know of a pod's end forgets it."""
        if self._is_wanted(pod):
            return
        del self._pods[pod.uid]
        self._pods_of[pod.job_uid].discard(pod.uid)
        if not self._pods_of[pod.job_uid]:
            del self._pods_of[pod.job_uid]

    def _is_wanted(self, pod: Pod) -> bool:
        """Whether the pod is of its job's attempt, or of the next one, of which the job's watch has yet to tell.

        A pod that is there may be known before its job, and may report once more after its job has ended.
        """
        job = self.jobs.get(pod.job)
        if job is None or job["metadata"]["uid"] != pod.job_uid:
            return not pod.gone
        current = job["status"].get("attempt", 0)
        ended = "completionTime" in job["status"]
        return current <= pod.attempt <= current + 1 and not (pod.gone and ended)

    def children(self, job_uid: str, namespace: str) -> list[Child]:
        return [c for c in self._children.values() if c.owner_uid == job_uid and c.job[1] == namespace]

    def pods(self, attempt: Attempt) -> list[Pod]:
        found = (self._pods[uid] for uid in self._pods_of.get(attempt.job_uid, ()))
        return [pod for pod in found if attempt.has(pod)]

    def an_older_job_waits(self, uid: str) -> bool:
        """Return whether a job older than the one with this uid has pods with a node and pods without one."""
        known = {obj["metadata"]["uid"]: obj["metadata"] for obj in self.jobs.values()}
        ages = {other: (metadata["creationTimestamp"] or "", other) for other, metadata in known.items()}
        waiting = [other for other, pods in self._pods_of.items() if other in ages and self._is_half_placed(pods)]
        return uid in ages and any(ages[other] < ages[uid] for other in waiting)

    def _is_half_placed(self, uids: Iterable[str]) -> bool:
        placed = {bool(self._pods[uid].node) for uid in uids if not self._pods[uid].finished}
        return len(placed) == 2

    def sweep_jobs(self, kind: str, namespaces: list[str], uids: set[str], version: int) -> None:
        """Forget jobs that a fresh list does not hold: watches do not tell what was deleted while they were cut off."""
        for key, obj in list(self.jobs.items()):
            gone = obj["metadata"]["uid"] not in uids and _version(obj) <= version
            if key[0] == kind and covers(namespaces, key[1]) and gone:
                self.drop_job(key)

    def sweep_children(self, namespaces: list[str], uids: set[str], version: int) -> None:
        for (namespace, name), child in list(self._children.items()):
            if covers(namespaces, namespace) and child.uid not in uids and child.version <= version:
                self.drop_child(namespace, name)

    def sweep_pods(self, namespaces: list[str], uids: set[str], version: int) -> None:
        known = [pod for pod in self._pods.values() if covers(namespaces, pod.job[1])]
        self._sweep_pods(known, uids, version)

    def replace_attempt(self, job_uid: str, namespace: str, attempt: int, listed: Iterable[Obj], version: int) -> None:
        """Take over a fresh list of the pods of one attempt."""
        known = [self._pods[uid] for uid in self._pods_of.get(job_uid, ())]
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


def _ignore(_: Key) -> None:
    pass


def _version(obj: Obj) -> int:
    return int(obj["metadata"]["resourceVersion"])
