"""Where the pods of a job go: what its spec says of nodes and neighbours, and what stands for what it does not say."""

from typing import Any

from trl_contract.pod import Pod
from trl_operator.api.job import Job
from trl_operator.constants import LABEL_JOB_UID

Obj = dict[str, Any]

HOSTNAME = "kubernetes.io/hostname"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
UNDISTURBED = {
    # A mesh's sidecar outlives the trainer and keeps the pod from ending.
    "sidecar.istio.io/inject": "false",
    # A pod that is moved costs its whole gang the steps since the last checkpoint.
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Annotations of pods whose job says nothing else."""


def annotations(job: Job) -> dict[str, str]:
    """Return the annotations that the spec asks for, those that stand for what it does not say among them."""
    return UNDISTURBED | dict(job.copied_annotations) | (_pod(job).annotations or {})


def placement(job: Job) -> Obj:
    """Return the fields of a pod that say where it goes, without those that say nothing."""
    cluster, pod = job.cluster, _pod(job)
    found: Obj = {
        "nodeSelector": cluster.node_selector,
        "tolerations": [toleration.to_wire() for toleration in cluster.tolerations or []],
        "affinity": _affinity(job),
        "topologySpreadConstraints": _spread(job),
        "priorityClassName": cluster.priority_class_name,
        "schedulerName": cluster.scheduler_name,
        "runtimeClassName": pod.runtime_class_name,
    }
    return {name: value for name, value in found.items() if value}


def _pod(job: Job) -> Pod:
    return job.cluster.pod or Pod()


def _affinity(job: Job) -> Obj:
    affinity = _pod(job).affinity
    found: Obj = affinity.to_wire() if affinity else {}
    for kind in ("podAffinity", "podAntiAffinity"):
        said = found.get(kind, {})
        if REQUIRED in said:
            said[REQUIRED] = [_of_job(job) | term for term in said[REQUIRED]]
        for term in said.get(PREFERRED, ()):
            term["podAffinityTerm"] = _of_job(job) | term["podAffinityTerm"]
    if job.cluster.one_pod_per_node:
        apart = found.setdefault("podAntiAffinity", {})
        apart[REQUIRED] = [*apart.get(REQUIRED, ()), {"topologyKey": HOSTNAME, **_of_job(job)}]
    return found


def _spread(job: Job) -> list[Obj]:
    said = _pod(job).topology_spread_constraints
    if said is not None:
        return [_of_job(job) | constraint.to_wire() for constraint in said]
    if job.cluster.num_nodes == 1 or job.cluster.one_pod_per_node:
        return []
    return [{"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway", **_of_job(job)}]


def _of_job(job: Job) -> Obj:
    return {"labelSelector": {"matchLabels": {LABEL_JOB_UID: job.uid}}}
