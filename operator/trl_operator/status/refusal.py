"""What the status says when a job cannot go on as it is stored, or as the API server has it."""

from datetime import datetime
from typing import Literal

from trl_operator.api.job import Job
from trl_operator.api.stored import read_status, written
from trl_operator.plan.starting import refusal
from trl_operator.status import reconciling
from trl_operator.status.conditions import Status, set_condition


def refused(job: Job, current: Status, what: str, words: str, now: datetime) -> Status:
    """Return the next status of `job` when `what` its attempt needs was not created, in the API server's words why."""
    status = read_status(current)
    message = f"attempt {status.attempt} has yet to start: {what} could not be created: {words}"
    set_condition(status, "Running", "False", refusal(words), message, generation=job.generation, now=now)
    reconciling.show(status, job.generation, now)
    return written(status)


def not_read(
    current: Status, generation: int, value: Literal["False", "Unknown"], reason: str, message: str, now: datetime
) -> Status:
    """Return the next status of a job whose spec this version of the operator cannot read."""
    status = read_status(current)
    set_condition(status, "Accepted", value, reason, message, generation=generation, now=now)
    if status.workload is None:
        status.phase = "Pending"
    reconciling.show(status, generation, now)
    return written(status)
