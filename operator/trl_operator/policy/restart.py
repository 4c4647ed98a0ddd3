"""Why an attempt has failed, whether another one follows it, and when."""

from datetime import datetime, timedelta

from trl_operator.api.job import Job
from trl_operator.api.status import JobStatus, Retry
from trl_operator.plan.observation import format_time
from trl_operator.plan.outcome import Cause, classify
from trl_operator.plan.reasons import MAX_FREE_IN_A_ROW, MAX_UNTOLD_IN_A_ROW, REASONS
from trl_operator.plan.view import View
from trl_operator.policy.queueing import EVICTED, QUEUE_CHANGED

BACKOFF_SECONDS = 10
MAX_BACKOFF_SECONDS = 300
UNPAUSED = frozenset({EVICTED, QUEUE_CHANGED})
"""What ends attempts at no cost, however often, and without a pause: the next one is to have its place in the queue."""


def cause(job: Job, status: JobStatus, view: View, *, ran: bool) -> Cause:
    """Return why an attempt has failed, once its pods have ended; `ran`: the status tells that all of them had run."""
    child, lost = view.child, status.workload
    if not view.pods and (child is None or child.deleting):
        assert lost is not None, "an attempt that is alive has a workload, or had one"
        return Cause("ChildDeleted", f"{lost.kind} {lost.name} was deleted while it ran")
    # Pods that are gone say nothing: a report of the attempt does, and so does what the condition said.
    reported = status.progress is not None and status.progress.attempt == status.attempt
    return classify(view.pods, job.cluster.num_nodes, job.cluster.processes_per_node, ran=ran or reported)


def next_retry(
    status: JobStatus, ended_by: Cause, max_restarts: int, now: datetime, *, counts: bool = True, adapted: bool = False
) -> Retry | None:
    """Return what the next attempt starts with; None if no attempt can help, or none is left.

    A newer checkpoint makes the pause short again and gives the free restarts back; what has counted against
    `max_restarts` stays counted. An attempt that only gave its nodes back does not count (`counts`), however often, nor
    does one after which the next trains otherwise (`adapted`): it cannot be halved for ever.
    """
    reason = REASONS[ended_by.reason]
    if not (reason.retryable or adapted):
        return None
    retry = (status.retry or Retry()).model_copy()
    newest = max((checkpoint.step for checkpoint in status.checkpoints), default=0)
    if newest > retry.checkpoint_step:
        retry.free_in_a_row, retry.in_a_row, retry.checkpoint_step = 0, 0, newest
    if ended_by.reason in UNPAUSED:
        retry.not_before = None
        return retry
    retry.in_a_row += 1
    allowed = MAX_FREE_IN_A_ROW if reason.free else MAX_UNTOLD_IN_A_ROW if ended_by.untold else 0
    if adapted or not counts:
        pass
    elif retry.free_in_a_row < allowed:
        retry.free_in_a_row += 1
    elif retry.counted >= max_restarts:
        return None
    else:
        retry.counted += 1
    retry.not_before = format_time(now + timedelta(seconds=pause(retry.in_a_row)))
    return retry


def pause(in_a_row: int) -> int:
    """Return the seconds before the next attempt: 10, 20, 40 and so on, at most 300."""
    return min(BACKOFF_SECONDS << min(in_a_row - 1, 10), MAX_BACKOFF_SECONDS)
