"""What is known of an attempt's children, cut down from their objects."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from trl_operator.constants import (
    CONTAINER,
    LABEL_ATTEMPT,
    LABEL_JOB_KIND,
    LABEL_JOB_NAME,
    LABEL_JOB_UID,
    LABEL_REPLICA_INDEX,
)

Key = tuple[str, str, str]
"""Kind, namespace and name of a job."""


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
    phase: str
    node: str = ""
    reason: str = ""
    message: str = ""
    deletion_time: datetime | None = None
    disruption: str = ""
    """Reason of the condition DisruptionTarget."""
    unschedulable: str = ""
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

    def vanished(self) -> "Pod":
        return replace(self, gone=True)


@dataclass(frozen=True)
class Child:
    """A PyTorchJob."""

    job: Key
    name: str
    uid: str
    version: int
    owner_uid: str
    attempt: int
    state: Literal["active", "succeeded", "failed"]
    deleting: bool = False
    message: str = ""


def parse_time(text: str | None) -> datetime | None:
    """Return a Kubernetes time; None for none."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def format_time(time: datetime) -> str:
    """Return a time in Kubernetes' form, in whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def controller_uid(metadata: dict[str, Any]) -> str:
    """Return the uid of an object's controller; empty if it has none."""
    return next((str(ref["uid"]) for ref in metadata.get("ownerReferences") or () if ref.get("controller")), "")


def job_key(metadata: dict[str, Any]) -> Key:
    """Return the job that a labelled object belongs to, as its labels say."""
    labels = metadata.get("labels", {})
    return labels.get(LABEL_JOB_KIND, ""), metadata["namespace"], labels.get(LABEL_JOB_NAME, "")


def child_from(obj: dict[str, Any]) -> Child:
    """Return what matters of a PyTorchJob."""
    metadata = obj["metadata"]
    conditions = {c["type"]: c for c in obj.get("status", {}).get("conditions") or () if c["status"] == "True"}
    state: Literal["active", "succeeded", "failed"] = "active"
    if "Failed" in conditions:
        state = "failed"
    elif "Succeeded" in conditions:
        state = "succeeded"
    return Child(
        job=job_key(metadata),
        name=metadata["name"],
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        owner_uid=controller_uid(metadata),
        attempt=int(metadata.get("labels", {}).get(LABEL_ATTEMPT, -1)),
        state=state,
        deleting="deletionTimestamp" in metadata,
        message=conditions.get("Failed", {}).get("message", ""),
    )


def pod_from(obj: dict[str, Any]) -> Pod:
    """Return what matters of a pod."""
    metadata, status = obj["metadata"], obj.get("status", {})
    labels = metadata.get("labels", {})
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    disruption = conditions.get("DisruptionTarget", {})
    container: dict[str, Any] = next((c for c in status.get("containerStatuses") or () if c["name"] == CONTAINER), {})
    state = container.get("state", {})
    waiting, ended = state.get("waiting", {}), state.get("terminated", {})
    return Pod(
        job=job_key(metadata),
        name=metadata["name"],
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        job_uid=labels.get(LABEL_JOB_UID, ""),
        attempt=int(labels.get(LABEL_ATTEMPT, -1)),
        index=int(labels.get(LABEL_REPLICA_INDEX, -1)),
        phase=status.get("phase", "Pending"),
        node=obj.get("spec", {}).get("nodeName", ""),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        deletion_time=parse_time(metadata.get("deletionTimestamp")),
        disruption=disruption.get("reason", "") if disruption.get("status") == "True" else "",
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        started=bool(state.get("running") or ended.get("startedAt") or container.get("lastState", {})),
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason", ""),
        exit_message=ended.get("message", ""),
        exit_time=ended.get("finishedAt") or "",
    )
