"""Checkpoint-aware preemption by a real Kueue."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for

Obj = dict[str, Any]
BOOST = "kueue.x-k8s.io/priority-boost"


@pytest.fixture
def make_operator(control_plane: ControlPlane, namespace: str, new_operator: Any, install_chart: Any) -> Any:
    values = (f"scope.namespaces={{{namespace}}}", "kueue.enabled=true", "kueue.checkpointAwarePreemption=true")
    install_chart(control_plane, namespace, *values, "otherBackends={trainjob}")
    return partial(new_operator, KUEUE="true", CHECKPOINT_AWARE_PREEMPTION="true", OTHER_BACKENDS="trainjob")


@pytest.fixture
def boosts(jobs: Any) -> Callable[[], dict[str, str]]:
    """The boosts of Workloads, by the job that each is of."""

    def read() -> dict[str, str]:
        found = {each["metadata"]["ownerReferences"][0]["name"]: each["metadata"] for each in jobs.list("workloads")}
        return {name.split("-")[0]: each.get("annotations", {}).get(BOOST, "") for name, each in found.items()}

    return read


def publish(jobs: Any, name: str) -> None:
    """The trainer of a job publishes a checkpoint, and the receiver says so."""
    saved = {"step": 10, "path": "checkpoints/step-10", "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    change = {"status": {"checkpoints": [saved]}}
    jobs.patch("dpojob", name, change, subresource="status")


def test_kueue_preempts_what_has_a_checkpoint_before_what_would_lose_all(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Obj], quota: Any, local_queue: Any, priorities: None,
    record: Any, boosts: Callable[[], dict[str, str]],
) -> None:  # fmt: skip
    quota(2)
    local_queue("team")

    def start(name: str, backend: str, minutes: float = 5) -> None:
        where = {"queue": {"name": "team", "priorityClass": "low"}, "resources": {"requests": {"cpu": 1}}}
        jobs.apply(dpo(name, backend=backend, checkpoint={"everyMinutes": minutes}, **where))
        [pod] = node.wait_for_pods(1, f"{name}-dpo-0")
        assert not boosts().get(name), "it has nothing to lose before it runs"
        node.run(pod)
        wait_for(f"{name} is preferred", lambda: boosts()[name] == "1", 20, 0.1)

    start("never", "trainjob", minutes=0.05)
    wait_for("one that publishes no checkpoint is so for a while only", lambda: boosts()["never"] == "", 20, 0.1)
    [never] = jobs.list("workloads")
    jobs.plane.kubectl("annotate", "workload", never["metadata"]["name"], f"{BOOST}=1", f"--namespace={jobs.namespace}")
    node.succeed(node.pods("never-dpo-0")[0], record())
    jobs.wait_for_phase("never", "Succeeded")
    assert boosts()["never"] == "1", "somebody else's boost stays"
    start("older", "pytorchjob")
    start("newer", "trainjob")
    publish(jobs, "older")
    wait_for("older has a checkpoint", lambda: boosts()["older"] == "", 20, 0.1)
    written = _patches(jobs.plane, operator.user)
    operator.kill()
    operator.start()
    high = dpo("high", queue={"name": "team", "priorityClass": "high"}, resources={"requests": {"cpu": 1}})
    jobs.apply(high)
    # Kueue's own choice is the one that was admitted last.
    jobs.wait("dpojob", "older", "has given way", lambda status: status.get("restarts") == 1)
    assert jobs.status("dpojob", "newer")["phase"] == "Running"
    jobs.wait("dpojob", "high", "has its place", lambda status: status.get("phase") in ("Starting", "Running"))
    assert boosts()["newer"] == "1"
    assert _patches(jobs.plane, operator.user) == written == 5, "nothing is written that is there already"


def _patches(plane: ControlPlane, user: str) -> int:
    """How often a user has changed a Workload."""
    made = [entry for entry in plane.audit(user) if entry.get("objectRef", {}).get("resource") == "workloads"]
    return sum(entry["verb"] not in ("list", "watch") for entry in made)
