"""What workloads of all kinds have in common."""

from typing import Any, Literal

from trl_operator.constants import LABEL_ATTEMPT
from trl_operator.plan.observation import Child, job_owner, number, queue_of, writer
from trl_operator.resource import Resource

Obj = dict[str, Any]


def child(obj: Obj, kind: str, resource: Resource, succeeded: str, suspend: tuple[str, ...]) -> Child | None:
    """Return what became of a workload; None if no job controls it: whatever its labels say, it is not ours.

    `succeeded` is the condition that says so, and `suspend` the path of the field that holds it back.
    """
    metadata = obj["metadata"]
    owner = job_owner(metadata)
    if owner is None:
        return None
    conditions = {c["type"]: c for c in obj.get("status", {}).get("conditions") or () if c["status"] == "True"}
    state: Literal["active", "succeeded", "failed"] = "active"
    if "Failed" in conditions:
        state = "failed"
    elif succeeded in conditions:
        state = "succeeded"
    return Child(
        job=owner.job,
        kind=kind,
        api_version=f"{resource.group}/{resource.version}",
        name=metadata["name"],
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        owner_uid=owner.uid,
        attempt=number(metadata, LABEL_ATTEMPT),
        state=state,
        deleting="deletionTimestamp" in metadata,
        message=conditions.get("Failed", {}).get("message", ""),
        created=metadata.get("creationTimestamp", ""),
        suspended_by=writer(obj, *suspend) if _value(obj, suspend) else "",
        **queue_of(metadata),
    )


def _value(obj: Obj, path: tuple[str, ...]) -> Any:
    found: Any = obj
    for name in path:
        found = (found or {}).get(name)
    return found
