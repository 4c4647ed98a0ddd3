"""What the watches saw: jobs, PyTorchJobs and pods, kept small."""

from collections.abc import Callable, Iterable
from typing import Any

from trl_operator.plan.observation import Attempt, Child, Key, Pod, child_from, pod_from

Obj = dict[str, Any]


def key_of(obj: Obj) -> Key:
    """Return the key of a job."""
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


class Cache:
    """The newest known state of each object; `changed` is called with the job that an object belongs to.

    Of jobs only identity and status are kept: a spec may be big, and whoever decides reads the live object.
    A pod that is gone stays until its attempt is over: its last words say why the attempt failed.
    """

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self.jobs: dict[Key, Obj] = {}
        self._children: dict[tuple[str, str], Child] = {}
        self._pods: dict[str, Pod] = {}
        self._pods_of: dict[str, set[str]] = {}

    def put_job(self, obj: Obj) -> None:
        key = key_of(obj)
        known = self.jobs.get(key)
        if known is None or _version(known) < _version(obj):
            metadata = {name: obj["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
            self.jobs[key] = {"kind": obj["kind"], "metadata": metadata, "status": obj.get("status", {})}
            self._changed(key)

    def drop_job(self, key: Key) -> None:
        """Forget a job and all pods of it."""
        if obj := self.jobs.pop(key, None):
            self.drop_pods(obj["metadata"]["uid"])
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

    def put_pod(self, obj: Obj) -> None:
        pod = pod_from(obj)
        if pod is None:
            self._vanish(obj["metadata"]["uid"])
            return
        known = self._pods.get(pod.uid)
        if known is None or (known.version < pod.version and not known.gone):
            self._pods[pod.uid] = pod
            self._pods_of.setdefault(pod.job_uid, set()).add(pod.uid)
            self._changed(pod.job)

    def drop_pod(self, obj: Obj) -> None:
        """Remember the pod as gone, in its last state."""
        self.put_pod(obj)
        self._vanish(obj["metadata"]["uid"])

    def _vanish(self, uid: str) -> None:
        pod = self._pods.get(uid)
        if pod is not None and not pod.gone:
            self._pods[uid] = pod.vanished()
            self._changed(pod.job)

    def drop_pods(self, job_uid: str, before_attempt: int | None = None) -> None:
        """Forget the pods of a job, or of its attempts before one."""
        for uid in list(self._pods_of.get(job_uid, ())):
            if before_attempt is None or self._pods[uid].attempt < before_attempt:
                del self._pods[uid]
                self._pods_of[job_uid].discard(uid)
        if not self._pods_of.get(job_uid):
            self._pods_of.pop(job_uid, None)

    def children(self, job_uid: str, namespace: str) -> list[Child]:
        return [c for c in self._children.values() if c.owner_uid == job_uid and c.job[1] == namespace]

    def pods(self, attempt: Attempt) -> list[Pod]:
        found = (self._pods[uid] for uid in self._pods_of.get(attempt.job_uid, ()))
        return [pod for pod in found if attempt.has(pod)]

    def pod(self, uid: str) -> Pod | None:
        return self._pods.get(uid)

    def replace_jobs(self, kind: str, namespaces: list[str], listed: Iterable[Obj], version: int) -> None:
        """Take over a fresh list of one kind: watches do not tell what was deleted while they were interrupted."""
        seen = set()
        for obj in listed:
            seen.add(key_of(obj))
            self.put_job(obj)
        for key, obj in list(self.jobs.items()):
            if key[0] == kind and _covers(namespaces, key[1]) and key not in seen and _version(obj) <= version:
                self.drop_job(key)

    def replace_children(self, namespaces: list[str], listed: Iterable[Obj], version: int) -> None:
        seen = set()
        for obj in listed:
            seen.add((obj["metadata"]["namespace"], obj["metadata"]["name"]))
            self.put_child(obj)
        for place, child in list(self._children.items()):
            if _covers(namespaces, place[0]) and place not in seen and child.version <= version:
                self.drop_child(*place)

    def replace_pods(self, namespaces: list[str], listed: Iterable[Obj], version: int) -> None:
        seen = set()
        for obj in listed:
            seen.add(obj["metadata"]["uid"])
            self.put_pod(obj)
        for uid, pod in list(self._pods.items()):
            if _covers(namespaces, pod.job[1]) and uid not in seen and pod.version <= version:
                self._vanish(uid)


def _version(obj: Obj) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _covers(namespaces: list[str], namespace: str) -> bool:
    return not namespaces or namespace in namespaces
