"""A cluster without the training-operator."""

from collections.abc import Callable
from typing import Any

from devcluster import trainingoperator
from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for


def told(status: dict[str, Any]) -> bool:
    return any(c["reason"] == "BackendUnavailable" for c in status.get("conditions", ()))


def test_a_job_waits_for_the_training_operator_to_be_installed(
    make_operator: Callable[..., Any],
    control_plane: ControlPlane,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
) -> None:
    operator = make_operator()
    with control_plane.without("training-operator"):
        control_plane.kubectl("delete", "crd", "pytorchjobs.kubeflow.org")
        try:
            operator.start()
            jobs.apply(dpo())
            status = jobs.wait("dpojob", "tune", "tells why", told, 30)
            assert status["phase"] == "Pending"
            assert status["waiting"]["reason"] == "BackendUnavailable"
            assert (
                "there are no PyTorchJobs in this cluster, or the operator was installed without them"
                in jobs.plane.kubectl("get", "dpojob", "tune", f"--namespace={jobs.namespace}", "--output=wide")
            )
        finally:
            control_plane.kubectl("apply", "--server-side", f"--filename={trainingoperator.crd()}")
    [pod] = node.wait_for_pods(1, "tune-dpo-0", timeout=90)
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    node.succeed(pod)
    jobs.wait_for_phase("tune", "Succeeded")
    jobs.apply(dpo("late"))
    [pod] = node.wait_for_pods(1, "late-dpo-0")
    node.run(pod)
    jobs.wait_for_phase("late", "Running")
    jobs.delete("pytorchjob", "late-dpo-0")
    wait_for("a watch tells of its end", lambda: jobs.status("dpojob", "late").get("restarts") == 1, 60)
