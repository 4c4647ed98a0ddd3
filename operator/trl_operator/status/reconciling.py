"""Whether a job is where its spec wants it, in the words of kstatus, which Flux, Helm and other tools read.

kstatus (sigs.k8s.io/cli-utils, pkg/kstatus/status/generic.go) takes the first that holds: observedGeneration is behind,
or the condition Reconciling is True: InProgress; the condition Stalled is True: Failed; else Current.
"""

from datetime import datetime

from trl_operator.api.status import JobStatus
from trl_operator.status.conditions import drop_condition, set_condition

MAX_MESSAGE = 512
INVALID_SPEC = "InvalidSpec"
"""Reason of Accepted=False that another job alone can mend, since a spec is fixed."""


def show(status: JobStatus, generation: int, now: datetime) -> None:
    """Say which generation the status is about, and that the job is under way, with what it does or waits for, or that
    it never will be. Neither is said of a job that rests as its spec wants it; of one that has ended, `ending` has
    said it."""
    status.observed_generation = generation
    if status.completion_time is not None:
        return
    why = status.why_not() or status.condition("Running")
    reason, message = (why.reason, why.message[:MAX_MESSAGE]) if why else (status.phase or "Pending", "")
    hopeless = status.reason("Accepted") == INVALID_SPEC
    if hopeless:
        set_condition(status, "Stalled", "True", reason, message, generation=generation, now=now)
    elif status.reason("Stalled") == INVALID_SPEC:
        drop_condition(status, "Stalled")
    if hopeless or status.phase == "Suspended":
        drop_condition(status, "Reconciling")
    else:
        set_condition(status, "Reconciling", "True", reason, message, generation=generation, now=now)
