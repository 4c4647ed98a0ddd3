"""An API server that is away for a while."""

from collections.abc import Callable
from typing import Any

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for


def test_a_short_outage_is_survived_and_a_long_one_ends_the_leader_only(
    make_operator: Callable[..., Any],
    control_plane: ControlPlane,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    operator = make_operator(LEASE_SECONDS="20", RENEW_SECONDS="12")
    operator.start()
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    control_plane.stop("kube-apiserver")
    control_plane.start("kube-apiserver")
    node.run(pod)
    jobs.wait_for_phase("tune", "Running", seconds=90)
    assert operator.process.poll() is None, "a leader that can still renew in time goes on"
    control_plane.stop("kube-apiserver")
    assert operator.process.wait(timeout=40) == 1
    operator.start(wait=False)
    control_plane.start("kube-apiserver")
    wait_for("the operator is ready", operator.is_ready, 60, 0.2)
    node.succeed(pod, record())
    status = jobs.wait_for_phase("tune", "Succeeded", seconds=90)
    assert (status["attempt"], status["restarts"]) == (0, 0)
    assert len(jobs.list("pytorchjobs")) == 1
