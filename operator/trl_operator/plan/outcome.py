"""How an attempt ended: from exit records and pod statuses to one cause."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from trl_contract.report import EXIT_CODES, ExitRecord
from trl_operator.plan.observation import Pod, parse_time
from trl_operator.plan.reasons import REASONS

_CODES = {code: reason for reason, code in reversed(EXIT_CODES.items()) if code not in (1, 137)}
"""The reason of an exit code that only one has, or the first of two; 1 and 137 say nothing."""
_NODE_FAULTS = {"DeletionByTaintManager": "NodeLost", "DeletionByPodGC": "NodeLost", "TerminationByKubelet": "NodeLost"}
_UNKNOWN_ENDS = ("Unknown", "ContainerStatusUnknown")
"""What containerd (with exit code 255) and the kubelet (137) say of containers that did not survive a reboot."""
_END = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Cause:
    """Why an attempt failed."""

    reason: str
    message: str
    pod: str | None = None
    rank: int | None = None
    exit_code: int | None = None
    log: str | None = None
    time: datetime = _END
    activity: str = ""
    """What the rank was at, if it said so."""
    untold: bool = False
    """Nothing is left that says why."""


def exit_record(pod: Pod) -> ExitRecord | None:
    """Return the pod's exit record; None if it left none."""
    if not pod.exit_message.startswith("{"):
        return None
    try:
        return ExitRecord.model_validate_json(pod.exit_message)
    except ValidationError:
        return None


def records(pods: Iterable[Pod]) -> list[ExitRecord]:
    """Return the exit records of the pods, in their order by rank."""
    found = (exit_record(pod) for pod in sorted(pods, key=lambda pod: pod.index))
    return [record for record in found if record is not None]


def classify(pods: Iterable[Pod], num_nodes: int, processes: int, *, ran: bool = False) -> Cause:
    """Return the first cause among the ended pods of a failed attempt; what follows from another failure comes last.

    An attempt that fails before all its pods have run costs nothing, unless no other attempt could mend it; `ran` says
    that they have, whatever is left of them.
    """
    pods = list(pods)
    causes = [cause for pod in pods if (cause := _cause(pod, processes))]
    if not causes:
        message = "the attempt failed, and neither a pod nor an exit record is left to say why"
        return Cause("Unknown", message, untold=True)
    first = min(causes, key=lambda cause: (REASONS[cause.reason].effect, cause.time))
    all_started = ran or sum(pod.started for pod in pods) >= num_nodes
    if first.reason == "Preempted" and (name := _deleted(pods)):
        first = replace(first, reason="ChildDeleted", message=f"pod {name} was deleted while it ran", pod=name)
    reason = REASONS[first.reason]
    if reason.retryable and not reason.free and not all_started:
        return replace(first, reason="StartTimeout")
    return first


def _deleted(pods: Iterable[Pod]) -> str | None:
    """Return the pod that somebody's kubectl has deleted, the first if there are several: a node or a scheduler that
    takes a pod away says so at it, and the others go after it without a word."""
    deleted = sorted((pod.deletion_time, pod.name) for pod in pods if pod.deletion_time)
    return deleted[0][1] if deleted and not any(pod.disruption for pod in pods) else None


def _cause(pod: Pod, processes: int) -> Cause | None:
    record = exit_record(pod)
    if record is not None:
        if record.outcome == "Succeeded":
            return None
        reason: str = record.reason or ("Preempted" if record.outcome == "Preempted" else "Unknown")
        time = parse_time(record.time) or parse_time(pod.exit_time) or _END
        return Cause(
            reason,
            record.message,
            pod.name,
            record.rank,
            pod.exit_code,
            record.log or None,
            time,
            activity=record.activity,
        )
    if (found := _without_record(pod)) is None:
        return None
    time = parse_time(pod.exit_time) or _END
    log = pod.exit_message[-2048:] or None
    rank = pod.index * processes if pod.index >= 0 else None
    return Cause(*found, pod.name, rank, pod.exit_code, log, time)


def _without_record(pod: Pod) -> tuple[str, str] | None:
    """Return reason and message of a pod that left no exit record; None if it did not fail."""
    if pod.disruption in _NODE_FAULTS and pod.reason != "Evicted":
        return _NODE_FAULTS[pod.disruption], f"pod {pod.name} was taken from node {pod.node}: {pod.disruption}"
    if pod.disruption:
        return "Preempted", f"pod {pod.name} had to give way: {pod.disruption}"
    if pod.reason == "Evicted":
        return "Evicted", f"pod {pod.name} was evicted: {pod.message}"
    if pod.exit_reason == "OOMKilled":
        return "OutOfHostMemory", f"pod {pod.name} went over its memory limit (resources.limits.memory) and was killed"
    if pod.exit_reason in _UNKNOWN_ENDS:
        return "NodeLost", f"how pod {pod.name} ended is not known to its node {pod.node}, which was started anew"
    if pod.exit_code:
        reason = _CODES.get(pod.exit_code, "Unknown")
        return reason, f"pod {pod.name} ended with exit code {pod.exit_code} and no exit record"
    if pod.phase == "Failed":
        return "Unknown", f"pod {pod.name} failed: {pod.reason} {pod.message}".rstrip(": ")
    if pod.gone and pod.exit_code is None and pod.phase != "Succeeded":
        return "ChildDeleted", f"pod {pod.name} was deleted and left no exit record"
    return None
