"""Whether an attempt waits in a queue, has lost what it was given there, or is to wait in another one.

Kueue owns `suspend` of the workloads that it manages: one that it lets go, suspends and lets go again would make other
pods in the same attempt. So an attempt that was let go and is suspended has ended, at no cost, and the next one queues.
"""

from trl_operator.api.job import Job
from trl_operator.api.status import JobStatus
from trl_operator.constants import MANAGER_OBJECTS
from trl_operator.plan.observation import Child
from trl_operator.plan.outcome import Cause
from trl_operator.plan.view import View
from trl_operator.policy.start import START_TIMEOUT

EVICTED = "EvictedByKueue"
"""Reason of an attempt that Kueue has taken its nodes from."""
QUEUE_CHANGED = "QueueChanged"
"""Reason of an attempt that waits in another queue than its job now names."""
QUEUED = "Queued"
"""Condition and phase; False once the attempt has been let go."""


def is_queued(job: Job, view: View) -> bool:
    """Return whether Kueue decides when the attempt may run: its job names a queue, or did when it was made, or Kueue
    manages all jobs."""
    child = view.child
    return bool(job.queue_name) or view.admission.known or (child is not None and bool(child.queue or is_astray(child)))


def is_astray(child: Child) -> bool:
    """Return whether a workload that names no queue was suspended all the same when it was created, which we did not
    ask for: Kueue's webhook does so where it manages all jobs."""
    return not child.queue and child.suspended_by == MANAGER_OBJECTS


def is_held(job: Job, view: View) -> bool:
    """Return whether the attempt is suspended, and by Kueue."""
    return view.child is not None and bool(view.child.suspended_by) and is_queued(job, view)


def given_up(job: Job, status: JobStatus, view: View) -> Cause | None:
    """Return why an attempt has ended though nothing in it has failed; None if it may go on, or go on waiting."""
    child = view.child
    if child is None or child.deleting or child.state != "active" or not is_queued(job, view):
        return None
    if _is_taken_back(child, status, view):
        said = view.admission.evicted or (view.admission.waits if view.admission.known else ())
        words = ": ".join((f"Kueue has suspended {child.kind} {child.name}", *said))
        # One that cannot start would be tried again without a pause, and for ever.
        return Cause(START_TIMEOUT if "PodsReadyTimeout" in said else EVICTED, words)
    if is_held(job, view) and (change := moved(job, child)):
        return Cause(QUEUE_CHANGED, change)
    return None


def _is_taken_back(child: Child, status: JobStatus, view: View) -> bool:
    """Whether the attempt has been let go, and no longer is. One whose Workload is not active stays suspended until an
    administrator says otherwise: its successor's would be active."""
    admission, said = view.admission, status.condition(QUEUED)
    if not admission.active:
        return False
    if admission.admitted:
        return admission.evicted is not None
    ran = bool(view.pods) or admission.was_admitted or (said is not None and said.status == "False")
    return bool(child.suspended_by) and ran


def moved(job: Job, child: Child) -> str:
    """Return how the queue that the job names differs from its attempt's; empty if it does not."""
    wanted, has = (job.queue_name, job.queue_priority), (child.queue, child.queue_priority)
    # Of a job without a queue Kueue itself makes one of its namespace's default queue.
    if wanted == has or (not job.queue_name and child.queue in ("", "default")):
        return ""
    was, now = (f"{name or 'none'}{f' with priorityClass {kind}' if kind else ''}" for name, kind in (has, wanted))
    return f"attempt {child.attempt} is in queue {was}, and its job is now for queue {now}"
