"""Attempts that cannot start: what only events know."""

from collections.abc import Callable
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
