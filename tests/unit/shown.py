"""What a status shows, for the tests."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from trl_operator.plan.view import View
from trl_operator.status.decision import Decision
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition; empty if it is not there."""
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})


def checkpoint(step: int) -> dict[str, Any]:
    """A published checkpoint."""
    return {"step": step, "path": f"u/checkpoint-{step}", "time": "2026-11-21T11:00:00Z"}


def record(outcome: str, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    time = fields.pop("time", "2026-11-21T11:30:00.000000Z")
    return {"outcome": outcome, "time": time, **({"reason": reason} if reason else {}), **fields}


SUCCEEDED = record("Succeeded")
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}


def running(make_job: Make, make_child: Make, now: datetime, **spec: Any) -> tuple[Any, dict[str, Any]]:
    """A job and its status with attempt 0 under way."""
    job = make_job(**spec)
    status = decide(job, {}, View(), now).status
    return job, decide(job, status, View(make_child(0)), now).status


def reason(decision: Decision, kind: str = "Running") -> tuple[str, str]:
    found = condition(decision.status, kind)
    return found["status"], found["reason"]


def failed(make_pod: Make, code: int, why: str | None, **fields: Any) -> Any:
    return make_pod(0, "Failed", exit_code=code, record=record("Failed", why, **fields) if why else None)
