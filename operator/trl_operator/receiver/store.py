"""The little that the receiver has to know: which pods may report for which jobs, and what is known already."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trl_operator.backend import pod_from
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.kube import JOBS, PODS
from trl_operator.plan.observation import Attempt, Key, Pod, current_attempt
from trl_operator.store.objects import key_of
from trl_operator.store.watched import Watched, covers

Obj = dict[str, Any]


@dataclass(frozen=True)
class ReportingJob:
    """A job as far as its reports are concerned."""

    uid: str
    version: int
    attempt: Attempt | None
    ended: bool
    progress: Obj
    """attempt, percentage and lastUpdateTime of what its status shows; empty before the first report."""


def reporting_job(obj: Obj) -> ReportingJob:
    """Return what matters of a stored job."""
    status = obj.get("status", {})
    progress = status.get("progress", {})
    known = {name: progress[name] for name in ("attempt", "percentage", "lastUpdateTime") if name in progress}
    version = int(obj["metadata"]["resourceVersion"])
    return ReportingJob(obj["metadata"]["uid"], version, current_attempt(obj), "completionTime" in status, known)


class Store:
    """The newest known state of jobs and of pods with our labels."""

    def __init__(self) -> None:
        self.jobs: dict[Key, ReportingJob] = {}
        self.pods: dict[str, Pod] = {}

    def watched(self) -> list[Watched]:
        """Return what has to be watched to keep this store."""
        jobs = [
            Watched(resource, self.put_job, self._drop_job, partial(self._sweep_jobs, kind))
            for kind, resource in JOBS.items()
        ]
        return [*jobs, Watched(PODS, self.put_pod, self._drop_pod, self._sweep_pods, LABEL_JOB_UID)]

    def put_job(self, obj: Obj) -> None:
        job, known = reporting_job(obj), self.jobs.get(key_of(obj))
        if known is None or known.version < job.version:
            self.jobs[key_of(obj)] = job

    def put_pod(self, obj: Obj) -> None:
        uid, pod = obj["metadata"]["uid"], pod_from(obj)
        known = self.pods.get(uid)
        if pod is None:
            self.pods.pop(uid, None)
        elif known is None or known.version < pod.version:
            # What may be long, and nobody asks for here.
            self.pods[uid] = replace(
                pod,
                message="",
                unschedulable="",
                node_selector=(),
                tolerations=(),
                claims=(),
                waiting_message="",
                exit_message="",
            )

    def _drop_job(self, obj: Obj) -> None:
        known = self.jobs.get(key_of(obj))
        if known is not None and known.uid == obj["metadata"]["uid"]:
            del self.jobs[key_of(obj)]

    def _drop_pod(self, obj: Obj) -> None:
        self.pods.pop(obj["metadata"]["uid"], None)

    def _sweep_jobs(self, kind: str, namespaces: list[str], uids: set[str], version: int) -> None:
        for key, job in list(self.jobs.items()):
            if key[0] == kind and covers(namespaces, key[1]) and job.uid not in uids and job.version <= version:
                del self.jobs[key]

    def _sweep_pods(self, namespaces: list[str], uids: set[str], version: int) -> None:
        for uid, pod in list(self.pods.items()):
            if covers(namespaces, pod.job[1]) and uid not in uids and pod.version <= version:
                del self.pods[uid]
