"""What follows from looking at a job."""

from dataclasses import dataclass, field

from trl_operator.plan.observation import Child
from trl_operator.status.conditions import Status


@dataclass
class Decision:
    """The next status, and what to do after it was written."""

    status: Status = field(default_factory=dict)
    create: bool = False
    """Create the workload of status.attempt."""
    restore: bool = False
    """Create again what the attempt's pods mount."""
    delete: list[Child] = field(default_factory=list)
    delete_job: bool = False
    requeue: float | None = None
    """Seconds until the job wants another look."""


def finite(seconds: float) -> float | None:
    """Return the seconds of a requeue that may never come."""
    return seconds if seconds != float("inf") else None


def sooner(planned: float | None, seconds: float) -> float:
    """Return the seconds of the earlier one of two requeues."""
    return min(seconds, float("inf") if planned is None else planned)
