"""Which transitions of the status are told as events: each once, by whoever has written it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from trl_operator.api.status import JobStatus
from trl_operator.api.stored import read_status
from trl_operator.constants import API_VERSION
from trl_operator.plan.observation import format_time
from trl_operator.plan.starting import WAITING_REASONS
from trl_operator.status.conditions import Status

Type = Literal["Normal", "Warning"]


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about a job."""

    type: Type
    reason: str
    message: str


def manifest(event: Event, obj: dict[str, Any], *, name: str, reporter: str, now: datetime) -> dict[str, Any]:
    """Return the object of an event about the job `obj`."""
    time, about = format_time(now), obj["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about["namespace"]},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": obj["kind"],
            **{field: about[field] for field in ("namespace", "name", "uid")},
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


_STAND: tuple[tuple[str, tuple[str, ...], Type], ...] = (
    ("Accepted", ("False", "Unknown"), "Warning"),
    ("UpstreamReady", ("False", "Unknown"), "Normal"),
    ("Queued", ("True", "Unknown"), "Normal"),
    ("Suspended", ("True",), "Normal"),
    # True is for kstatus, and what Failed and Accepted say too.
    ("Stalled", ("Unknown",), "Warning"),
)
"""Conditions that are told when they get one of these values, or another reason with it, and when they lose it."""


def events(before: Status, after: Status) -> list[Event]:
    """Return what happened between a stored status and the next one of trl-operator-status, oldest first."""
    old, new = read_status(before), read_status(after)
    return [*_warned(old, new), *_standing(old, new), *_attempts(old, new), *_ends(old, new)]


def reported(before: Status, after: Status) -> list[Event]:
    """Return what happened between a stored status and the next one of trl-operator-progress: its first checkpoint, and
    what its metrics warn of."""
    old, new = (
        read_status({name: status[name] for name in ("checkpoints", "warnings") if name in status})
        for status in (before, after)
    )
    found = _warned(old, new)
    if new.checkpoints and not old.checkpoints:
        first = new.checkpoints[0]
        found.append(Event("Normal", "FirstCheckpoint", f"the checkpoint of step {first.step} is in {first.path}"))
    return found


def _warned(old: JobStatus, new: JobStatus) -> list[Event]:
    known = {warning.reason for warning in old.warnings}
    return [
        Event("Warning", warning.reason, f"{warning.message}. {warning.hint}")
        for warning in new.warnings
        if warning.reason not in known
    ]


def _standing(old: JobStatus, new: JobStatus) -> list[Event]:
    found: list[Event] = []
    for kind, values, told in _STAND:
        was, now = old.condition(kind), new.condition(kind)
        stood, stands = (condition is not None and condition.status in values for condition in (was, now))
        if now and stands and (not stood or now.reason != old.reason(kind)):
            found.append(Event(told, now.reason, now.message))
        elif now and stood and not stands and not new.completion_time:
            reason = kind if now.status == "True" else now.reason
            # Kueue has admitted the workload a moment before it lets it go.
            if reason != old.reason(kind):
                found.append(Event("Normal", reason, now.message))
    return found


def _attempts(old: JobStatus, new: JobStatus) -> list[Event]:
    found, running = [], new.condition("Running")
    if running and new.restarts > old.restarts:
        step = _newest_step(old)
        resumes = f"attempt {new.attempt} follows, from " + (f"the checkpoint of step {step}" if step else "the start")
        found.append(Event("Warning", "AttemptFailed", f"{running.reason}: {running.message}; {resumes}"))
    if len(new.adaptations) > len(old.adaptations):
        last = new.adaptations[-1]
        sizes = f"perDeviceBatchSize {last.per_device_batch_size} and gradientAccumulationSteps"
        message = f"attempt {last.attempt} trains with {sizes} {last.gradient_accumulation_steps}"
        reason = "MicroBatchShrunk"
        if last.gradient_checkpointing:
            reason, message = "ActivationsRecomputed", f"attempt {last.attempt} recomputes activations"
        found.append(Event("Normal", reason, message))
    if new.workload and not old.workload:
        message = f"attempt {new.attempt} is {new.workload.kind} {new.workload.name}"
        found.append(Event("Normal", "AttemptStarted", message))
    if running and new.is_true("Running") and not old.is_true("Running"):
        found.append(Event("Normal", "Running", running.message))
    if running and running.reason != old.reason("Running"):
        if running.reason in WAITING_REASONS:
            found.append(Event("Warning", running.reason, running.message))
        elif new.phase == "Stopping":
            found.append(Event("Normal", running.reason, running.message))
    return found


def _ends(old: JobStatus, new: JobStatus) -> list[Event]:
    found, ended = [], new.condition("Finished")
    if ended and new.completion_time and not old.completion_time:
        if step := _newest_step(old):
            path = next(saved.path for saved in old.checkpoints if saved.step == step)
            found.append(Event("Normal", "LastCheckpoint", f"the checkpoint of step {step} is in {path}"))
        if new.is_true("Failed"):
            found.append(Event("Warning", "Failed", f"{ended.reason}: {ended.message}"))
        else:
            found.append(Event("Normal", ended.reason, ended.message))
    return found


def _newest_step(status: JobStatus) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    return max((saved.step for saved in status.checkpoints), default=0)
