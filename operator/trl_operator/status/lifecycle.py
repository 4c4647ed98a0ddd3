"""The one state machine: job, children, previous status and time become the next status and what to do."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from trl_operator.api.job import Job
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import Child, Pod, format_time, parse_time, workload
from trl_operator.plan.outcome import Cause, classify, exit_record, records
from trl_operator.plan.reasons import MAX_FREE_IN_A_ROW, MAX_UNTOLD_IN_A_ROW, REASONS
from trl_operator.plan.topology import processes_per_node
from trl_operator.plan.upstream import upstreams
from trl_operator.policy.start import half_since, release_time
from trl_operator.status.conditions import Status, clean, condition, is_true, set_condition
from trl_operator.status.description import describe
from trl_operator.status.starting import REFUSAL_REASONS, WAITING_REASONS, refusal, waiting_reason

LOST_NODE_SECONDS = 60
"""A pod that is still there so long after its grace period counts as gone: its node is lost, or its kubelet hangs.
Should it wake up, it publishes nothing (the trainer's fence)."""
REFERENCE_POLL_SECONDS = 2.0
MAX_REFERENCE_POLL_SECONDS = 30.0
"""A job that waits for another object looks again after a tenth of the time that it has waited, within these bounds."""
DENIAL_POLL_SECONDS = 5.0
"""While pods are missing, the events that may say why are looked at after so long."""
STOPPING = "Stopping"
"""Reason of Running=False while the pods of an attempt that had run come to their end."""
START_TIMEOUT = "StartTimeout"
BACKOFF_SECONDS = 10
MAX_BACKOFF_SECONDS = 300

OWNED = (
    "observedGeneration", "conditions", "phase", "attempt", "workload", "restarts", "retry", "startTime",
    "suspendedSeconds", "completionTime", "artifacts", "failure",
)  # fmt: skip
"""Status fields of the field manager trl-operator-status, beside its part of `effective`."""
EFFECTIVE = ("batchSize", "worldSize", "model")


@dataclass(frozen=True)
class View:
    """What was observed of a job. `child` is the workload of status.attempt, `pods` are those of that attempt."""

    child: Child | None = None
    others: tuple[Child, ...] = ()
    pods: tuple[Pod, ...] = ()
    denials: tuple[str, ...] = ()
    """Why pods could not be created, newest first."""
    blocker: Blocker | None = None
    older_waits: bool = False
    """An older job, like this one, has nodes for some of its pods only."""

    def succeeded(self, num_nodes: int) -> bool:
        """Whether the attempt has. The pods' records have the word: of all nodes they outweigh what became of the
        workload, and one that speaks of failure outweighs its success."""
        if not all(pod.finished for pod in self.pods):
            return False
        said = {pod.index: record.outcome for pod in self.pods if (record := exit_record(pod))}
        if any(outcome != "Succeeded" for outcome in said.values()):
            return False
        return len(said) >= num_nodes or (self.child is not None and self.child.state == "succeeded")


@dataclass
class Decision:
    """The next status, and what to do after it was written."""

    status: Status
    create: bool = False
    """Create the workload of status.attempt."""
    delete: list[Child] = field(default_factory=list)
    delete_job: bool = False
    requeue: float | None = None
    """Seconds until the job wants another look."""


def decide(job: Job, current: Status, view: View, now: datetime) -> Decision:
    """Return the next status of `job` and the actions that go with it.

    `current` is the whole stored status; the result holds only the fields of trl-operator-status.
    """
    status = owned(current)
    machine = _Machine(job, status, current, view, now)
    if "completionTime" in status:
        return machine.finished()
    describe(job, status, now)
    if "attempt" in status and (view.child is not None or "workload" in status):
        return machine.alive()
    return machine.between()


def owned(current: Status) -> Status:
    """Return the part of a stored status that trl-operator-status writes."""
    status = {name: current[name] for name in OWNED if name in current}
    if found := workload(current):
        status["workload"] = found
    effective = {name: current["effective"][name] for name in EFFECTIVE if name in current.get("effective", {})}
    return status | ({"effective": effective} if effective else {})


def refused(job: Job, current: Status, what: str, words: str, now: datetime) -> Status:
    """Return the next status of `job` when `what` its attempt needs was not created, in the API server's words why."""
    status = owned(current)
    message = f"attempt {status['attempt']} has yet to start: {what} could not be created: {words}"
    set_condition(status, "Running", "False", refusal(words), message, generation=job.generation, now=now)
    return status


@dataclass
class _Machine:
    job: Job
    status: Status
    current: Status
    view: View
    now: datetime

    @property
    def _ran(self) -> bool:
        """Whether all pods of the attempt have run, as far as the status tells."""
        found = condition(self.status, "Running")
        return found.get("status") == "True" or found.get("reason") == STOPPING

    def _waits_for(self) -> str:
        """What keeps the job from running, in words; empty if nothing is known."""
        for kind, known in (("Accepted", None), ("UpstreamReady", None), ("Running", WAITING_REASONS)):
            found = condition(self.status, kind)
            if found.get("status") == "False" and (known is None or found["reason"] in known):
                return f"{found['reason']}: {found['message']}"
        return ""

    def condition(self, kind: str, value: bool, reason: str, message: str) -> None:
        text = "True" if value else "False"
        generation = self.job.generation
        set_condition(self.status, kind, text, reason, message, generation=generation, now=self.now)

    def finished(self) -> Decision:
        """Terminal is terminal: what is still alive is ended, earlier attempts are cleaned up, and the job itself goes
        after its TTL."""
        last, succeeded = self.status.get("attempt", 0), is_true(self.status, "Succeeded")
        # The pods of the last attempt stay for their logs; it may have succeeded before its workload says so.
        ours = [c for c in self.view.others if not (succeeded and c.attempt == last)]
        decision = Decision(self.status, delete=[c for c in ours if c.attempt < last or c.state == "active"])
        ttl = self.job.cluster.run_policy.ttl_seconds_after_finished
        if ttl is not None:
            ended = parse_time(self.status["completionTime"])
            assert ended is not None
            left = (ended + timedelta(seconds=ttl) - self.now).total_seconds()
            decision.delete_job, decision.requeue = left <= 0, max(left, 0)
        return decision

    def between(self) -> Decision:
        """No attempt is alive: start the next one when nothing stands against it."""
        policy = self.job.cluster.run_policy
        if not policy.suspend:
            self.status.setdefault("startTime", format_time(self.now))
        if policy.cancel or self._deadline_left() <= 0:
            return self._end()
        decision = Decision(self.status, delete=self._stale_children(), requeue=self._until_deadline())
        self._show_suspension()
        blocker = self.view.blocker
        if blocker is None or blocker.condition != "Accepted":
            self.condition("Accepted", True, "Accepted", "the spec is valid and everything that it names is there")
        if blocker is not None:
            self.condition(blocker.condition, False, blocker.reason, blocker.message)
            if blocker.fails:
                return self._fail(Cause(blocker.reason, blocker.message))
            waiting = "Pending" if blocker.condition == "Accepted" else "Blocked"
            self.status["phase"] = "Suspended" if policy.suspend else waiting
            if not blocker.final:
                decision.requeue = min(self._poll(blocker), decision.requeue or float("inf"))
            return decision
        if upstreams(self.job):
            self.condition("UpstreamReady", True, "Succeeded", "the jobs whose results are used have succeeded")
        if policy.suspend:
            self.status["phase"] = "Suspended"
            return decision
        not_before = parse_time(self.status.get("retry", {}).get("notBefore"))
        if not_before and not_before > self.now:
            self.status["phase"] = "Restarting"
            decision.requeue = min((not_before - self.now).total_seconds(), decision.requeue or float("inf"))
            return decision
        self.status.setdefault("attempt", 0)
        self.status.setdefault("restarts", 0)
        if condition(self.status, "Running").get("reason") in REFUSAL_REASONS:
            # The last try was refused, and why stays to be read until one is not.
            self.status["phase"] = "Starting"
        else:
            self._show_starting()
        decision.create = True
        return decision

    def _poll(self, blocker: Blocker) -> float:
        """Return the seconds until a blocked job looks again: soon at first, and seldom if nobody mends it."""
        since = parse_time(condition(self.status, blocker.condition)["lastTransitionTime"])
        assert since is not None
        waited = (self.now - since).total_seconds()
        return min(max(waited / 10, REFERENCE_POLL_SECONDS), MAX_REFERENCE_POLL_SECONDS)

    def alive(self) -> Decision:
        """The attempt has a workload, or had one."""
        if condition(self.status, "Accepted").get("status") != "True":
            self.condition("Accepted", True, "Accepted", "the spec was valid when the attempt began")
        child = self.view.child
        if child is not None:
            self.status["workload"] = {
                "apiVersion": child.api_version, "kind": child.kind, "name": child.name, "uid": child.uid
            }  # fmt: skip
        if self.view.succeeded(self.job.cluster.num_nodes):
            return self._succeed()
        policy = self.job.cluster.run_policy
        if policy.cancel or policy.suspend or self._deadline_left() <= 0:
            return self._stop(child)
        if self._start_left() <= 0 or condition(self.status, "Running").get("reason") == START_TIMEOUT:
            return self._release(child)
        vanished = [pod for pod in self.view.pods if pod.gone and pod.phase not in ("Succeeded", "Failed")]
        # One that says it succeeded while a pod's record says otherwise has failed, once the pods have ended.
        over = child is not None and child.state == "succeeded" and all(pod.finished for pod in self.view.pods)
        if child is None or child.deleting or child.state == "failed" or over or vanished:
            return self._ending(child)
        self._show_running()
        left = min(self._deadline_left(), self._start_left())
        decision = Decision(self.status, delete=self._stale_children(), requeue=left if left != float("inf") else None)
        if len(self.view.pods) < self.job.cluster.num_nodes:
            # No watch tells of pods that could not be created.
            decision.requeue = min(DENIAL_POLL_SECONDS, decision.requeue or DENIAL_POLL_SECONDS)
        return decision

    def _show_running(self) -> None:
        nodes = self.job.cluster.num_nodes
        running = sum(pod.phase == "Running" and pod.started for pod in self.view.pods)
        finished = sum(pod.finished for pod in self.view.pods)
        if running + finished >= nodes and (running or condition(self.status, "Running").get("status") == "True"):
            self.condition("Running", True, "AllPodsRunning", f"attempt {self.status['attempt']} runs on {nodes} pods")
            self.status["phase"] = "Running"
            return
        self._show_starting(waiting_reason(self.view.pods, self.view.denials))

    def _show_starting(self, why_not: tuple[str, str] | None = None) -> None:
        """Say that the attempt starts; nothing changes, so nothing is written, while its pods come up one by one."""
        reason, message = why_not or ("Starting", f"attempt {self.status['attempt']} starts")
        self.condition("Running", False, reason, message)
        self.status["phase"] = "Starting"

    def _ending(self, child: Child | None) -> Decision:
        """The attempt has failed: once every pod has ended, find the cause and decide about the next attempt."""
        doomed = [child] if child is not None and child.state == "active" and not child.deleting else []
        waiting = [pod for pod in self.view.pods if not self._over(pod)]
        if doomed or waiting:
            # No count: it would be one write for each pod of a gang.
            message = f"attempt {self.status['attempt']} failed; its pods have yet to end"
            self.condition("Running", False, STOPPING if self._ran else "StartFailed", message)
            self.status["phase"] = "Restarting"
            return Decision(self.status, delete=doomed, requeue=10.0)
        cause = self._cause(child)
        reason = REASONS[cause.reason]
        if not reason.retryable:
            return self._fail(cause)
        return self._restart(cause)

    def _start_left(self) -> float:
        """Return the seconds until the attempt gives its nodes back, since others find none."""
        cluster = self.job.cluster
        since = half_since(self.view.pods, cluster.num_nodes)
        if since is None or self._ran:
            return float("inf")
        timeout = cluster.run_policy.start_timeout_seconds
        return (release_time(since, timeout, older_waits=self.view.older_waits) - self.now).total_seconds()

    def _release(self, child: Child | None) -> Decision:
        """Give the attempt's nodes back; the next one starts after a pause and costs nothing, however often."""
        seconds = self.job.cluster.run_policy.start_timeout_seconds
        message = f"some pods found no node in runPolicy.startTimeoutSeconds ({seconds}): {self._short_of()}"
        if condition(self.status, "Running").get("reason") == START_TIMEOUT:
            message = condition(self.status, "Running")["message"]
        if child is None and all(self._over(pod) for pod in self.view.pods):
            return self._restart(Cause(START_TIMEOUT, message), counts=False)
        self.condition("Running", False, START_TIMEOUT, message)
        self.status["phase"] = "Restarting"
        return Decision(self.status, delete=[child] if child and not child.deleting else [], requeue=10.0)

    def _short_of(self) -> str:
        return next((pod.unschedulable for pod in self.view.pods if pod.unschedulable), "they are not there yet")

    def _cause(self, child: Child | None) -> Cause:
        if not self.view.pods and (child is None or child.deleting):
            gone = self.status["workload"]
            return Cause("ChildDeleted", f"{gone['kind']} {gone['name']} was deleted while it ran")
        cluster = self.job.cluster
        # Pods that are gone say nothing: a report of the attempt does, and so does what the condition said.
        ran = self._ran or self.current.get("progress", {}).get("attempt") == self.status["attempt"]
        return classify(self.view.pods, cluster.num_nodes, processes_per_node(cluster), ran=ran)

    def _restart(self, cause: Cause, *, counts: bool = True) -> Decision:
        """Count the failure; then either the next attempt, or the end."""
        retry = {"counted": 0, "freeInARow": 0, "inARow": 0, "checkpointStep": 0, **self.status.get("retry", {})}
        newest = max([self._newest_checkpoint(), retry["checkpointStep"]])
        if newest > retry["checkpointStep"]:
            retry |= {"freeInARow": 0, "inARow": 0, "checkpointStep": newest}
        retry["inARow"] += 1
        allowed = MAX_FREE_IN_A_ROW if REASONS[cause.reason].free else MAX_UNTOLD_IN_A_ROW if cause.untold else 0
        if not counts:
            pass
        elif retry["freeInARow"] < allowed:
            retry["freeInARow"] += 1
        elif retry["counted"] >= self.job.cluster.run_policy.max_restarts:
            return self._fail(cause)
        else:
            retry["counted"] += 1
        delay = min(BACKOFF_SECONDS * 2 ** min(retry["inARow"] - 1, 10), MAX_BACKOFF_SECONDS)
        retry["notBefore"] = format_time(self.now + timedelta(seconds=delay))
        ended = self.status["attempt"]
        self.condition("Running", False, cause.reason, f"attempt {ended} failed: {cause.message}")
        self.status |= {"retry": retry, "attempt": ended + 1, "restarts": self.status.get("restarts", 0) + 1}
        self.status["phase"] = "Restarting"
        del self.status["workload"]
        return Decision(self.status, requeue=float(delay))

    def _newest_checkpoint(self) -> int:
        steps = [int(checkpoint["step"]) for checkpoint in self.current.get("checkpoints", ())]
        return max(steps, default=0)

    def _stop(self, child: Child | None) -> Decision:
        """End the attempt from outside: intent first, then the deletion, then the end."""
        if child is None and all(self._over(pod) for pod in self.view.pods):
            return self._end()
        reason, message = self._wish()
        self.condition("Running", False, reason, message)
        return Decision(self.status, delete=[child] if child and not child.deleting else [], requeue=10.0)

    def _wish(self) -> tuple[str, str]:
        """Why the job is to stop: cancellation before deadline before suspension."""
        policy = self.job.cluster.run_policy
        if policy.cancel:
            return "Cancelling", "runPolicy.cancel is true"
        if self._deadline_left() <= 0:
            if (said := condition(self.status, "Running")).get("reason") == "DeadlineExceeded":
                return said["reason"], said["message"]
            message = f"not done {policy.active_deadline_seconds} s after its start"
            return "DeadlineExceeded", message + (f"; it waited for: {waited}" if (waited := self._waits_for()) else "")
        return "Suspending", "runPolicy.suspend is true"

    def _end(self) -> Decision:
        """Nothing of the attempt is left: the job ends as it was wished, or rests."""
        reason, message = self._wish()
        if reason == "Cancelling":
            self.condition("Running", False, "Cancelled", message)
            self.condition("Succeeded", False, "Cancelled", message)
            return self._complete("Cancelled")
        if reason == "DeadlineExceeded":
            return self._fail(Cause(reason, message))
        self.condition("Running", False, "Suspended", message)
        self._show_suspension()
        self.status["attempt"] += 1
        self.status["phase"] = "Suspended"
        if "retry" in self.status:
            self.status["retry"] = {k: v for k, v in self.status["retry"].items() if k != "notBefore"}
        del self.status["workload"]
        return Decision(self.status)

    def _show_suspension(self) -> None:
        """Say whether the job rests, and count for how long it did."""
        before = condition(self.status, "Suspended")
        if self.job.cluster.run_policy.suspend:
            self.condition("Suspended", True, "Suspended", "runPolicy.suspend is true; no pod is left")
        elif before.get("status") == "True":
            since, start = parse_time(before["lastTransitionTime"]), parse_time(self.status.get("startTime"))
            assert since is not None
            # Before the start nothing runs that could stand still.
            rested = max(0, int((self.now - max(since, start or self.now)).total_seconds()))
            self.status["suspendedSeconds"] = self.status.get("suspendedSeconds", 0) + rested
            self.condition("Suspended", False, "Resumed", "runPolicy.suspend is false")

    def _succeed(self) -> Decision:
        found = records(self.view.pods)
        reason = "Succeeded" if found else "NoExitRecord"
        message = "training has finished" if found else "all pods ended with exit code 0 and left no exit record"
        self.condition("Running", False, reason, message)
        self.condition("Succeeded", True, reason, message)
        # Every rank may name them; the list is keyed by type, and the lowest rank has the word.
        artifacts = {artifact.type: artifact.to_wire() for record in reversed(found) for artifact in record.artifacts}
        if artifacts:
            self.status["artifacts"] = list(artifacts.values())
        return self._complete("Succeeded")

    def _fail(self, cause: Cause) -> Decision:
        failure: Status = {
            "reason": cause.reason,
            "message": clean(cause.message, 1024),
            "hint": REASONS[cause.reason].hint,
            "pod": cause.pod,
            "rank": cause.rank,
            "exitCode": cause.exit_code,
            "log": clean(cause.log, 2048) if cause.log else None,
        }
        self.status["failure"] = {name: value for name, value in failure.items() if value is not None}
        self.condition("Running", False, cause.reason, cause.message)
        self.condition("Succeeded", False, cause.reason, cause.message)
        return self._complete("Failed")

    def _complete(self, phase: str) -> Decision:
        self.status |= {"phase": phase, "completionTime": format_time(self.now)}
        return self.finished()

    def _stale_children(self) -> list[Child]:
        """Other attempts: alive though they should not be, or older than the one before."""
        attempt = self.status.get("attempt", 0)
        return [c for c in self.view.others if not c.deleting and (c.state == "active" or c.attempt < attempt - 1)]

    def _over(self, pod: Pod) -> bool:
        if pod.finished:
            return True
        return bool(pod.deletion_time and self.now > pod.deletion_time + timedelta(seconds=LOST_NODE_SECONDS))

    def _deadline_left(self) -> float:
        deadline = self.job.cluster.run_policy.active_deadline_seconds
        start = parse_time(self.status.get("startTime"))
        if deadline is None or start is None or is_true(self.status, "Suspended"):
            return float("inf")
        rested = self.status.get("suspendedSeconds", 0)
        return (start + timedelta(seconds=deadline + rested) - self.now).total_seconds()

    def _until_deadline(self) -> float | None:
        left = self._deadline_left()
        return left if left != float("inf") else None
