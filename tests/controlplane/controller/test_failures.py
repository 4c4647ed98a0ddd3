"""What happens when an attempt fails, or when somebody interferes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from reporting import Trainer, report

from devcluster.fakenode import Exit, FakeNode
from devcluster.waiting import wait_for

SHARED = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}


def start(jobs: Any, node: FakeNode, job: Any, attempt: int = 0) -> list[Any]:
    """Apply a job of two nodes and run its pods."""
    jobs.apply(job)
    return run(jobs, node, job["metadata"]["name"], attempt)


def run(jobs: Any, node: FakeNode, name: str, attempt: int) -> list[Any]:
    pods = node.wait_for_pods(2, f"{name}-dpo-{attempt}", timeout=90)
    for pod in pods:
        node.run(pod)
    jobs.wait("dpojob", name, "runs", lambda s: s.get("phase") == "Running" and s["attempt"] == attempt)
    return pods


def succeed(node: FakeNode, pods: list[Any], message: str) -> None:
    for pod in pods:
        node.succeed(pod, message)


def test_a_failed_worker_restarts_the_gang_exactly_once(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    node.sigterm = Exit(137, record("Failed", reason="PeerLost", message="a peer is gone", rank=0))
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED))
    node.fail(pods[1], 1, message="Segmentation fault")
    status = jobs.wait("dpojob", "tune", "restarts", lambda s: s.get("restarts") == 1)
    running = next(c for c in status["conditions"] if c["type"] == "Running")
    assert (running["status"], running["reason"]) == ("False", "Unknown")
    assert pods[1]["metadata"]["name"] in running["message"]
    told = node.files(pods[0], "/etc/trl")
    pods = run(jobs, node, "tune", 1)
    again = node.files(pods[0], "/etc/trl")
    assert (again.pop("attempt.json"), told.pop("attempt.json")) == ('{"attempt": 1}', '{"attempt": 0}')
    assert again == told, "the run is the same"
    succeed(node, pods, record(attempt=1))
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert (status["restarts"], status["attempt"]) == (1, 1)
    assert "failure" not in status
    assert status["retry"]["counted"] == 1


def test_a_worker_pod_deleted_by_hand_costs_a_restart_and_is_told_as_that(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    node.sigterm = Exit(143, record("Preempted", reason="Preempted", message="SIGTERM", rank=0))
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED))
    jobs.delete("pod", pods[1]["metadata"]["name"])
    status = jobs.wait("dpojob", "tune", "restarts", lambda status: status.get("restarts") == 1)
    [running] = [c for c in status["conditions"] if c["type"] == "Running"]
    assert (running["reason"], "was deleted while it ran" in running["message"]) == ("ChildDeleted", True)
    pods = run(jobs, node, "tune", 1)
    succeed(node, pods, record(attempt=1))
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert (status["restarts"], status["retry"]["counted"]) == (1, 1)


def test_a_failure_of_the_users_making_ends_the_job_with_reason_and_hint(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    node.sigterm = Exit(137, record("Failed", reason="PeerLost", message="a peer is gone", rank=0))
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED))
    message = record("Failed", reason="DataFormatError", message="row 7 has no chosen", rank=1, log="Traceback: row 7")
    node.fail(pods[1], 10, message=message)
    status = jobs.wait_for_phase("tune", "Failed")
    failure = status["failure"]
    assert (failure["reason"], failure["rank"], failure["exitCode"]) == ("DataFormatError", 1, 10)
    assert failure["message"] == "row 7 has no chosen"
    assert failure["pod"] == pods[1]["metadata"]["name"]
    assert failure["log"] == "Traceback: row 7"
    assert "maxBadRows" in failure["hint"]
    shown = jobs.plane.kubectl("get", "dpojob", "tune", f"--namespace={jobs.namespace}", "--output=wide")
    assert shown.split("\n")[1].rstrip().endswith("DataFormatError   row 7 has no chosen")
    jobs.plane.kubectl(
        "wait", "--for=condition=Finished", "dpojob/tune", f"--namespace={jobs.namespace}", "--timeout=5s"
    )
    ends = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert (ends["Succeeded"], ends["Failed"]) == (("False", "DataFormatError"), ("True", "DataFormatError"))
    assert len(jobs.list(jobs.workloads)) == 1

    def told() -> list[Any]:
        return [event for event in jobs.list("events") if event["involvedObject"]["kind"] == "DPOJob"]

    # Events follow the status.
    wait_for("the end is told", lambda: "Failed" in {event["reason"] for event in told()}, 20)
    assert {event["reason"] for event in told()} == {"AttemptStarted", "Running", "Failed"}
    assert all(event["involvedObject"]["uid"] == jobs.get("dpojob", "tune")["metadata"]["uid"] for event in told())


def test_a_gpu_without_room_gets_half_the_micro_batch_in_the_next_attempt(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    node.sigterm = Exit(137, record("Failed", reason="PeerLost", message="a peer is gone", rank=0))
    policy = {"onOutOfMemory": "ShrinkMicroBatch", "maxRestarts": 0}
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED, runPolicy=policy, training={"perDeviceBatchSize": 2}))
    told = node.files(pods[0], "/etc/trl")
    full = record("Failed", reason="OutOfGPUMemory", activity="training", message="CUDA out of memory", rank=1)
    node.fail(pods[1], 11, message=full)
    status = jobs.wait("dpojob", "tune", "restarts", lambda s: s.get("restarts") == 1)
    adapted = {"attempt": 1, "reason": "OutOfGPUMemory", "perDeviceBatchSize": 1, "gradientAccumulationSteps": 8}
    assert (status["adaptations"], status["retry"]["counted"]) == ([adapted], 0)
    pods = run(jobs, node, "tune", 1)
    again = node.files(pods[0], "/etc/trl")
    assert json.loads(again.pop("attempt.json")) == {"attempt": 1, "perDeviceBatchSize": 1}
    assert json.loads(told.pop("attempt.json")) == {"attempt": 0}
    assert again == told, "the run is the same"
    node.fail(pods[1], 11, message=full)
    status = jobs.wait_for_phase("tune", "Failed")
    assert (status["failure"]["reason"], status["adaptations"]) == ("OutOfGPUMemory", [adapted])
    assert "perDeviceBatchSize is 1" in status["failure"]["hint"]


def test_a_job_out_of_restarts_fails_with_the_last_cause(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED, runPolicy={"maxRestarts": 0}))
    node.fail(pods[0], 1)
    status = jobs.wait_for_phase("tune", "Failed")
    assert status["failure"]["reason"] == "Unknown"
    assert status["restarts"] == 0


def test_a_workload_deleted_by_hand_is_a_failed_attempt(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    start(jobs, node, dpo(numNodes=2, storage=SHARED))
    jobs.delete(jobs.workloads, "tune-dpo-0")
    status = jobs.wait("dpojob", "tune", "restarts", lambda s: s.get("restarts") == 1, 90)
    assert status["attempt"] == 1
    node.wait_for_pods(2, "tune-dpo-1", timeout=90)


def test_a_pod_deleted_by_force_restarts_the_gang_though_its_workload_goes_on(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED))
    name = pods[1]["metadata"]["name"]
    jobs.plane.kubectl(
        "delete", "pod", name, f"--namespace={jobs.namespace}", "--force", "--grace-period=0", "--wait=false"
    )
    status = jobs.wait("dpojob", "tune", "restarts", lambda s: s.get("restarts") == 1, 90)
    running = next(c for c in status["conditions"] if c["type"] == "Running")
    assert running["reason"] == "ChildDeleted"
    run(jobs, node, "tune", 1)
    assert all(pod["status"]["phase"] == "Failed" for pod in node.pods("tune-dpo-0"))


def test_deleting_a_job_removes_every_child_but_the_retained_claim(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    [pod, _] = start(jobs, node, dpo(numNodes=2, storage=SHARED))
    start(jobs, node, dpo("brief", numNodes=2, storage={**SHARED, "retain": False}))
    kinds = f"{jobs.workloads},configmaps,networkpolicies,persistentvolumeclaims,pods"

    def there() -> set[str]:
        # A claim keeps its finalizer here: the controller that takes it off does not run.
        found = [obj["metadata"] for obj in jobs.list(kinds)]
        return {meta["name"] for meta in found if "deletionTimestamp" not in meta} - {"kube-root-ca.crt"}

    assert {"tune-dpo", "tune-dpo-0", "brief-dpo", "brief-dpo-0", pod["metadata"]["name"]} <= there()
    jobs.delete("dpojob", "tune")
    jobs.delete("dpojob", "brief")
    wait_for("the children are gone", lambda: there() == {"tune-dpo"}, 90, 0.5)
    [left] = [claim for claim in jobs.list("persistentvolumeclaims") if claim["metadata"]["name"] == "tune-dpo"]
    assert "ownerReferences" not in left["metadata"]
    jobs.apply(dpo(numNodes=2, storage=SHARED))
    run(jobs, node, "tune", 0)


def test_a_finished_job_is_left_alone_and_deleted_after_its_ttl(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    succeed(node, start(jobs, node, dpo(numNodes=2, storage=SHARED)), record())
    done = jobs.wait_for_phase("tune", "Succeeded")
    jobs.delete(jobs.workloads, "tune-dpo-0")
    wait_for("its workload is gone", lambda: not jobs.list(jobs.workloads), 60, 0.2)
    jobs.patch("dpojob", "tune", {"metadata": {"labels": {"touched": "yes"}}})
    jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"ttlSecondsAfterFinished": 1}}})
    wait_for("the job is gone", lambda: jobs.get("dpojob", "tune") is None, 60, 0.2)
    assert not jobs.list(jobs.workloads)
    assert done["attempt"] == 0


def test_a_job_over_its_deadline_is_stopped_and_fails(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    start(jobs, node, dpo(numNodes=2, storage=SHARED))
    jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"activeDeadlineSeconds": 1}}})
    status = jobs.wait_for_phase("tune", "Failed", seconds=90)
    assert status["failure"]["reason"] == "DeadlineExceeded"
    assert not jobs.list(jobs.workloads)
    # A pod that has ended may be on its way out still.
    wait_for("no pod is left", lambda: not node.pods("tune-dpo-0"), 30)


def test_an_out_of_memory_kill_names_the_memory_limit(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED))
    node.oom_kill(pods[0])
    status = jobs.wait_for_phase("tune", "Failed")
    assert status["failure"]["reason"] == "OutOfHostMemory"
    assert "resources.limits.memory" in status["failure"]["hint"]


def test_a_lost_node_is_free_and_the_job_goes_on_elsewhere(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED, runPolicy={"maxRestarts": 0}))
    node.evict(pods[0], "The node was low on resource: memory.")
    run(jobs, node, "tune", 1)
    status = jobs.status("dpojob", "tune")
    assert (status["restarts"], status["retry"]["counted"]) == (1, 0)


def test_a_training_that_reports_the_same_step_for_the_stall_timeout_is_ended_and_starts_again(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    """How long it stands still, its reports say by their own clock; a change of runPolicy makes the operator look."""
    policy = {"stallTimeoutSeconds": 30}
    pods = start(jobs, node, dpo(numNodes=2, storage=SHARED, runPolicy=policy))

    def stands_still(seconds_ago: float, deadline: int) -> None:
        time = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert Trainer(node, pods[0]).post(report(5, lastUpdateTime=time))[0] == 200
        jobs.wait("dpojob", "tune", "shows it", lambda s: s.get("progress", {}).get("lastUpdateTime") == time, 20)
        jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"activeDeadlineSeconds": deadline}}})

    stands_still(40, deadline=3600)
    silent = jobs.wait("dpojob", "tune", "is silent", lambda s: "Stalled" in {c["type"] for c in s["conditions"]}, 20)
    [stalled] = [found for found in silent["conditions"] if found["type"] == "Stalled"]
    assert (stalled["status"], stalled["reason"], silent["phase"]) == ("Unknown", "NoReports", "Running")
    node.sigterm = Exit(143, record("Preempted", reason="Preempted", message="SIGTERM", rank=0))
    stands_still(0, deadline=3601)
    status = jobs.wait("dpojob", "tune", "restarts", lambda s: s.get("restarts") == 1, 30)
    [running] = [found for found in status["conditions"] if found["type"] == "Running"]
    assert (running["reason"], "always at step 5" in running["message"]) == ("Stalled", True)
    assert status["retry"]["counted"] == 1
    succeed(node, run(jobs, node, "tune", 1), record(attempt=1))
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert (status["restarts"], len(jobs.list(jobs.workloads))) == (1, 1)


def test_a_workload_that_somebody_suspends_waits_and_goes_on_at_no_cost(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    node.sigterm = Exit(143, record("Preempted", reason="Preempted", message="SIGTERM", rank=0))
    start(jobs, node, dpo(numNodes=2, storage=SHARED))
    jobs.suspend("tune-dpo-0", True)

    def waits(status: Any) -> bool:
        return any(found["reason"] == "WorkloadSuspended" for found in status["conditions"])

    status = jobs.wait("dpojob", "tune", "waits", waits, 30)
    [running] = [found for found in status["conditions"] if found["type"] == "Running"]
    assert (running["status"], status["phase"]) == ("False", "Starting")
    assert running["message"].startswith(f"{jobs.kind} tune-dpo-0 was suspended by kubectl-patch: let it go")
    wait_for("its pods are gone", lambda: not jobs.list("pods"), 30)
    jobs.suspend("tune-dpo-0", False)
    succeed(node, run(jobs, node, "tune", 0), record())
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert (status["attempt"], status["restarts"]) == (0, 0)
