"""Jobs in the queues of a real Kueue."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from devcluster.fakenode import Exit, FakeNode, Pod
from devcluster.faultproxy import Delay, FaultProxy, Request, Verdict
from devcluster.waiting import wait_for

ONE_CPU = {"requests": {"cpu": 1}}
Obj = dict[str, Any]


def queued(status: Obj) -> tuple[str, str, str]:
    """Status, reason and message of the condition Queued."""
    found = [each for each in status.get("conditions", ()) if each["type"] == "Queued"]
    return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else ("", "", "")


def waits(reason: str, words: str, attempt: int = 0) -> Callable[[Obj], bool]:
    def holds(status: Obj) -> bool:
        value, why, message = queued(status)
        said = (status.get("phase"), status.get("attempt"), value, why)
        return said == ("Queued", attempt, "True", reason) and words in message

    return holds


@pytest.fixture
def job(dpo: Callable[..., Obj]) -> Callable[..., Obj]:
    """A job of one CPU that must not be restarted for a reason of its own."""

    def make(name: str = "tune", queue: str = "team", priority: str = "", **spec: Any) -> Obj:
        where = {"name": queue} | ({"priorityClass": priority} if priority else {})
        return dpo(name, queue=where, resources=ONE_CPU, runPolicy={"maxRestarts": 0}, **spec)

    return make


def run(jobs: Any, node: FakeNode, name: str, attempt: int = 0) -> Pod:
    [pod] = node.wait_for_pods(1, f"{name}-dpo-{attempt}")
    node.run(pod)
    status = jobs.wait_for_phase(name, "Running")
    assert queued(status)[:2] == ("False", "Admitted")
    return pod


def test_of_three_jobs_one_runs_at_a_time_and_of_the_others_the_next_says_which_quota_it_waits_for(
    operator: Any, jobs: Any, node: FakeNode, job: Callable[..., Obj], quota: Any, local_queue: Any, record: Any,
    render_chart: Callable[..., list[Obj]],
) -> None:  # fmt: skip
    quota(1)
    local_queue("team")
    rest = ["a", "b", "c"]
    jobs.apply(*(job(name) for name in rest))
    lacks = f"insufficient unused quota for cpu in flavor {jobs.namespace}, 1 more needed"
    short = f"LocalQueue team: couldn't assign flavors to pod set worker: {lacks}"

    def started() -> list[str]:
        return [name for name in rest if queued(jobs.status("dpojob", name))[0] == "False"]

    while rest:
        wait_for("one of them has its turn", started, 60)
        [name] = started()
        pod = run(jobs, node, name)
        given = f"ClusterQueue {jobs.namespace}: cpu of flavor {jobs.namespace}"
        assert queued(jobs.status("dpojob", name))[2] == f"admitted by {given}"
        rest.remove(name)

        def printed() -> bool:
            return short in jobs.plane.kubectl("get", "dpojobs", "-o", "wide", f"--namespace={jobs.namespace}")

        if rest:
            # Of those that are alike, Kueue looks at the first one only.
            wait_for("the next one says which quota", printed, 30)
        node.succeed(pod, record())
        jobs.wait_for_phase(name, "Succeeded")
    kueue = {(entry["objectRef"]["resource"], entry["verb"]) for entry in jobs.plane.audit(operator.user)
             if entry.get("objectRef", {}).get("apiGroup") == "kueue.x-k8s.io"}  # fmt: skip
    objects = render_chart(jobs.namespace, f"scope.namespaces={{{jobs.namespace}}}", "kueue.enabled=true")
    rules = [rule for obj in objects if obj["kind"] == "Role" for rule in obj["rules"]]
    granted = {(resource, verb) for rule in rules if "kueue.x-k8s.io" in rule["apiGroups"]
               for resource in rule["resources"] for verb in rule["verbs"]}  # fmt: skip
    assert kueue == granted


@pytest.mark.parametrize("backend", ["pytorchjob", "trainjob"])
def test_a_job_that_is_preempted_ends_its_attempt_at_no_cost_and_queues_again(
    operator: Any, jobs: Any, node: FakeNode, job: Callable[..., Obj], quota: Any, local_queue: Any, record: Any,
    priorities: None, backend: str,
) -> None:  # fmt: skip
    node.sigterm = Exit(143, record("Preempted", reason="Preempted", message="SIGTERM"), after_seconds=1.5)
    quota(1)
    local_queue("team")
    jobs.apply(job("low", priority="low", backend=backend))
    run(jobs, node, "low")
    jobs.apply(job("high", priority="high", backend=backend))
    status = jobs.wait("dpojob", "low", "loses its place", lambda status: status.get("restarts") == 1)
    assert status["retry"]["counted"] == 0
    low = jobs.wait("dpojob", "low", "queues again", waits("Pending", "insufficient unused quota", attempt=1))
    [pod] = [pod["metadata"]["name"] for pod in jobs.list("pods")]
    assert pod.startswith("high-dpo-0"), "no pod of the attempt that has ended is left"
    told = [event["message"] for event in jobs.list("events") if event["reason"] == "AttemptFailed"]
    assert ["EvictedByKueue" in message and "Preempted" in message for message in told] == [True], told
    assert low["restarts"] == 1
    node.succeed(run(jobs, node, "high"), record())
    node.succeed(run(jobs, node, "low", 1), record(attempt=1))
    assert jobs.wait_for_phase("low", "Succeeded")["retry"]["counted"] == 0


def test_a_queue_that_is_missing_is_said_at_once_and_the_job_starts_when_it_is_there(
    operator: Any, jobs: Any, node: FakeNode, job: Callable[..., Obj], quota: Any, local_queue: Any, record: Any
) -> None:
    quota(2)
    began = time.monotonic()
    jobs.apply(job("later", queue="later"), job("moves", queue="nowhere"))
    for name, queue in (("later", "later"), ("moves", "nowhere")):
        jobs.wait("dpojob", name, "says it", waits("Inadmissible", f"LocalQueue {queue} doesn't exist"), 5)
    assert time.monotonic() - began < 5
    local_queue("later")
    run(jobs, node, "later")
    jobs.patch("dpojob", "moves", {"spec": {"queue": {"name": "later"}}})
    node.succeed(run(jobs, node, "moves", 1), record(attempt=1))
    jobs.wait_for_phase("moves", "Succeeded")


def test_one_that_is_evicted_while_it_starts_queues_again_and_one_whose_workload_is_not_active_stays(
    operator: Any, jobs: Any, node: FakeNode, job: Callable[..., Obj], quota: Any, local_queue: Any, record: Any
) -> None:
    quota(1)
    local_queue("team")
    jobs.apply(job())
    node.wait_for_pods(1, "tune-dpo-0", "Pending")
    jobs.wait_for_phase("tune", "Starting")
    quota(1, stopPolicy="HoldAndDrain")
    stopped = waits("Inadmissible", f"ClusterQueue {jobs.namespace} is inactive", attempt=1)
    assert jobs.wait("dpojob", "tune", "queues again", stopped)["restarts"] == 1
    quota(1)
    run(jobs, node, "tune", 1)
    [workload] = [found["metadata"]["name"] for found in jobs.list("workloads")]
    jobs.patch("workload", workload, {"spec": {"active": False}})
    jobs.wait("dpojob", "tune", "says who keeps it", waits("Deactivated", f"Workload {workload}: ", attempt=1))
    wait_for("its pods are gone", lambda: not jobs.list("pods"), 30)
    assert [found["metadata"]["name"] for found in jobs.list("workloads")] == [workload]
    jobs.patch("workload", workload, {"spec": {"active": True}})
    node.succeed(run(jobs, node, "tune", 2), record(attempt=2))
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert (status["restarts"], status["retry"]["counted"]) == (2, 0)


def test_an_attempt_that_was_let_go_is_not_taken_for_evicted_though_its_pods_are_told_of_first(
    quick_operator: Any, proxy: FaultProxy, jobs: Any, node: FakeNode, job: Callable[..., Obj], quota: Any,
    local_queue: Any,
) -> None:  # fmt: skip
    begun: set[str] = set()

    def late(request: Request) -> Verdict:
        """As after a restart: one watch begins before another one."""
        if not request.watches:
            return "pass"
        begun.add(request.resource)
        return Delay(10) if request.resource in ("pytorchjobs", "workloads") else "pass"

    quick_operator.start()
    quota(1)
    jobs.apply(job())
    jobs.wait("dpojob", "tune", "queues", waits("Inadmissible", "LocalQueue team doesn't exist"))
    proxy.before = late
    proxy.cut_watches()
    wait_for("watches begin anew", lambda: {"pods", "pytorchjobs", "workloads"} <= begun, 30)
    local_queue("team")
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    node.run(pod)
    running = jobs.wait_for_phase("tune", "Running", seconds=8)
    assert (running["attempt"], running["restarts"]) == (0, 0)
    assert queued(running)[:2] == ("False", "Admitted")


@pytest.mark.parametrize("backend", ["pytorchjob", "trainjob"])
def test_where_kueue_manages_all_jobs_one_without_a_queue_says_so_and_starts_once_it_names_one(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Obj], quota: Any, local_queue: Any, record: Any,
    managing_all: None, backend: str,
) -> None:  # fmt: skip
    quota(1)
    local_queue("team")
    jobs.apply(dpo("tune", resources=ONE_CPU, backend=backend, runPolicy={"maxRestarts": 0}))
    words = f"(manageJobsWithoutQueueName): set queue.name to a LocalQueue of namespace {jobs.namespace}"
    status = jobs.wait("dpojob", "tune", "says it", waits("QueueNotNamed", words), 20)
    assert status["waiting"]["reason"] == "QueueNotNamed"
    assert "QueueNotNamed" in jobs.plane.kubectl("get", "dpojob", "tune", "-o", "wide", f"--namespace={jobs.namespace}")
    jobs.patch("dpojob", "tune", {"spec": {"queue": {"name": "team"}}})
    node.succeed(run(jobs, node, "tune", 1), record(attempt=1))
    assert jobs.wait_for_phase("tune", "Succeeded")["retry"]["counted"] == 0
