"""The chart grants what the operator uses, and nothing else."""

import ssl
import urllib.request
from collections.abc import Callable
from typing import Any

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for

Right = tuple[str, str, str]
"""API group, resource with subresource, verb."""


def granted(objects: list[dict[str, Any]]) -> set[Right]:
    """Every right of the operator's own roles, without those that the API server checks within another request."""
    roles = [obj for obj in objects if obj["kind"] in ("Role", "ClusterRole")]
    roles = [role for role in roles if not role["metadata"]["name"].endswith(("-view", "-edit"))]
    found = set()
    for rule in (rule for role in roles for rule in role["rules"]):
        assert "*" not in str(rule), rule
        for group in rule["apiGroups"]:
            found |= {(group, resource, verb) for resource in rule["resources"] for verb in rule["verbs"]}
    # An ownerReference with blockOwnerDeletion takes update of finalizers, applying what is not there takes create.
    applied = {("", "configmaps", "create"), ("networking.k8s.io", "networkpolicies", "create")}
    return {right for right in found if not right[1].endswith("/finalizers")} - applied


def used(plane: ControlPlane, user: str) -> set[Right]:
    found = set()
    for entry in plane.audit(user):
        if reference := entry.get("objectRef"):
            resource = "/".join(filter(None, [reference["resource"], reference.get("subresource")]))
            found.add((reference.get("apiGroup", ""), resource, entry["verb"]))
    return found


def test_the_chart_grants_exactly_what_a_full_life_uses(
    make_operator: Callable[..., Any],
    control_plane: ControlPlane,
    render_chart: Callable[..., list[dict[str, Any]]],
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    operator = make_operator(RELIST_SECONDS="2")
    operator.start()
    job = dpo(runPolicy={"ttlSecondsAfterFinished": 3, "activeDeadlineSeconds": 600})
    others = [
        {**job, "kind": kind, "metadata": {"name": kind.lower()}, "spec": {**job["spec"], **section}}
        for kind, section in (
            ("SFTJob", {}),
            ("RewardJob", {}),
            ("GRPOJob", {"grpo": {"rewards": [{"name": "short", "length": {"target": 5}}]}}),
        )
    ]
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    jobs.apply(quota)
    wait_for("the quota is in force", lambda: "hard" in jobs.status("resourcequota", "none"), 30)
    jobs.apply(job, *others)
    jobs.wait("dpojob", "tune", "is told the quota", lambda s: "QuotaExceeded" in str(s), 40)
    jobs.delete("resourcequota", "none")
    names = {"tune-dpo-0", "sftjob-sft-0", "rewardjob-rm-0", "grpojob-grpo-0"}
    wait_for("all kinds have started", lambda: len(node.pods()) == len(names), 60)
    assert {pod["metadata"]["name"] for pod in node.pods()} == {f"{name}-worker-0" for name in names}
    for pod in node.pods():
        node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    [pod] = node.pods("tune-dpo-0")
    send_report(node, pod)
    jobs.plane.kubectl(
        "delete", "pod", "tune-dpo-0-worker-0", f"--namespace={jobs.namespace}", "--force", "--grace-period=0"
    )
    [pod] = node.wait_for_pods(1, "tune-dpo-1", timeout=90)
    node.run(pod)
    node.succeed(pod, record(attempt=1))
    for kind, name in (("sftjob", "sft"), ("rewardjob", "rm"), ("grpojob", "grpo")):
        [pod] = node.pods(f"{kind}-{name}-0")
        node.succeed(pod, record())
    for kind in ("dpojob", "sftjob", "rewardjob", "grpojob"):
        wait_for(f"the {kind} is deleted", lambda kind=kind: not jobs.list(kind), 90)  # type: ignore[misc]
    denied = [entry for entry in control_plane.audit(operator.user) if entry["responseStatus"]["code"] == 403]
    assert not denied, [(entry["verb"], entry["requestURI"]) for entry in denied]
    assert operator.stop() == 0
    # Another address needs another certificate, which is written at the next start.
    operator.settings["RECEIVER_URL"] = operator.settings["RECEIVER_URL"].replace("127.0.0.1", "localhost")
    operator.start()
    grants = granted(render_chart(jobs.namespace, f"scope.namespaces={{{jobs.namespace}}}"))
    assert used(control_plane, operator.user) == grants


def test_a_namespace_without_a_role_stops_no_other_and_is_served_once_it_has_one(
    make_operator: Callable[..., Any],
    control_plane: ControlPlane,
    render_chart: Callable[..., list[dict[str, Any]]],
    other_namespace: str,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
) -> None:
    operator = make_operator(WATCH_NAMESPACES=f"{jobs.namespace},{other_namespace}")
    operator.start()
    assert "trl_operator_refused_lists 6" in operator.metrics()
    elsewhere = dpo()
    elsewhere["metadata"]["namespace"] = other_namespace
    jobs.apply(dpo())
    control_plane.apply(elsewhere)
    node.wait_for_pods(1, "tune-dpo-0")
    roles = render_chart(jobs.namespace, f"scope.namespaces={{{other_namespace}}}")
    control_plane.apply(*[obj for obj in roles if obj["metadata"].get("namespace") == other_namespace])

    def is_started() -> bool:
        found = control_plane.kubectl("get", "pytorchjobs", f"--namespace={other_namespace}", "--output=name")
        return "tune-dpo-0" in found

    wait_for("the other namespace's job starts too, long before the next relist", is_started, 60)


def send_report(node: FakeNode, pod: Any) -> None:
    """Have a token reviewed."""
    env = {variable["name"]: variable.get("value") for variable in pod["spec"]["containers"][0]["env"]}
    token = node.files(pod, "/var/run/secrets/trl")["token"]
    tls = ssl.create_default_context(cadata=node.files(pod, "/etc/trl")["ca.crt"])
    body = b'{"trainerStatus": {"lastUpdatedTime": "2026-11-21T06:00:00Z"}}'
    request = urllib.request.Request(
        env["KUBEFLOW_TRAINER_SERVER_URL"], data=body, headers={"Authorization": f"Bearer {token}"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=20, context=tls) as answer:
        assert answer.status == 200


def test_for_the_whole_cluster_the_rights_are_the_same(render_chart: Callable[..., list[dict[str, Any]]]) -> None:
    everywhere = granted(render_chart("trl"))
    somewhere = granted(render_chart("trl", "scope.namespaces={a,b}"))
    assert everywhere == somewhere
    kinds = [obj["kind"] for obj in render_chart("trl", "scope.namespaces={a,b}")]
    assert kinds.count("Role") == 3
    cluster_wide = [obj for obj in render_chart("trl", "scope.namespaces={a}") if obj["kind"] == "ClusterRole"]
    own = [role for role in cluster_wide if not role["metadata"]["name"].endswith(("-view", "-edit"))]
    assert [rule["resources"] for role in own for rule in role["rules"]] == [["tokenreviews"]]
