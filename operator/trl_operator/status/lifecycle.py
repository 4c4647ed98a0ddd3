"""The one state machine: job, children, previous status and time become the next status and what to do."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from trl_operator.api.job import Job
from trl_operator.api.status import JobStatus, Phase, WorkloadRef
from trl_operator.api.stored import read_status, written
from trl_operator.plan.acceptance import Blocker, seconds_to_next_look
from trl_operator.plan.observation import Child, format_time, parse_time
from trl_operator.plan.outcome import Cause
from trl_operator.plan.starting import REFUSAL_REASONS, WORKLOAD_SUSPENDED, is_lost, waiting_reason
from trl_operator.plan.upstream import upstreams
from trl_operator.plan.view import Course, View
from trl_operator.policy import deadline, memory, queueing, restart, stall, start, stop, suspend, ttl
from trl_operator.policy.stall import STALLED
from trl_operator.policy.start import START_TIMEOUT
from trl_operator.policy.stop import Wish
from trl_operator.status import ending, queued, reconciling
from trl_operator.status.conditions import Status, set_condition
from trl_operator.status.decision import Decision, finite, sooner
from trl_operator.status.description import describe

ENDING_POLL_SECONDS = 10.0
"""A pod on a lost node counts as gone without anything happening to it."""
START_FAILED = "StartFailed"
STOPPING = "Stopping"
"""Reason of Running=False while the pods of an attempt that had run come to their end."""


def decide(job: Job, current: Status, view: View, now: datetime) -> Decision:
    """Return the next status of `job` and the actions that go with it.

    `current` is the whole stored status; the result holds only the fields of trl-operator-status.
    """
    status = read_status(current)
    machine = _Machine(job, status, view, now)
    if status.completion_time is not None:
        decision = machine.finished()
    else:
        describe(job, status, now)
        started = status.attempt is not None and (view.child is not None or status.workload is not None)
        decision = machine.alive() if started else machine.between()
    queued.show(job, status, view, now)
    reconciling.show(status, job.generation, now)
    decision.status = written(status)
    return decision


@dataclass
class _Machine:
    """Each step changes `status` and returns what goes with it."""

    job: Job
    status: JobStatus
    view: View
    now: datetime

    def say(self, kind: str, holds: bool | None, reason: str, message: str) -> None:
        value: Literal["True", "False", "Unknown"] = "Unknown" if holds is None else "True" if holds else "False"
        set_condition(self.status, kind, value, reason, message, generation=self.job.generation, now=self.now)

    # -- no attempt is alive

    def finished(self) -> Decision:
        """Terminal is terminal: what is still alive is ended, earlier attempts are cleaned up, and the job itself goes
        after its TTL."""
        ending.tell_all(self.job, self.status)
        last, succeeded = self.status.attempt or 0, self.status.is_true("Succeeded")
        # The pods of the last attempt stay for their logs; it may have succeeded before its workload says so.
        known = [*self.view.others, *([self.view.child] if self.view.child else [])]
        ours = [c for c in known if not c.deleting and not (succeeded and c.attempt == last)]
        left = ttl.seconds_left(self.job.cluster.run_policy, self.status, self.now)
        delete = [c for c in ours if c.attempt < last or c.state == "active"]
        return Decision(delete=delete, delete_job=left == 0, requeue=left)

    def between(self) -> Decision:
        """Start the next attempt when nothing stands against it."""
        policy = self.job.cluster.run_policy
        if not policy.suspend:
            self.status.start_time = self.status.start_time or format_time(self.now)
        wish = stop.wish(policy, self.status, self.now)
        if wish and wish.reason != "Suspending":
            return self._end(wish)
        decision = Decision(delete=self._stale_children(), requeue=finite(self._deadline_left()))
        self._show_suspension()
        if (blocker := self.view.blocker) is None or blocker.condition != "Accepted":
            fine = f"the spec is valid and everything that it names is there{self.view.reused}"
            self.say("Accepted", True, "Accepted", fine)
        if blocker is not None:
            return self._blocked(blocker, decision)
        if upstreams(self.job):
            self.say("UpstreamReady", True, "Succeeded", "the jobs that this one builds on have left what it needs")
        if policy.suspend:
            self.status.phase = "Suspended"
            return decision
        not_before = parse_time(self.status.retry.not_before) if self.status.retry else None
        if not_before and not_before > self.now:
            self.status.phase = "Restarting"
            return replace(decision, requeue=sooner(decision.requeue, (not_before - self.now).total_seconds()))
        self.status.attempt, self.status.phase = self.status.attempt or 0, "Starting"
        self.status.run = self.view.run or self.status.run
        # If the last try was refused, why stays to be read until one is not.
        if self.status.reason("Running") not in REFUSAL_REASONS:
            self._show_starting()
            if self.job.queue_name:
                queued.wait(self.job, self.status, self.view, self.now)
        return replace(decision, create=True)

    def _blocked(self, blocker: Blocker, decision: Decision) -> Decision:
        self.say(blocker.condition, False, blocker.reason, blocker.message)
        if blocker.fails:
            return self._fail(Cause(blocker.reason, blocker.message))
        waiting: Phase = "Pending" if blocker.condition == "Accepted" else "Blocked"
        self.status.phase = "Suspended" if self.job.cluster.run_policy.suspend else waiting
        if blocker.polled:
            said = self.status.condition(blocker.condition)
            since = parse_time(said.last_transition_time if said else None) or self.now
            decision.requeue = sooner(decision.requeue, seconds_to_next_look((self.now - since).total_seconds()))
        return decision

    # -- the attempt has a workload, or had one

    def alive(self) -> Decision:
        if not self.status.is_true("Accepted"):
            self.say("Accepted", True, "Accepted", "the spec was valid when the attempt began")
        child, policy = self.view.child, self.job.cluster.run_policy
        if child is not None:
            self.status.workload = WorkloadRef(
                api_version=child.api_version, kind=child.kind, name=child.name, uid=child.uid
            )
        if self.view.succeeded(self.job.cluster.num_nodes):
            ending.succeed(self.job, self.status, self.view.pods, self.now)
            return self.finished()
        if wish := stop.wish(policy, self.status, self.now):
            return self._stop(wish)
        if cause := self._given_up():
            return self._release(cause)
        if child is not None and child.suspended_by and child.state == "active" and not child.deleting:
            return self._held(child)
        failed = self.status.reason("Running") in (STOPPING, START_FAILED)
        if (course := self.view.course(self.now, failed=failed)) != "goes on":
            return self._failed(course)
        self._show_running()
        left = min(self._deadline_left(), self._start_left(), self._show_stall())
        lost = is_lost((self.job.base_name, self.job.child_name(self.status.attempt or 0)), self.view)
        return Decision(delete=self._stale_children(), requeue=finite(left), restore=lost)

    def _held(self, child: Child) -> Decision:
        """Kueue has yet to let the workload go, or somebody has suspended it: that is for them to undo."""
        if queueing.is_held(self.job, self.view):
            queued.wait(self.job, self.status, self.view, self.now)
        else:
            message = f"{child.kind} {child.name} was suspended by {child.suspended_by}: let it go, or cancel the job"
            self.say("Running", False, WORKLOAD_SUSPENDED, message)
            self.status.phase = "Starting"
        return Decision(delete=self._stale_children(), requeue=finite(self._deadline_left()))

    def _show_running(self) -> None:
        nodes = self.job.cluster.num_nodes
        running = sum(pod.phase == "Running" and pod.started for pod in self.view.pods)
        finished = sum(pod.finished for pod in self.view.pods)
        if running + finished >= nodes and (running or self.status.is_true("Running")):
            self.say("Running", True, "AllPodsRunning", f"attempt {self.status.attempt} runs on {nodes} pods")
            self.status.phase = "Running"
            return
        self._show_starting(waiting_reason(self.job.cluster, self.view))

    def _show_starting(self, why_not: tuple[str, str] | None = None) -> None:
        """Say that the attempt starts; nothing changes, so nothing is written, while its pods come up one by one."""
        self.say("Running", False, *(why_not or ("Starting", f"attempt {self.status.attempt} starts")))
        self.status.phase = "Starting"

    def _failed(self, course: Course) -> Decision:
        """Once every pod has ended, find the cause and decide about the next attempt."""
        if course == "is over":
            return self._restart(restart.cause(self.job, self.status, self.view, ran=self._ran))
        # No count: it would be one write for each pod of a gang.
        message = f"attempt {self.status.attempt} failed; its pods have yet to end"
        self.say("Running", False, STOPPING if self._ran else START_FAILED, message)
        self.status.phase = "Restarting"
        doomed = [self.view.child] if self.view.child and course == "to be ended" else []
        return Decision(delete=doomed, requeue=ENDING_POLL_SECONDS)

    def _given_up(self) -> Cause | None:
        """Return why we end the attempt ourselves; None if it may go on."""
        said = self.status.condition("Running")
        if said and said.reason in (START_TIMEOUT, STALLED, *restart.UNPAUSED):
            return Cause(said.reason, said.message)
        if taken := queueing.given_up(self.job, self.status, self.view):
            return taken
        if self._start_left() <= 0:
            return Cause(START_TIMEOUT, start.message(self.job.cluster, self.view.pods))
        runs = self.status.is_true("Running") and self.view.course(self.now) == "goes on"
        if runs and (found := self._look()).stalled:
            return Cause(STALLED, found.message)
        return None

    def _release(self, cause: Cause) -> Decision:
        """End the attempt; one that found no nodes, or lost them to others, costs nothing, however often."""
        if self._is_over():
            return self._restart(cause, counts=cause.reason != START_TIMEOUT)
        self.say("Running", False, cause.reason, cause.message)
        self.status.phase = "Restarting"
        return self._await_end()

    def _look(self) -> stall.Look:
        return stall.look(self.view.mark, self.status, self.job.cluster.run_policy.stall_timeout_seconds, self.now)

    def _show_stall(self) -> float:
        """Say whether anything is heard of an attempt that runs; return the seconds until that is looked at again."""
        if not self.status.is_true("Running"):
            return float("inf")
        found, before = self._look(), self.status.condition("Stalled")
        if found.silent:
            self.say("Stalled", None, "NoReports", found.message)
        elif before and before.status != "False":
            self.say("Stalled", False, "Reporting", f"attempt {self.status.attempt} reports")
        return found.next_seconds

    def _restart(self, cause: Cause, *, counts: bool = True) -> Decision:
        """Either the next attempt, or the end."""
        limit = self.job.cluster.run_policy.max_restarts
        adapted = memory.adapt(self.job, self.status, cause)
        retry = restart.next_retry(self.status, cause, limit, self.now, counts=counts, adapted=bool(adapted))
        if retry is None:
            return self._fail(cause)
        self.status.adaptations += [adapted] if adapted else []
        ended = self.status.attempt or 0
        self.say("Running", False, cause.reason, f"attempt {ended} failed: {cause.message}")
        self.status.retry, self.status.attempt, self.status.restarts = retry, ended + 1, self.status.restarts + 1
        self.status.workload, self.status.phase = None, "Restarting"
        return Decision(requeue=float(restart.pause(retry.in_a_row)) if retry.not_before else 0.0)

    # -- the job is to stop

    def _stop(self, wish: Wish) -> Decision:
        """End the attempt from outside: intent first, then the deletion, then the end."""
        if self._is_over():
            return self._end(wish)
        self.say("Running", False, wish.reason, wish.message)
        self.status.phase = "Stopping"
        return self._await_end()

    def _is_over(self) -> bool:
        return self.view.child is None and self.view.pods_are_over(self.now)

    def _await_end(self) -> Decision:
        child = self.view.child
        return Decision(delete=[child] if child and not child.deleting else [], requeue=ENDING_POLL_SECONDS)

    def _end(self, wish: Wish) -> Decision:
        """Nothing of the attempt is left: the job ends as it was wished, or rests."""
        if wish.reason == "Cancelling":
            ending.cancel(self.job, self.status, wish.message, self.now)
            return self.finished()
        if wish.reason == "DeadlineExceeded":
            return self._fail(Cause(wish.reason, wish.message))
        self.say("Running", False, "Suspended", wish.message)
        self._show_suspension()
        self.status.attempt = (self.status.attempt or 0) + 1
        self.status.workload, self.status.phase = None, "Suspended"
        if self.status.retry:
            self.status.retry.not_before = None
        return Decision()

    def _show_suspension(self) -> None:
        """Say whether the job rests, and count for how long it did."""
        if self.job.cluster.run_policy.suspend:
            self.say("Suspended", True, "Suspended", "runPolicy.suspend is true; no pod is left")
        elif self.status.is_true("Suspended"):
            self.status.suspended_seconds = suspend.suspended_seconds(self.status, self.now)
            self.say("Suspended", False, "Resumed", "runPolicy.suspend is false")

    def _fail(self, cause: Cause) -> Decision:
        ending.fail(self.job, self.status, cause, self.now)
        return self.finished()

    # -- what the steps ask

    @property
    def _ran(self) -> bool:
        """Whether all pods of the attempt have run, as far as the status tells."""
        return self.status.is_true("Running") or self.status.reason("Running") == STOPPING

    def _stale_children(self) -> list[Child]:
        """Other attempts: alive though they should not be, or older than the one before."""
        attempt = self.status.attempt or 0
        return [c for c in self.view.others if not c.deleting and (c.state == "active" or c.attempt < attempt - 1)]

    def _start_left(self) -> float:
        older = self.view.older_waits
        return start.seconds_left(self.job.cluster, self.view.pods, self.now, ran=self._ran, older_waits=older)

    def _deadline_left(self) -> float:
        return deadline.seconds_left(self.job.cluster.run_policy, self.status, self.now)
