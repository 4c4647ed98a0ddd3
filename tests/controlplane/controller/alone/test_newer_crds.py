"""CRDs that are newer than the operator, as `helm upgrade` applies them first, and the way back."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import yaml

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.paths import REPOSITORY
from devcluster.waiting import wait_for

CRDS = [yaml.safe_load(path.read_text()) for path in sorted((REPOSITORY / "deploy/crds").glob("*.yaml"))]


def newer(crd: dict[str, Any]) -> dict[str, Any]:
    """The CRD of the next version: a field with a default in two sections of the spec, and one in the status."""
    crd = deepcopy(crd)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for section in ("runPolicy", "training"):
        schema["spec"]["properties"][section]["properties"]["rehearsals"] = {"type": "integer", "default": 7}
    schema["status"]["properties"]["rehearsals"] = {"type": "integer"}
    return crd


def apply(plane: ControlPlane, crds: list[dict[str, Any]]) -> None:
    how = ("apply", "--server-side", "--force-conflicts", "--filename=-")
    plane.kubectl(*how, stdin="\n---\n".join(json.dumps(crd) for crd in crds))


def reason(status: dict[str, Any], kind: str) -> str:
    return next((c["reason"] for c in status.get("conditions", ()) if c["type"] == kind), "")


def test_jobs_in_every_phase_outlive_newer_crds_and_the_way_back(
    quick_operator: Any,
    control_plane: ControlPlane,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    operator = quick_operator
    operator.start()
    rows = {"train": {"configMap": {"name": "rows", "key": "train.jsonl"}}}
    judge = {"rewards": [{"name": "judge", "rewardModel": {"fromJob": {"name": "judge"}}}]}
    prompts = {"train": {"inline": [{"prompt": "Where is it?"}] * 8}}
    blocked = {**dpo("blocked", dataset=prompts, grpo=judge), "kind": "GRPOJob"}
    names = ("starts", "runs", "stays", "fails", "rests", "done", "broken", "stopped")
    jobs.apply(dpo("waits", dataset=rows), blocked, *(dpo(name) for name in names))

    def pod(name: str, attempt: int = 0) -> Any:
        [found] = node.wait_for_pods(1, f"{name}-dpo-{attempt}", timeout=60)
        return found

    for name in names[1:]:
        node.run(pod(name))
        jobs.wait_for_phase(name, "Running")
    node.succeed(pod("done"), record())
    node.fail(pod("broken"), 10, message=record("Failed", reason="DataFormatError", message="row 3", rank=0))
    jobs.patch("dpojob", "stopped", {"spec": {"runPolicy": {"cancel": True}}})
    jobs.patch("dpojob", "rests", {"spec": {"runPolicy": {"suspend": True}}})
    ended = {"done": "Succeeded", "broken": "Failed", "stopped": "Cancelled"}
    phases = {"waits": "Pending", "starts": "Starting", "rests": "Suspended", **ended}
    before = {name: jobs.wait_for_phase(name, phase) for name, phase in phases.items()}
    jobs.wait_for_phase("blocked", "Blocked", "grpojob")
    node.fail(pod("fails"), 1, message="Segmentation fault")
    jobs.wait_for_phase("fails", "Restarting")
    try:
        apply(control_plane, [newer(crd) for crd in CRDS])
        wait_for(
            "the API server fills the new default in",
            lambda: jobs.get("dpojob", "runs")["spec"]["runPolicy"].get("rehearsals") == 7,
            30,
        )
        for name in [*names, "waits"]:
            jobs.patch("dpojob", name, {"spec": {"runPolicy": {"maxRestarts": 4}}})
        # Whoever has an attempt goes on, into every direction.
        node.succeed(pod("runs"), record())
        node.run(pod("starts"))
        jobs.patch("dpojob", "rests", {"spec": {"runPolicy": {"suspend": False}}})
        jobs.wait_for_phase("runs", "Succeeded")
        for name, attempt in (("starts", 0), ("fails", 1), ("rests", 1)):
            if attempt:
                node.run(pod(name, attempt))
            status = jobs.wait_for_phase(name, "Running")
            assert (status["attempt"], reason(status, "Accepted")) == (attempt, "Accepted")
        # Whoever has none waits for an operator that knows what the field means.
        jobs.apply(dpo("late"))
        for name in ("late", "waits"):
            status = jobs.wait("dpojob", name, "says so", lambda s: reason(s, "Accepted") == "NewerOperatorNeeded", 30)
            assert (status["phase"], "attempt" in status) == ("Pending", False)
    finally:
        apply(control_plane, CRDS)
    assert operator.stop() == 0
    operator.start()
    jobs.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rows"}, "data": {"train.jsonl": "{}"}})
    for name, attempt in (("stays", 0), ("starts", 0), ("fails", 1), ("rests", 1), ("late", 0), ("waits", 0)):
        if name in ("late", "waits"):
            node.run(pod(name))
            jobs.wait_for_phase(name, "Running")
        node.succeed(pod(name, attempt), record(attempt=attempt))
        status = jobs.wait_for_phase(name, "Succeeded")
        assert (status["attempt"], status["restarts"]) == (attempt, 1 if name == "fails" else 0)
    status = jobs.wait_for_phase("blocked", "Blocked", "grpojob")
    assert reason(status, "UpstreamReady") == "UpstreamNotFound"
    for name in ended:
        assert jobs.status("dpojob", name) | {"observedGeneration": 0} == before[name] | {"observedGeneration": 0}


def older(crd: dict[str, Any]) -> dict[str, Any]:
    """The CRD of version 0.1: its status knows neither workload nor run, and no rule asks for them."""
    crd = deepcopy(crd)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    rules = schema["x-kubernetes-validations"]
    schema["x-kubernetes-validations"] = [rule for rule in rules if "self.status.workload" not in rule["rule"]]
    status = schema["properties"]["status"]["properties"]
    del status["workload"], status["run"]
    artifact = status["artifacts"]["items"]
    del artifact["properties"]["claimName"], artifact["properties"]["path"]
    artifact["required"] = [*artifact["required"], "uri"]
    return crd


def test_an_older_version_takes_a_running_job_over_and_gives_it_back(
    quick_operator: Any,
    control_plane: ControlPlane,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    operator = quick_operator
    operator.start()
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    node.run(pod)
    workload = jobs.wait_for_phase("tune", "Running")["workload"]
    assert operator.stop() == 0
    try:
        apply(control_plane, [older(crd) for crd in CRDS])
        wait_for("the older status is served", lambda: "workload" not in jobs.status("dpojob", "tune"), 30)
        # What that version writes, as its field manager.
        child = {"name": workload["name"], "uid": workload["uid"]}
        written = {"attempt": 0, "restarts": 0, "phase": "Running", "pytorchJob": child}
        body = {**{name: dpo()[name] for name in ("apiVersion", "kind")}, "metadata": {"name": "tune"}}
        how = ("--server-side", "--subresource=status", "--field-manager=trl-operator-status", "--filename=-")
        told = json.dumps({**body, "status": written})
        control_plane.kubectl("apply", *how, f"--namespace={jobs.namespace}", stdin=told)
        assert jobs.status("dpojob", "tune")["pytorchJob"] == child
    finally:
        apply(control_plane, CRDS)
    wait_for("today's status is served", lambda: jobs.status("dpojob", "tune").get("pytorchJob") is not None, 30)
    operator.start()
    node.succeed(pod, record(artifacts=[{"type": "model", "uri": "u/final", "digest": "sha256:0"}]))
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert (status["attempt"], status["restarts"], status["workload"]) == (0, 0, workload)
    assert "pytorchJob" not in status
    assert status["artifacts"][0]["path"] == "u/final"
