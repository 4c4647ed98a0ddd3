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
    # The first deadline outlasts every restart of an API server, which takes from 6 to 11 s on an idle machine.
    operator = make_operator(LEASE_SECONDS="120", RENEW_SECONDS="100")
    operator.start()
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    with control_plane.without("kube-apiserver"):
        pass
    node.run(pod)
    jobs.wait_for_phase("tune", "Running", seconds=90)
    assert operator.process.poll() is None, "a leader that can still renew in time goes on"
    assert operator.stop() == 0
    operator.settings |= {"LEASE_SECONDS": "15", "RENEW_SECONDS": "10"}
    operator.start()
    wait_for("it leads again", operator.leads, 30)
    with control_plane.without("kube-apiserver"):
        assert operator.process.wait(timeout=90) == 1
        operator.start(wait=False)
    wait_for("the operator is ready", operator.is_ready, 60, 0.2)
    node.succeed(pod, record())
    status = jobs.wait_for_phase("tune", "Succeeded", seconds=90)
    assert (status["attempt"], status["restarts"]) == (0, 0)
    assert len(jobs.list("pytorchjobs")) == 1
