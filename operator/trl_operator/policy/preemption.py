"""Whether Kueue is to take its nodes from other attempts first: one without a checkpoint loses all that it has done."""

from datetime import datetime, timedelta

from trl_operator.api.job import Job
from trl_operator.api.status import JobStatus
from trl_operator.plan.admission import Admission
from trl_operator.plan.observation import parse_time

BOOST = "1"
"""What is added to the Workload's priority: so little that it is preempted after all others of its own priority, and
still before those of a higher one."""
DEFAULT_MINUTES = 15.0
"""Between checkpoints of a job that counts steps or epochs, for which nobody knows how long they take, or says nothing
of them."""


def boost(job: Job, status: JobStatus, admission: Admission, now: datetime) -> tuple[str, float]:
    """Return the boost that an attempt's Workload is to have, empty for none, and the seconds until that changes by
    itself.

    The attempt is preferred while it runs and has yet to publish a checkpoint, for twice the time between two of them
    at most: one that never publishes any must not keep its place for ever. Who else has written one has the word.
    """
    running = status.condition("Running")
    if admission.boost and not admission.boost_is_ours:
        return admission.boost, float("inf")
    if running is None or running.status != "True" or admission.evicted or not admission.admitted:
        return "", float("inf")
    since = parse_time(running.last_transition_time)
    if since is None or has_checkpoint([found.time for found in status.checkpoints], since):
        return "", float("inf")
    until = since + 2 * timedelta(minutes=job.training.checkpoint.every_minutes or DEFAULT_MINUTES)
    return (BOOST, (until - now).total_seconds()) if now < until else ("", float("inf"))


def has_checkpoint(published: list[str], since: datetime) -> bool:
    """Return whether one of the checkpoints that were published at these times is of the attempt that runs since."""
    return any(time >= since for text in published if (time := parse_time(text)) is not None)
