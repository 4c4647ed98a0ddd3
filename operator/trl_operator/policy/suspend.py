"""What a rest costs: nothing."""

from datetime import datetime

from trl_operator.api.status import JobStatus
from trl_operator.plan.observation import parse_time


def suspended_seconds(status: JobStatus, now: datetime) -> int:
    """Return for how long the job has been suspended in all, the rest included that ends now. Before its start nothing
    runs that could stand still."""
    rest, start = status.condition("Suspended"), parse_time(status.start_time) or now
    since = parse_time(rest.last_transition_time) if rest else None
    rested = (now - max(since, start)).total_seconds() if since else 0.0
    return (status.suspended_seconds or 0) + max(0, int(rested))
