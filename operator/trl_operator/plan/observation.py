"""What is known of an attempt's children, cut down from their objects."""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from trl_contract.cluster import BackendName
from trl_operator.api.job import child_name
from trl_operator.api.kinds import KINDS
from trl_operator.api.status import workload
from trl_operator.constants import (
    GROUP,
    LABEL_ATTEMPT,
    LABEL_JOB_KIND,
    LABEL_JOB_NAME,
    LABEL_JOB_UID,
    LABEL_QUEUE,
    LABEL_QUEUE_PRIORITY,
)

Key = tuple[str, str, str]
"""Kind, namespace and name of a job."""

LOST_NODE_SECONDS = 60
"""A pod that is still there so long after its grace period counts as gone: its node is lost, or its kubelet hangs.
Should it wake up, it publishes nothing (the trainer's fence)."""
_NO_NUMBER = -1
_RFC_3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})")


@dataclass(frozen=True)
class Pod:
    """A pod of an attempt; one that is gone is remembered as it was seen last."""

    job: Key
    name: str
    uid: str
    version: int
    job_uid: str
    attempt: int
    index: int
    """Of the node, from 0; -1 if its label says nothing of use."""
    phase: str
    child: str = ""
    """Name of the workload that it is of; empty if it is of none."""
    child_uid: str = ""
    """Empty too if the pod names its workload, but not which one of this name."""
    node: str = ""
    reason: str = ""
    message: str = ""
    deletion_time: datetime | None = None
    disruption: str = ""
    """Reason of the condition DisruptionTarget."""
    unschedulable: str = ""
    """Why it has no node, in the scheduler's words."""
    node_selector: tuple[tuple[str, str], ...] = ()
    """What it asks of its node: labels and values. Only of one without a node, as are its tolerations."""
    tolerations: tuple[str, ...] = ()
    """Keys of the taints that it tolerates, but for those of Kubernetes itself; empty: any key."""
    claims: tuple[tuple[str, str], ...] = ()
    """Its volumes that are of a claim: name of the volume, name of the claim."""
    prepared: bool = False
    """Its volumes are mounted and its network is there: what was in the way of that no longer is."""
    scheduled_time: datetime | None = None
    """When it got its node."""
    waiting_reason: str = ""
    waiting_message: str = ""
    started: bool = False
    """Its container has run."""
    exit_code: int | None = None
    exit_reason: str = ""
    exit_message: str = ""
    exit_time: str = ""
    gone: bool = False

    @property
    def finished(self) -> bool:
        return self.gone or self.phase in ("Succeeded", "Failed")

    def is_over(self, now: datetime) -> bool:
        """Whether nobody has to wait for its end any longer."""
        late = timedelta(seconds=LOST_NODE_SECONDS)
        return self.finished or (self.deletion_time is not None and now > self.deletion_time + late)

    def vanished(self) -> "Pod":
        return replace(self, gone=True)


@dataclass(frozen=True)
class Child:
    """A workload: what runs an attempt, and what became of it."""

    job: Key
    api_version: str
    kind: str
    name: str
    uid: str
    version: int
    owner_uid: str
    attempt: int
    """-1 if its label says nothing of use."""
    state: Literal["active", "succeeded", "failed"]
    deleting: bool = False
    message: str = ""
    created: str = ""
    """RFC 3339."""
    suspended_by: str = ""
    """Who has suspended it: we only do so when it is made for a queue. Its pods go, and come again when it is let go.
    Empty: nobody."""
    queue: str = ""
    """Queue that its label names; empty: none."""
    queue_priority: str = ""
    """WorkloadPriorityClass that its label names; empty: none."""


@dataclass(frozen=True)
class Attempt:
    """An attempt of a job, to tell its pods from others: in other namespaces anybody may use the same labels."""

    job: Key
    job_uid: str
    number: int
    child: str
    """Name of its workload."""
    child_uid: str = ""
    """Empty while nobody knows it."""
    backend: BackendName = "pytorchjob"
    """What runs it."""

    def has(self, pod: Pod) -> bool:
        """Return whether the pod is one of the attempt's."""
        said = (pod.job, pod.job_uid, pod.attempt, pod.child)
        known = (self.job, self.job_uid, self.number, self.child)
        return said == known and (self.child_uid == pod.child_uid or "" in (self.child_uid, pod.child_uid))


@dataclass(frozen=True)
class Owner:
    """The workload that a pod is of, or that an event tells of."""

    name: str
    uid: str
    """Empty if only its name is known."""


@dataclass(frozen=True)
class JobOwner:
    """The job that controls a workload."""

    job: Key
    uid: str


@dataclass(frozen=True)
class Mark:
    """What the reports of an attempt say, and since when they say no more than that, by their own clock. The leader
    remembers it; a new one begins anew."""

    said: tuple[int, int, str, str]
    """Attempt, step, activity and what is shown of both."""
    since: datetime


def current_attempt(obj: dict[str, Any]) -> Attempt | None:
    """Return the attempt that the status of a stored job names; None before the first."""
    metadata, status = obj["metadata"], obj.get("status", {})
    if "attempt" not in status:
        return None
    current: int = status["attempt"]
    known = workload(status)
    return Attempt(
        job=(obj["kind"], metadata["namespace"], metadata["name"]),
        job_uid=metadata["uid"],
        number=current,
        child=child_name(KINDS[obj["kind"]], metadata["name"], current),
        child_uid=known.get("uid", ""),
        backend=status.get("run", {}).get("backend", "pytorchjob"),
    )


