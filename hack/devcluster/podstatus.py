"""Pod statuses as a scheduler and a kubelet write them; pure but for the clock."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

Pod = dict[str, Any]  # as the API server writes it
Status = dict[str, Any]
JOB_NAMES = ("training.kubeflow.org/job-name", "jobset.sigs.k8s.io/jobset-name")  # TrainJob and JobSet share a name


def running(pod: Pod) -> Status:
    """All containers run and are ready."""
    state = {"running": {"startedAt": _now()}}
    return {**_status(pod, "Running", state, ready=True), "startTime": _now(), "podIP": "10.244.0.10"}


def ended(pod: Pod, exit_code: int, reason: str, message: str) -> Status:
    """All containers have ended with this code, reason and termination message."""
    states = [status["state"] for status in pod["status"].get("containerStatuses", ())]
    started = next((state["running"]["startedAt"] for state in states if "running" in state), _now())
    end = {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": started, "finishedAt": _now()}
    return _status(pod, "Failed" if exit_code else "Succeeded", {"terminated": end})


def evicted(pod: Pod, message: str, own_fault: bool) -> Status:
    """The kubelet has killed the pod, to save the node or because the pod was over a limit of its own."""
    status = ended(pod, 137, "Error", "")
    if not own_fault:
        status["conditions"].append(condition("DisruptionTarget", "True", "TerminationByKubelet", message))
    return {**status, "reason": "Evicted", "message": message}


def waiting(pod: Pod, reason: str, message: str) -> Status:
    """No container has started."""
    return _status(pod, "Pending", {"waiting": {"reason": reason, "message": message}})


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    """One condition of a pod or a node, as of now."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": _now()}


def message_of(pod: Pod, kind: str) -> str | None:
    """The message of one of the pod's conditions, if it has it."""
    return next((c.get("message") for c in pod["status"].get("conditions", ()) if c["type"] == kind), None)


def job_of(pod: Pod) -> str | None:
    """The name of the PyTorchJob or TrainJob that the pod belongs to."""
    labels = pod["metadata"].get("labels", {})
    return next((labels[key] for key in JOB_NAMES if key in labels), None)


def select(pods: Iterable[Pod], node: str, job: str | None, phase: str | None) -> list[Pod]:
    """The pods of the node, by name; only those of a PyTorchJob or TrainJob, only those in a phase."""
    found = [pod for pod in pods if pod["spec"].get("nodeName") == node and phase in (None, pod["status"]["phase"])]
    if job is not None:
        found = [pod for pod in found if job_of(pod) == job]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def _status(pod: Pod, phase: str, state: dict[str, Any], ready: bool = False) -> Status:
    containers: Sequence[dict[str, Any]] = pod["spec"]["containers"]
    common = {"imageID": "", "ready": ready, "started": ready, "restartCount": 0, "state": state}
    return {
        "phase": phase,
        "containerStatuses": [{"name": c["name"], "image": c["image"], **common} for c in containers],
        "conditions": [condition(kind, str(ready)) for kind in ("Ready", "ContainersReady")],
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
