"""Conditions, as Kubernetes keeps them."""

from datetime import datetime
from typing import Any

from trl_operator.plan.observation import format_time

Status = dict[str, Any]

MAX_MESSAGE = 2048


def condition(status: Status, kind: str) -> dict[str, Any]:
    """Return a condition; empty if it is not there."""
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})


def is_true(status: Status, kind: str) -> bool:
    return condition(status, kind).get("status") == "True"


def set_condition(
    status: Status, kind: str, value: str, reason: str, message: str, *, generation: int, now: datetime
) -> None:
    """Put a condition into `status`; its time moves only when its status changes."""
    before = condition(status, kind)
    time = before["lastTransitionTime"] if before.get("status") == value else format_time(now)
    after = {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": clean(message, MAX_MESSAGE),
        "lastTransitionTime": time,
        "observedGeneration": generation,
    }
    kept = [c for c in status.get("conditions", ()) if c["type"] != kind]
    status["conditions"] = sorted([*kept, after], key=lambda c: _place(c["type"]))


_ORDER = ["Accepted", "UpstreamReady", "EvaluationSkipped", "KLPenaltyDisabled", "Running", "Suspended", "Succeeded"]


def _place(kind: str) -> int:
    """A type that a newer version of the operator has left comes last."""
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def clean(text: str, limit: int) -> str:
    """Return text without control characters (but line breaks), cut to `limit` characters."""
    return "".join(c for c in text if c.isprintable() or c == "\n")[:limit]
