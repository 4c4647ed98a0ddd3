"""Several replicas: one works, and a leader that is dead or cut off harms nobody."""

import json
from collections.abc import Callable
from typing import Any

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.faultproxy import FaultProxy, Request, Verdict
from devcluster.waiting import wait_for

TAKEOVER = {"LEASE_SECONDS": "10", "RENEW_SECONDS": "6", "RETRY_SECONDS": "0.5"}
"""For tests that wait until a lease has run out; with a write's 4 s, a busy machine may stand still for 6 s."""


def test_another_replica_goes_on_where_a_dead_leader_stopped(
    make_operator: Callable[..., Any], jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    first, second = make_operator("first", **TAKEOVER), make_operator("second", **TAKEOVER)
    first.start()
    wait_for("the first leads", first.leads, 20)
    second.start()
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    assert not second.leads()
    first.kill()
    node.run(pod)
    wait_for("the second leads", second.leads, 30)
    jobs.wait_for_phase("tune", "Running")
    assert len(jobs.list("pytorchjobs")) == 1
    jobs.apply(dpo("next"))
    node.wait_for_pods(1, "next-dpo-0")


def test_a_replica_that_ends_in_order_gives_the_lease_away_at_once(make_operator: Callable[..., Any]) -> None:
    first, second = make_operator("first", LEASE_SECONDS="600"), make_operator("second", LEASE_SECONDS="600")
    first.start()
    wait_for("the first leads", first.leads, 20)
    second.start()
    assert first.stop() == 0
    wait_for("the second leads", second.leads, 20)


def test_a_leader_that_cannot_renew_its_lease_ends(
    make_operator: Callable[..., Any], control_plane: ControlPlane, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    with FaultProxy(control_plane.url, control_plane.ca) as proxy:
        first = make_operator("first", **TAKEOVER)
        config = json.loads(first.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {"server": proxy.url}
        first.kubeconfig = first.kubeconfig.with_suffix(".first")
        first.kubeconfig.write_text(json.dumps(config))
        first.start()
        wait_for("the first leads", first.leads, 20)
        second = make_operator("second", **TAKEOVER)
        second.start()

        def cut_off(request: Request) -> Verdict:
            return 503 if "/leases" in request.path else "pass"

        proxy.before = cut_off
        assert first.process.wait(timeout=30) == 1
        wait_for("the second leads", second.leads, 30)
        jobs.apply(dpo())
        node.wait_for_pods(1, "tune-dpo-0")
        assert len(jobs.list("pytorchjobs")) == 1


def test_a_leader_ends_at_once_when_another_one_holds_the_lease(
    make_operator: Callable[..., Any], control_plane: ControlPlane, jobs: Any
) -> None:
    operator = make_operator(RETRY_SECONDS="0.5")
    operator.start()
    wait_for("it leads", operator.leads, 20)
    jobs.patch("lease", "trl-operator", {"spec": {"holderIdentity": "another"}})
    assert operator.process.wait(timeout=5) == 1
    assert "another holds the lease" in operator.log.read_text()