def parse_time(text: str | None) -> datetime | None:
    """Return an RFC 3339 time; None for anything else: the API server stores no other form of ISO 8601."""
    if not text or not _RFC_3339.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None


def format_time(time: datetime) -> str:
    """Return a time in Kubernetes' form, in whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def controller(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the owner reference of an object's controller; empty if it has none."""
    return next((ref for ref in metadata.get("ownerReferences") or () if ref.get("controller")), {})


def controller_uid(metadata: dict[str, Any]) -> str:
    """Return the uid of an object's controller; empty if it has none."""
    return str(controller(metadata).get("uid", ""))


def writer(obj: dict[str, Any], *path: str) -> str:
    """Return which field manager has set the field at a path of names; "somebody" if that is not told."""
    for entry in obj["metadata"].get("managedFields", ()):
        found = entry.get("fieldsV1", {})
        for name in path[:-1]:
            found = found.get(f"f:{name}", {})
        if f"f:{path[-1]}" in found:
            return str(entry["manager"])
    return "somebody"


def job_owner(metadata: dict[str, Any]) -> JobOwner | None:
    """Return the job that controls an object; None if none does."""
    owner = controller(metadata)
    if owner.get("kind") not in KINDS or not owner.get("apiVersion", "").startswith(f"{GROUP}/"):
        return None
    return JobOwner((owner["kind"], metadata["namespace"], owner["name"]), owner["uid"])


def queue_of(metadata: dict[str, Any]) -> dict[str, str]:
    """Return the fields of a Child with what the labels of a workload say of its queue."""
    labels = metadata.get("labels", {})
    return {"queue": labels.get(LABEL_QUEUE, ""), "queue_priority": labels.get(LABEL_QUEUE_PRIORITY, "")}


def pod_from(
    obj: dict[str, Any], owner: Owner = Owner("", ""), container: str = "", index_label: str = ""
) -> Pod | None:
    """Return what matters of a pod; None if its labels name no attempt of a job: anybody may write labels.

    `owner` is the workload that it is of, `container` the name of the trainer's container, and `index_label` the label
    with its place among the nodes.
    """
    metadata, status = obj["metadata"], obj.get("status", {})
    labels = metadata.get("labels", {})
    kind, name, attempt = labels.get(LABEL_JOB_KIND), labels.get(LABEL_JOB_NAME), number(metadata, LABEL_ATTEMPT)
    if kind not in KINDS or not name or attempt == _NO_NUMBER:
        return None
    return Pod(
        job=(kind, metadata["namespace"], name),
        name=metadata["name"],
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        job_uid=labels.get(LABEL_JOB_UID, ""),
        attempt=attempt,
        index=number(metadata, index_label, digits=4),
        phase=status.get("phase", "Pending"),
        child=owner.name,
        child_uid=owner.uid,
        node=obj.get("spec", {}).get("nodeName", ""),
        claims=_claims(obj.get("spec", {})),
        **_from_spec(obj.get("spec", {})),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        deletion_time=parse_time(metadata.get("deletionTimestamp")),
        **_from_conditions(status),
        **_from_container(status, container),
    )


def _claims(spec: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    volumes = spec.get("volumes") or ()
    return tuple((v["name"], v["persistentVolumeClaim"]["claimName"]) for v in volumes if "persistentVolumeClaim" in v)


def _from_spec(spec: dict[str, Any]) -> dict[str, Any]:
    if spec.get("nodeName"):
        return {}
    keys = [toleration.get("key", "") for toleration in spec.get("tolerations") or ()]
    return {
        "node_selector": tuple((spec.get("nodeSelector") or {}).items()),
        # Kubernetes gives every pod some of its own.
        "tolerations": tuple(key for key in keys if not key.startswith("node.kubernetes.io/")),
    }


def _from_conditions(status: dict[str, Any]) -> dict[str, Any]:
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    disruption = conditions.get("DisruptionTarget", {})
    time = parse_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None
    return {
        "disruption": disruption.get("reason", "") if disruption.get("status") == "True" else "",
        "unschedulable": scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        "prepared": conditions.get("PodReadyToStartContainers", {}).get("status") == "True",
        "scheduled_time": time,
    }


def _from_container(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next((c for c in status.get("containerStatuses") or () if c["name"] == name), {})
    state = found.get("state", {})
    waiting, ended = state.get("waiting", {}), state.get("terminated", {})
    return {
        "waiting_reason": waiting.get("reason", ""),
        "waiting_message": waiting.get("message", ""),
        "started": bool(state.get("running") or ended.get("startedAt") or found.get("lastState", {})),
        "exit_code": ended.get("exitCode"),
        "exit_reason": ended.get("reason", ""),
        "exit_message": ended.get("message", ""),
        "exit_time": ended.get("finishedAt") or "",
    }


def number(metadata: dict[str, Any], label: str, digits: int = 9) -> int:
    """Return the number in a label; -1 for what is none or has more digits: the status must be able to hold it."""
    text = str(metadata.get("labels", {}).get(label, ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else _NO_NUMBER
