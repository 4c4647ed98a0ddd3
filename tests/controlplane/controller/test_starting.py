"""Attempts that cannot start: what only events know, and gangs that hold each other's nodes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for


def running(status: dict[str, Any]) -> tuple[str, str]:
    found = next((c for c in status.get("conditions", ()) if c["type"] == "Running"), None)
    return (found["reason"], found["message"]) if found else ("", "")


def test_a_quota_that_is_used_up_is_told_and_the_job_starts_when_there_is_room(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none"},
            "spec": {"hard": {"pods": "0"}},
        }
    )
    wait_for("the quota is in force", lambda: "hard" in jobs.status("resourcequota", "none"), 30)
    jobs.apply(dpo())
    status = jobs.wait("dpojob", "tune", "tells why", lambda s: running(s)[0] == "QuotaExceeded", 40)
    assert "exceeded quota: none" in running(status)[1]
    assert status["phase"] == "Starting"
    jobs.delete("resourcequota", "none")
    [pod] = node.wait_for_pods(1, "tune-dpo-0", timeout=60)
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")


@pytest.mark.parametrize(
    ("hard", "refused"),
    [
        ("persistentvolumeclaims", "PersistentVolumeClaim tune-dpo"),
        ("count/pytorchjobs.kubeflow.org", "PyTorchJob tune-dpo-0"),
    ],
)
def test_what_a_quota_does_not_let_the_operator_create_is_told(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], hard: str, refused: str
) -> None:
    jobs.apply(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {hard: "0"}}}
    )
    wait_for("the quota is in force", lambda: "hard" in jobs.status("resourcequota", "none"), 30)
    jobs.apply(dpo())
    status = jobs.wait("dpojob", "tune", "tells why", lambda s: running(s)[0] == "QuotaExceeded", 40)
    assert f"{refused} could not be created" in running(status)[1]
    assert "exceeded quota: none" in running(status)[1]
    assert (status["phase"], "workload" in status) == ("Starting", False)
    jobs.delete("resourcequota", "none")
    node.wait_for_pods(1, "tune-dpo-0", timeout=90)


def test_our_pods_pass_pod_security_restricted(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], control_plane: ControlPlane
) -> None:
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", jobs.namespace, enforce)
    polite = {"rewards": [{"name": "polite", "keyword": {"words": ["please"]}}]}
    jobs.apply(dpo(), {**dpo("talk"), "kind": "GRPOJob", "spec": {**dpo()["spec"], "grpo": polite}})
    wait_for("both pods are admitted", lambda: len(node.pods()) == 2, 60)


def test_a_pod_group_is_asked_for_and_taken_by_the_api_server(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    """There is no such scheduler here, and the training-operator makes no pod groups unless a flag says so."""
    jobs.apply(dpo(schedulerName="gang", podGroupPolicy="volcano"))
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    assert pod["spec"]["schedulerName"] == "gang"
    assert jobs.get("pytorchjob", "tune-dpo-0")["spec"]["runPolicy"]["schedulingPolicy"] == {"minAvailable": 1}


def test_of_two_gangs_that_hold_each_others_nodes_the_younger_gives_way(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    timeout = 30
    gang = {"numNodes": 2, "storage": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}
    policy = {"runPolicy": {"startTimeoutSeconds": timeout, "maxRestarts": 0}}
    node.cordon("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    jobs.apply(dpo("older", **gang, **policy))
    made = jobs.get("dpojob", "older")["metadata"]["creationTimestamp"]
    wait_for("the next second", lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") > made, 5, 0.05)
    jobs.apply(dpo("younger", **gang, **policy))

    def pods(name: str) -> dict[str, Any]:
        found = [pod for pod in jobs.list("pods") if pod["metadata"]["name"].startswith(name)]
        return {str(index): pod for index, pod in enumerate(sorted(found, key=lambda pod: pod["metadata"]["name"]))}

    wait_for("four pods wait", lambda: len(pods("older")) == len(pods("younger")) == 2, 60)
    # Room for two: each gang gets half of its nodes, almost its timeout ago.
    since = datetime.now(UTC) - timedelta(seconds=timeout - 3)
    for name in ("older", "younger"):
        node.place(pods(name)["0"], since)

    freed = jobs.wait("dpojob", "younger", "gives way", lambda s: s.get("restarts") == 1, 30)
    assert (freed["retry"]["counted"], running(freed)[0]) == (0, "StartTimeout")
    assert "Insufficient nvidia.com/gpu" in running(freed)[1]
    assert not pods("younger"), "its half is free"
    waits = jobs.status("dpojob", "older")
    assert (waits["attempt"], waits["restarts"], waits["phase"]) == (0, 0, "Starting")
    node.place(pods("older")["1"], datetime.now(UTC))
    for pod in node.wait_for_pods(2, "older-dpo-0"):
        node.run(pod)
    jobs.wait_for_phase("older", "Running")

    wait_for("the younger one's next attempt waits", lambda: len(pods("younger-dpo-1")) == 2, 30)
    for pod in node.pods("older-dpo-0"):
        node.succeed(pod, record())
    jobs.wait_for_phase("older", "Succeeded")
    node.uncordon()
    for pod in node.wait_for_pods(2, "younger-dpo-1"):
        node.run(pod)
    status = jobs.wait_for_phase("younger", "Running")
    assert (status["attempt"], status["restarts"]) == (1, 1)
