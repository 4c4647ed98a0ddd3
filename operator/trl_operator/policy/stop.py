"""Whether a job is to stop, and for which of several wishes."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from trl_contract.cluster import RunPolicy
from trl_operator.api.status import JobStatus
from trl_operator.policy import deadline


@dataclass(frozen=True)
class Wish:
    """Why an attempt is ended from outside; the reason is written before anything is deleted."""

    reason: Literal["Cancelling", "DeadlineExceeded", "Suspending"]
    message: str


def wish(policy: RunPolicy, status: JobStatus, now: datetime) -> Wish | None:
    """Return why the job is to stop: cancellation before deadline before suspension; None if it is to go on."""
    if policy.cancel:
        return Wish("Cancelling", "runPolicy.cancel is true")
    if deadline.seconds_left(policy, status, now) <= 0:
        return Wish("DeadlineExceeded", deadline.message(policy, status))
    if policy.suspend:
        return Wish("Suspending", "runPolicy.suspend is true")
    return None
