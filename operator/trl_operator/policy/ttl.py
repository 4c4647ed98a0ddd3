"""When a job that has ended is deleted."""

from datetime import datetime, timedelta

from trl_contract.cluster import RunPolicy
from trl_operator.api.status import JobStatus
from trl_operator.plan.observation import parse_time


def seconds_left(policy: RunPolicy, status: JobStatus, now: datetime) -> float | None:
    """Return the seconds until a job that has ended goes, 0 if it is time; None if it stays."""
    ended = parse_time(status.completion_time)
    if policy.ttl_seconds_after_finished is None or ended is None:
        return None
    return max((ended + timedelta(seconds=policy.ttl_seconds_after_finished) - now).total_seconds(), 0.0)
