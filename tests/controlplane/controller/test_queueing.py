"""Jobs that wait in a queue where there is no Kueue: the test lets their PyTorchJobs go, and takes that back."""

from collections.abc import Callable
from typing import Any

import pytest

from devcluster.fakenode import Exit, FakeNode
from devcluster.waiting import wait_for

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def is_queued(attempt: int, reason: str = "KueueNotEnabled") -> Callable[[Any], bool]:
    """The job waits, and says of which PyTorchJob: it is there."""

    def holds(status: Any) -> bool:
        if status.get("workload", {}).get("name") != f"tune-dpo-{attempt}":
            return False
        queued = [found for found in status.get("conditions", ()) if found["type"] == "Queued"]
        said = [(found["status"], found["reason"]) for found in queued]
        return status.get("phase") == "Queued" and status["attempt"] == attempt and said == [("True", reason)]

    return holds


def let_go(jobs: Any, attempt: int, suspend: bool = False) -> None:
    jobs.patch("pytorchjob", f"tune-dpo-{attempt}", {"spec": {"runPolicy": {"suspend": suspend}}})


def test_a_queued_job_is_made_suspended_moves_between_queues_and_outlives_an_eviction(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    node.sigterm = Exit(143, record("Preempted", reason="Preempted"), after_seconds=1.0)
    jobs.apply(dpo(queue={"name": "team", "priorityClass": "low"}, runPolicy={"maxRestarts": 0}))
    jobs.wait("dpojob", "tune", "says that it waits, and that nobody tells for what", is_queued(0))
    made = jobs.get("pytorchjob", "tune-dpo-0")
    assert (made["metadata"]["labels"][QUEUE], made["metadata"]["labels"][PRIORITY]) == ("team", "low")
    assert made["spec"]["runPolicy"]["suspend"] is True
    # While it waits it may move: it is made anew there.
    jobs.patch("dpojob", "tune", {"spec": {"queue": {"name": "other", "priorityClass": None}}})
    jobs.wait("dpojob", "tune", "waits there", is_queued(1))
    labels = jobs.get("pytorchjob", "tune-dpo-1")["metadata"]["labels"]
    assert (labels[QUEUE], PRIORITY in labels) == ("other", False)
    assert not jobs.list("pods")
    let_go(jobs, 1)
    [pod] = node.wait_for_pods(1, "tune-dpo-1")
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    with pytest.raises(Exception, match=r"spec.queue.*cannot be changed while an attempt runs"):
        jobs.patch("dpojob", "tune", {"spec": {"queue": {"name": "team"}}})
    let_go(jobs, 1, suspend=True)
    jobs.wait("dpojob", "tune", "waits again", is_queued(2))
    assert [pod["metadata"]["name"] for pod in jobs.list("pods")] == []
    assert [made["metadata"]["name"] for made in jobs.list("pytorchjobs")] == ["tune-dpo-2"]
    let_go(jobs, 2)
    [pod] = node.wait_for_pods(1, "tune-dpo-2")
    node.run(pod)
    node.succeed(pod, record(attempt=2))
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert "counted" not in status["retry"] or status["retry"]["counted"] == 0
    with pytest.raises(Exception, match=r"spec.queue.*nor after the end"):
        jobs.patch("dpojob", "tune", {"spec": {"queue": {"name": "team"}}})


def test_the_label_of_a_job_is_its_queue_and_a_suspended_job_leaves_it(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    job = dpo(runPolicy={"suspend": True})
    job["metadata"]["labels"] = {QUEUE: "team"}
    jobs.apply(job)
    jobs.wait_for_phase("tune", "Suspended")
    jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"suspend": False}}})
    jobs.wait("dpojob", "tune", "waits", is_queued(0))
    assert jobs.get("pytorchjob", "tune-dpo-0")["metadata"]["labels"][QUEUE] == "team"
    # A label is no new generation; whoever changes it is heard all the same.
    jobs.patch("dpojob", "tune", {"metadata": {"labels": {QUEUE: "other"}}})
    jobs.wait("dpojob", "tune", "waits there", is_queued(1))
    jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"suspend": True}}})
    status = jobs.wait_for_phase("tune", "Suspended")
    assert "Queued" not in {found["type"] for found in status["conditions"]}
    wait_for("nothing of it is in a queue", lambda: not jobs.list("pytorchjobs"), 10)
