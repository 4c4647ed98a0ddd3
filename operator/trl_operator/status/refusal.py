"""What the status says when the API server does not let something be created."""

from datetime import datetime

from trl_operator.api.job import Job
from trl_operator.api.stored import read_status, written
from trl_operator.plan.starting import refusal
from trl_operator.status.conditions import Status, set_condition


def refused(job: Job, current: Status, what: str, words: str, now: datetime) -> Status:
    """Return the next status of `job` when `what` its attempt needs was not created, in the API server's words why."""
    status = read_status(current)
    message = f"attempt {status.attempt} has yet to start: {what} could not be created: {words}"
    set_condition(status, "Running", "False", refusal(words), message, generation=job.generation, now=now)
    return written(status)
