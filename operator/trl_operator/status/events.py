"""Which transitions of the status are told as events."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from trl_operator.api.job import Job
from trl_operator.api.status import JobStatus
from trl_operator.api.stored import read_status
from trl_operator.constants import API_VERSION
from trl_operator.plan.observation import format_time
from trl_operator.plan.starting import WAITING_REASONS
from trl_operator.status.conditions import Status


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about a job."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def manifest(event: Event, job: Job, *, name: str, reporter: str, now: datetime) -> dict[str, Any]:
    """Return the object of an event about `job`."""
    time = format_time(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": job.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": job.info.kind,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1024],
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": "trl-operator"},
        "reportingComponent": "trl-operator",
        "reportingInstance": reporter,
    }


def events(before: Status, after: Status) -> list[Event]:
    """Return what happened between two stored statuses, oldest first."""
    old, new = read_status(before), read_status(after)
    return [*_waiting(old, new), *_attempts(old, new), *_ends(old, new)]


def _waiting(old: JobStatus, new: JobStatus) -> list[Event]:
    found: list[Event] = []
    for kind, told in (("Accepted", "Warning"), ("UpstreamReady", "Normal")):
        waits = new.condition(kind)
        if waits and waits.status == "False" and waits.reason != old.reason(kind):
            found.append(Event("Warning" if told == "Warning" else "Normal", waits.reason, waits.message))
    return found


def _attempts(old: JobStatus, new: JobStatus) -> list[Event]:
    found, running = [], new.condition("Running")
    if running and new.restarts > old.restarts:
        found.append(Event("Warning", "AttemptFailed", f"{running.reason}: {running.message}"))
    if len(new.adaptations) > len(old.adaptations):
        last = new.adaptations[-1]
        sizes = f"perDeviceBatchSize {last.per_device_batch_size} and gradientAccumulationSteps"
        message = f"attempt {last.attempt} trains with {sizes} {last.gradient_accumulation_steps}"
        found.append(Event("Normal", "MicroBatchShrunk", message))
    if new.workload and not old.workload:
        message = f"attempt {new.attempt} is {new.workload.kind} {new.workload.name}"
        found.append(Event("Normal", "AttemptStarted", message))
    if running and new.is_true("Running") and not old.is_true("Running"):
        found.append(Event("Normal", "Running", running.message))
    if running and running.reason in WAITING_REASONS and running.reason != old.reason("Running"):
        found.append(Event("Warning", running.reason, running.message))
    return found


def _ends(old: JobStatus, new: JobStatus) -> list[Event]:
    found, rests, ended = [], new.condition("Suspended"), new.condition("Succeeded")
    if rests and rests.reason != old.reason("Suspended"):
        found.append(Event("Normal", rests.reason, rests.message))
    if ended and new.completion_time and not old.completion_time:
        if ended.status == "True" or ended.reason == "Cancelled":
            found.append(Event("Normal", ended.reason, ended.message))
        else:
            found.append(Event("Warning", "Failed", f"{ended.reason}: {ended.message}"))
    return found
