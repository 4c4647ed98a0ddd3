"""The chart grants what controller and receiver use, and nothing else."""

from collections.abc import Callable
from typing import Any

from reporting import Trainer, report
from rights import granted, own_roles, used

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for


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
    operator.receiver.start()
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
    jobs.apply(job, *others, dpo("waits", storage={"claimName": "none"}))
    jobs.wait("dpojob", "waits", "is told what it waits for", lambda s: "PersistentVolumeClaimNotFound" in str(s))
    jobs.delete("dpojob", "waits")
    jobs.wait("dpojob", "tune", "is told the quota", lambda s: "QuotaExceeded" in str(s), 40)
    jobs.delete("resourcequota", "none")
    names = {"tune-dpo-0", "sftjob-sft-0", "rewardjob-rm-0", "grpojob-grpo-0"}
    wait_for("all kinds have started", lambda: len(node.pods()) == len(names), 60)
    assert {pod["metadata"]["name"] for pod in node.pods()} == {f"{name}-worker-0" for name in names}
    for pod in node.pods():
        node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    saves = report(1, checkpoints=[{"step": 1, "path": "u/checkpoint-1", "time": "2026-11-21T06:00:00Z"}])
    for pod in node.pods():
        wait_for("the receiver takes its report", lambda pod=pod: Trainer(node, pod).post(saves)[0] == 200, 20)  # type: ignore[misc]
    for kind, name in (("dpojob", "tune"), ("sftjob", "sftjob"), ("rewardjob", "rewardjob"), ("grpojob", "grpojob")):
        jobs.wait(kind, name, "shows it", lambda s: "progress" in s)
    # The next attempt takes away what this one leaves.
    jobs.patch("sftjob", "sftjob", {"spec": {"runPolicy": {"suspend": True}}})
    jobs.wait_for_phase("sftjob", "Suspended", "sftjob")
    jobs.patch("sftjob", "sftjob", {"spec": {"runPolicy": {"suspend": False}}})
    [pod] = node.wait_for_pods(1, "sftjob-sft-1")
    node.run(pod)
    jobs.plane.kubectl(
        "delete", "pod", "tune-dpo-0-worker-0", f"--namespace={jobs.namespace}", "--force", "--grace-period=0"
    )
    [pod] = node.wait_for_pods(1, "tune-dpo-1", timeout=90)
    node.run(pod)
    node.succeed(pod, record(attempt=1))
    for child in ("sftjob-sft-1", "rewardjob-rm-0", "grpojob-grpo-0"):
        [pod] = node.pods(child)
        node.succeed(pod, record())
    for kind in ("dpojob", "sftjob", "rewardjob", "grpojob"):
        wait_for(f"the {kind} is deleted", lambda kind=kind: not jobs.list(kind), 90)  # type: ignore[misc]
    for process in (operator, operator.receiver):
        denied = [entry for entry in control_plane.audit(process.user) if entry["responseStatus"]["code"] == 403]
        assert not denied, [(entry["verb"], entry["requestURI"]) for entry in denied]
    assert operator.stop() == 0
    # Another address needs another certificate, which is written at the next start.
    operator.settings["RECEIVER_URL"] = operator.settings["RECEIVER_URL"].replace("127.0.0.1", "localhost")
    operator.start()
    objects = render_chart(jobs.namespace, f"scope.namespaces={{{jobs.namespace}}}")

    def is_renewed() -> bool:
        return ("", "secrets", "update") in used(control_plane, operator.user)

    wait_for("the new certificate is written", is_renewed, 30)
    for process in (operator, operator.receiver):
        assert used(control_plane, process.user) == granted(objects, process.ACCOUNT)


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
    assert "trl_operator_refused_lists 8.0" in operator.metrics().splitlines()
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


def test_for_the_whole_cluster_the_rights_are_the_same(render_chart: Callable[..., list[dict[str, Any]]]) -> None:
    everywhere, somewhere = render_chart("trl"), render_chart("trl", "scope.namespaces={a,b}")
    for account in ("trl-operator", "trl-operator-receiver"):
        assert granted(everywhere, account) == granted(somewhere, account)
    assert [obj["kind"] for obj in somewhere].count("Role") == 5
    cluster_wide = [obj for obj in somewhere if obj["kind"] == "ClusterRole"]
    own = [role for role in cluster_wide if not role["metadata"]["name"].endswith(("-view", "-edit"))]
    assert [rule["resources"] for role in own for rule in role["rules"]] == [["tokenreviews"]]
    assert own_roles(somewhere, "trl-operator-receiver")[0] in own


def test_only_the_controller_may_touch_secrets_and_only_its_own(render_chart: Callable[..., Any]) -> None:
    objects = render_chart("trl")
    assert not [right for right in granted(objects, "trl-operator-receiver") if right[1] == "secrets"]
    rules = [rule for role in own_roles(objects, "trl-operator") for rule in role["rules"]]
    readable = [rule for rule in rules if "secrets" in rule["resources"] and rule["verbs"] != ["create"]]
    assert [rule["resourceNames"] for rule in readable] == [["trl-operator-receiver", "trl-operator-receiver-ca"]]
