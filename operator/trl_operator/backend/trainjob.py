"""TrainJob, of Kubeflow Trainer with JobSet.

Trainer makes of a TrainJob and of the TrainingRuntime that it names a JobSet of the TrainJob's name, JobSet makes of it
one Job, and that the pods. Each attempt has a TrainingRuntime of its own, which holds its pod template (all read in and
run with Trainer 2.3.0 and JobSet 0.12.0).
"""

import re
from typing import Any, Final

from trl_operator.api.job import Job
from trl_operator.backend import workload
from trl_operator.plan.observation import Child, Owner, controller
from trl_operator.render.environment import environment
from trl_operator.render.manifests import MASTER_PORT, Installation, child_metadata, pod_template, workload_metadata
from trl_operator.resource import Resource

Obj = dict[str, Any]

NAME: Final = "trainjob"
KIND: Final = "TrainJob"
GROUP: Final = "trainer.kubeflow.org"
RESOURCE: Final = Resource(GROUP, "v1alpha1", "trainjobs")
RUNTIMES: Final = Resource(GROUP, "v1alpha1", "trainingruntimes")
MISSING: Final = (
    "there are no TrainJobs in this cluster, or the operator was installed without them: install Kubeflow Trainer 2.2"
    " or newer with JobSet, and name trainjob in the chart's backend or otherBackends"
)
CONTAINER: Final = "node"
"""Trainer insists on this name."""
LABEL_INDEX: Final = "batch.kubernetes.io/job-completion-index"
DENIED: Final = frozenset(
    {"TrainJobResourcesCreationFailed", "HeadlessServiceCreationFailed", "JobCreationFailed", "FailedCreate"}
)
"""Quota and Pod Security denials of pods exist only as events of the Job; those of the Job and of the JobSet as events
of what makes these."""
BESIDE: Final = (RUNTIMES,)

NODES = "n"
"""Name of the only replicated job. A letter, since JobSet wants the names of pods, job's name and attempt and this and
two numbers and a suffix, to fit into 63 characters."""
_KUEUES_REFUSAL = re.compile(r"runtime '[^']+' not found")
_JOB = re.compile(rf"(.+)-{NODES}-0")
REPORTING = "KUBEFLOW_TRAINER_SERVER_"
"""Prefix of the variables that say where reports go."""


def beside(job: Job, attempt: int, installation: Installation) -> list[tuple[Resource, Obj]]:
    """Return the attempt's TrainingRuntime. Nothing below it retries: a pod that is gone is the end of the attempt."""
    template = pod_template(job, attempt, installation, CONTAINER, _launch(job, attempt))
    template["spec"]["restartPolicy"] = "Never"
    replicated: Obj = {
        "name": NODES,
        "replicas": 1,
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "completionMode": "Indexed",
                "backoffLimit": 0,
                # A pod that is being deleted has no other one beside it before it is counted as failed.
                "podReplacementPolicy": "Failed",
                "template": template,
            },
        },
    }
    metadata = child_metadata(job, attempt)
    spec: Obj = {
        "mlPolicy": {"numNodes": job.cluster.num_nodes},
        "template": {
            "metadata": {"labels": metadata["labels"]},
            "spec": {
                "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                "failurePolicy": {"maxRestarts": 0},
                "replicatedJobs": [replicated],
            },
        },
    }
    if policy := job.cluster.pod_group_policy:
        spec["podGroupPolicy"] = {policy: {}}
    runtime = {"apiVersion": _api_version(), "kind": "TrainingRuntime", "metadata": metadata, "spec": spec}
    return [(RUNTIMES, runtime)]


def manifest(job: Job, attempt: int, installation: Installation) -> Obj:
    """Return the attempt's TrainJob.

    With its status gate on, Trainer writes where reports go into every trainer container, over what the runtime says;
    what the TrainJob says goes over that.
    """
    env = environment(job, installation.receiver_url)
    spec: Obj = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": job.child_name(attempt)},
        "trainer": {"env": [variable for variable in env if variable["name"].startswith(REPORTING)]},
    }
    if job.queue_name:
        spec["suspend"] = True
    metadata = workload_metadata(job, attempt)
    return {"apiVersion": _api_version(), "kind": KIND, "metadata": metadata, "spec": spec}


def _api_version() -> str:
    return f"{RESOURCE.group}/{RESOURCE.version}"


def _launch(job: Job, attempt: int) -> list[Obj]:
    """Return what torchrun needs. Trainer's own policy for torch would write the same, by rules of its own."""
    name = job.child_name(attempt)
    rank = {"fieldRef": {"fieldPath": f"metadata.labels['{LABEL_INDEX}']"}}
    return [
        {"name": "PET_NNODES", "value": str(job.cluster.num_nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(job.cluster.processes_per_node)},
        {"name": "PET_NODE_RANK", "valueFrom": rank},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-{NODES}-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": MASTER_PORT},
    ]


def is_early(words: str) -> bool:
    """Whether Trainer's webhook, or Kueue's, has refused a TrainJob: they may see a TrainingRuntime later than the API
    server."""
    return "must be created before the TrainJob is created" in words or bool(_KUEUES_REFUSAL.search(words))


def child_from(obj: Obj) -> Child | None:
    """Return what became of a TrainJob; None if no job controls it."""
    return workload.child(obj, KIND, RESOURCE, "Complete", ("spec", "suspend"))


def maker(pod: Obj) -> Owner | None:
    """Return the TrainJob whose Job controls a pod, by the Job's name.

    Its uid is not told, and Job and JobSet may be gone while their pods still come to their end. The name will do:
    Trainer too knows a TrainJob's JobSet by its name alone, and what makes Jobs or pods from a template, as a CronJob
    or a Deployment does, gives them other names and owners, whatever labels the template has.
    """
    owner = controller(pod["metadata"])
    if owner.get("kind") != "Job" or owner.get("apiVersion") != "batch/v1":
        return None
    return _owner_of_job(owner["name"])


def _owner_of_job(name: str) -> Owner | None:
    found = _JOB.fullmatch(name)
    return Owner(found[1], "") if found else None


def concerned(about: Obj) -> Owner | None:
    """Return the TrainJob that an event is about, or whose JobSet or Job it is about."""
    # Whoever writes an event need not say either.
    kind, name = about.get("kind"), about.get("name", "")
    if kind == KIND:
        return Owner(name, about.get("uid", ""))
    if kind == "JobSet":
        return Owner(name, "")
    return _owner_of_job(name) if kind == "Job" else None
