"""PyTorchJob, of Kubeflow's training-operator.

Workers only: without a Master the job succeeds only when every worker has, and no init container is injected (all read
in training-operator 1.9.3).
"""

from typing import Any, Final

from trl_operator.api.job import Job
from trl_operator.backend import workload
from trl_operator.plan.observation import Child, Owner, controller
from trl_operator.render.manifests import MASTER_PORT, Installation, pod_template, workload_metadata
from trl_operator.resource import Resource

Obj = dict[str, Any]

NAME: Final = "pytorchjob"
KIND: Final = "PyTorchJob"
RESOURCE: Final = Resource("kubeflow.org", "v1", "pytorchjobs")
MISSING: Final = (
    "there are no PyTorchJobs in this cluster, or the operator was installed without them: install the"
    " training-operator, and name pytorchjob in the chart's backend or otherBackends"
)
CONTAINER: Final = "pytorch"
"""The training-operator insists on this name."""
LABEL_INDEX: Final = "training.kubeflow.org/replica-index"
DENIED: Final = frozenset({"FailedCreatePod"})
"""Quota and Pod Security denials exist only as events of the PyTorchJob."""
BESIDE: Final[tuple[Resource, ...]] = ()


def beside(job: Job, attempt: int, installation: Installation) -> list[tuple[Resource, Obj]]:
    """Return nothing: a PyTorchJob says all by itself."""
    return []


def manifest(job: Job, attempt: int, installation: Installation) -> Obj:
    """Return the attempt's PyTorchJob."""
    return {
        "apiVersion": f"{RESOURCE.group}/{RESOURCE.version}",
        "kind": KIND,
        "metadata": workload_metadata(job, attempt),
        "spec": {
            "nprocPerNode": str(job.cluster.processes_per_node),
            # Retries, deadline and TTL are ours: its own backoffLimit 0 deletes every pod, evidence included.
            "runPolicy": {"cleanPodPolicy": "Running", **_gang(job), **({"suspend": True} if job.queue_name else {})},
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": job.cluster.num_nodes,
                    "restartPolicy": "Never",
                    "template": pod_template(job, attempt, installation, CONTAINER, _launch(job, attempt)),
                }
            },
        },
    }


def _gang(job: Job) -> Obj:
    """Return what the training-operator is told of a pod group; of which kind it is, its own flag says."""
    return {"schedulingPolicy": {"minAvailable": job.cluster.num_nodes}} if job.cluster.pod_group_policy else {}


def _launch(job: Job, attempt: int) -> list[Obj]:
    """Return what torchrun needs beside PET_NNODES and PET_NPROC_PER_NODE, which the training-operator adds."""
    rank = {"fieldRef": {"fieldPath": f"metadata.labels['{LABEL_INDEX}']"}}
    return [
        {"name": "PET_NODE_RANK", "valueFrom": rank},
        {"name": "PET_MASTER_ADDR", "value": f"{job.child_name(attempt)}-worker-0"},
        {"name": "PET_MASTER_PORT", "value": MASTER_PORT},
    ]


def is_early(words: str) -> bool:
    """Return False: nothing is made before it."""
    return False


def child_from(obj: Obj) -> Child | None:
    """Return what became of a PyTorchJob; None if no job controls it."""
    return workload.child(obj, KIND, RESOURCE, "Succeeded", ("spec", "runPolicy", "suspend"))


def maker(pod: Obj) -> Owner | None:
    """Return the PyTorchJob that controls a pod."""
    owner = controller(pod["metadata"])
    if owner.get("kind") != KIND or not owner.get("apiVersion", "").startswith(f"{RESOURCE.group}/"):
        return None
    return Owner(owner["name"], owner["uid"])


def concerned(about: Obj) -> Owner | None:
    """Return the PyTorchJob that an event is about."""
    return Owner(about.get("name", ""), about.get("uid", "")) if about.get("kind") == KIND else None
