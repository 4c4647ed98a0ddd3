"""What the status says of an attempt that Kueue lets go when there is room."""

from datetime import datetime

from trl_operator.api.job import Job
from trl_operator.api.status import JobStatus
from trl_operator.plan.view import View
from trl_operator.policy.queueing import QUEUED, is_astray, is_queued, moved
from trl_operator.status.conditions import set_condition


def wait(job: Job, status: JobStatus, view: View, now: datetime) -> None:
    """The attempt waits, for what Kueue says."""
    reason, message = view.admission.waits
    if view.admission.admitted:
        reason, message = "Admitted", f"{view.admission.place}: Kueue is about to let the attempt go"
    elif not job.queue_name and view.child is not None and is_astray(view.child):
        reason = "QueueNotNamed"
        message = (
            f"{view.child.kind} {view.child.name} was suspended at its creation, as Kueue does where it manages jobs"
            " that name no queue (manageJobsWithoutQueueName): set queue.name to a LocalQueue of namespace"
            f" {job.namespace}"
        )
    where = f" in queue {job.queue_name}" if job.queue_name else ""
    waits = f"attempt {status.attempt} waits{where}"
    set_condition(status, QUEUED, "True", reason, message, generation=job.generation, now=now)
    set_condition(status, "Running", "False", QUEUED, waits, generation=job.generation, now=now)
    status.phase = "Queued"


def show(job: Job, status: JobStatus, view: View, now: datetime) -> None:
    """Say of an attempt that starts or runs that Kueue has let it go; where there is none, say nothing of a queue."""
    decides = is_queued(job, view)
    if status.phase in ("Starting", "Running") and view.child is not None and decides:
        place, change = view.admission.place, moved(job, view.child)
        message = f"admitted by {place}" if place else "Kueue has let the attempt go"
        message += f"; {change}: the next attempt goes there" if change else ""
        set_condition(status, QUEUED, "False", "Admitted", message, generation=job.generation, now=now)
        return
    # One that waited, and was let go by hand.
    waits_no_more = view.child is not None and not decides and status.is_true(QUEUED)
    has_none = status.workload is None and status.phase != "Queued"
    if status.completion_time is not None or has_none or waits_no_more:
        status.conditions = [found for found in status.conditions if found.type != QUEUED]
