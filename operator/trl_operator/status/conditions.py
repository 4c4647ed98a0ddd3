"""Conditions, as Kubernetes keeps them."""

from datetime import datetime
from typing import Any, Literal

from trl_operator.api.status import Condition, JobStatus
from trl_operator.plan.observation import format_time

Status = dict[str, Any]

MAX_MESSAGE = 2048


def set_condition(
    status: JobStatus,
    kind: str,
    value: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> None:
    """Put a condition into `status`; its time moves only when its status changes."""
    before = status.condition(kind)
    after = Condition(
        type=kind,
        status=value,
        reason=reason,
        message=clean(message, MAX_MESSAGE),
        last_transition_time=before.last_transition_time if before and before.status == value else format_time(now),
        observed_generation=generation,
    )
    kept = [c for c in status.conditions if c.type != kind]
    status.conditions = sorted([*kept, after], key=lambda c: _place(c.type))


def drop_condition(status: JobStatus, kind: str) -> None:
    """Take a condition out of `status`."""
    status.conditions = [condition for condition in status.conditions if condition.type != kind]


_ORDER = [
    "Accepted",
    "UpstreamReady",
    "Queued",
    "EvaluationSkipped",
    "KLPenaltyDisabled",
    "Running",
    "Reconciling",
    "Stalled",
    "Suspended",
    "Succeeded",
    "Failed",
    "Finished",
]


def _place(kind: str) -> int:
    """A type that a newer version of the operator has left comes last."""
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def clean(text: str, limit: int) -> str:
    """Return text without control characters (but line breaks), cut to `limit` characters."""
    return "".join(c for c in text if c.isprintable() or c == "\n")[:limit]
