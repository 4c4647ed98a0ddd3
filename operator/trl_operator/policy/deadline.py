"""When a job has had its time."""

from datetime import datetime, timedelta

from trl_contract.cluster import RunPolicy
from trl_operator.api.status import JobStatus
from trl_operator.plan.observation import parse_time
from trl_operator.plan.starting import WAITING_REASONS

DEADLINE_EXCEEDED = "DeadlineExceeded"


def seconds_left(policy: RunPolicy, status: JobStatus, now: datetime) -> float:
    """Return the seconds until the deadline; infinite without one, and while the job rests: its clock stands still."""
    start = parse_time(status.start_time)
    if policy.active_deadline_seconds is None or start is None or status.is_true("Suspended"):
        return float("inf")
    given = timedelta(seconds=policy.active_deadline_seconds + (status.suspended_seconds or 0))
    return (start + given - now).total_seconds()


def message(policy: RunPolicy, status: JobStatus) -> str:
    """Return why the job ends, with what it was waiting for; what was said first stays said."""
    said = status.condition("Running")
    if said and said.reason == DEADLINE_EXCEEDED:
        return said.message
    waited = _waited_for(status)
    return f"not done {policy.active_deadline_seconds} s after its start" + (
        f"; it waited for: {waited}" if waited else ""
    )


def _waited_for(status: JobStatus) -> str:
    """Return what keeps the job from running; empty if nothing is known."""
    for kind, waits in (("Accepted", "False"), ("UpstreamReady", "False"), ("Queued", "True"), ("Running", "False")):
        found = status.condition(kind)
        if found and found.status == waits and (kind != "Running" or found.reason in WAITING_REASONS):
            return f"{found.reason}: {found.message}"
    return ""
