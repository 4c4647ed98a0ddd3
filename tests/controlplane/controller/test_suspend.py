"""Suspend, resume and cancel."""

from collections.abc import Callable
from typing import Any

from devcluster.fakenode import Exit, FakeNode
from devcluster.waiting import wait_for

SHARED = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}


def set_policy(jobs: Any, **policy: Any) -> None:
    jobs.patch("dpojob", "tune", {"spec": {"runPolicy": policy}})


def run(jobs: Any, node: FakeNode, attempt: int) -> list[Any]:
    pods = node.wait_for_pods(2, f"tune-dpo-{attempt}", timeout=60)
    for pod in pods:
        node.run(pod)
    jobs.wait("dpojob", "tune", "runs", lambda s: s.get("phase") == "Running" and s["attempt"] == attempt)
    return pods


def test_a_suspended_job_rests_without_pods_and_goes_on_at_no_cost(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    saving = 2.0
    node.sigterm = Exit(143, record("Preempted", reason="Preempted"), after_seconds=saving)
    jobs.apply(dpo(numNodes=2, storage=SHARED, runPolicy={"maxRestarts": 0}))
    run(jobs, node, 0)
    set_policy(jobs, suspend=True)
    status = jobs.wait_for_phase("tune", "Suspended")
    assert not jobs.list("pods")
    assert not jobs.list(jobs.workloads)
    jobs.plane.kubectl(
        "wait", "--for=condition=Suspended", "dpojob/tune", f"--namespace={jobs.namespace}", "--timeout=5s"
    )
    set_policy(jobs, suspend=False)
    for pod in run(jobs, node, 1):
        node.succeed(pod, record(attempt=1))
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert status["restarts"] == 0


def test_a_job_created_suspended_starts_when_it_is_let_go(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(dpo(numNodes=2, storage=SHARED, runPolicy={"suspend": True}))
    jobs.wait_for_phase("tune", "Suspended")
    assert not jobs.list(jobs.workloads)
    set_policy(jobs, suspend=False)
    run(jobs, node, 0)


def test_a_cancelled_job_ends_and_stays_ended(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(dpo(numNodes=2, storage=SHARED))
    run(jobs, node, 0)
    set_policy(jobs, cancel=True)
    jobs.plane.kubectl(
        "wait", "--for=condition=Finished", "dpojob/tune", f"--namespace={jobs.namespace}", "--timeout=60s"
    )
    status = jobs.status("dpojob", "tune")
    ends = {c["type"]: c["status"] for c in status["conditions"]}
    assert (status["phase"], ends["Succeeded"], ends["Failed"]) == ("Cancelled", "False", "False")
    assert status["completionTime"]
    wait_for("no pod is left", lambda: not jobs.list("pods"), 30)
    set_policy(jobs, cancel=False)
    jobs.patch("dpojob", "tune", {"metadata": {"labels": {"touched": "yes"}}})
    generation = jobs.get("dpojob", "tune")["metadata"]["generation"]
    seen = jobs.wait("dpojob", "tune", "is about this spec", lambda s: s["observedGeneration"] == generation)
    assert {**seen, "observedGeneration": status["observedGeneration"]} == status
    assert not jobs.list(jobs.workloads)
