"""Attempts that cannot start: what only events know."""

from collections.abc import Callable
from typing import Any

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


def test_our_pods_pass_pod_security_restricted(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], control_plane: ControlPlane
) -> None:
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", jobs.namespace, enforce)
    polite = {"rewards": [{"name": "polite", "keyword": {"words": ["please"]}}]}
    jobs.apply(dpo(), {**dpo("talk"), "kind": "GRPOJob", "spec": {**dpo()["spec"], "grpo": polite}})
    wait_for("both pods are admitted", lambda: len(node.pods()) == 2, 60)
