"""Several replicas: one works, all take reports, and a leader that is dead or cut off harms nobody."""

import json
import ssl
import urllib.request
from collections.abc import Callable
from typing import Any

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.faultproxy import FaultProxy, Request, Verdict
from devcluster.waiting import wait_for

TAKEOVER = {"LEASE_SECONDS": "10", "RENEW_SECONDS": "6", "RETRY_SECONDS": "0.5"}
"""For tests that wait until a lease has run out; with a write's 4 s, a busy machine may stand still for 6 s."""


def leads(operator: Any) -> bool:
    return "trl_operator_leader 1" in operator.metrics()


def test_another_replica_goes_on_where_a_dead_leader_stopped(
    make_operator: Callable[..., Any], jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    first, second = make_operator("first", **TAKEOVER), make_operator("second", **TAKEOVER)
    first.start()
    wait_for("the first leads", lambda: leads(first), 20)
    second.start()
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    assert not leads(second)
    first.kill()
    node.run(pod)
    wait_for("the second leads", lambda: leads(second), 30)
    jobs.wait_for_phase("tune", "Running")
    assert len(jobs.list("pytorchjobs")) == 1
    jobs.apply(dpo("next"))
    node.wait_for_pods(1, "next-dpo-0")


def test_a_replica_that_ends_in_order_gives_the_lease_away_at_once(make_operator: Callable[..., Any]) -> None:
    first, second = make_operator("first", LEASE_SECONDS="600"), make_operator("second", LEASE_SECONDS="600")
    first.start()
    wait_for("the first leads", lambda: leads(first), 20)
    second.start()
    assert first.stop() == 0
    wait_for("the second leads", lambda: leads(second), 20)


def test_a_replica_that_does_not_lead_takes_reports(
    make_operator: Callable[..., Any], jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    first, second = make_operator("first"), make_operator("second")
    first.start()
    wait_for("the first leads", lambda: leads(first), 20)
    second.start()
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    env = {variable["name"]: variable.get("value") for variable in pod["spec"]["containers"][0]["env"]}
    url = env["KUBEFLOW_TRAINER_SERVER_URL"].replace(str(first.receiver_port), str(second.receiver_port))
    tls = ssl.create_default_context(cadata=node.files(pod, "/etc/trl")["ca.crt"])
    token = node.files(pod, "/var/run/secrets/trl")["token"]
    time = "2026-11-21T06:00:00Z"
    ours = {"step": 7, "totalSteps": 70, "lastUpdateTime": time}
    body = json.dumps({"trainerStatus": {"lastUpdatedTime": time}, "trl": ours}).encode()
    request = urllib.request.Request(url, data=body, headers={"Authorization": f"Bearer {token}"}, method="POST")
    with urllib.request.urlopen(request, timeout=20, context=tls) as answer:
        assert json.loads(answer.read())["accepted"] is True
    jobs.wait("dpojob", "tune", "shows it", lambda s: s.get("progress", {}).get("display") == "7/70")
    assert not leads(second)


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
        wait_for("the first leads", lambda: leads(first), 20)
        second = make_operator("second", **TAKEOVER)
        second.start()

        def cut_off(request: Request) -> Verdict:
            return 503 if "/leases" in request.path else "pass"

        proxy.before = cut_off
        assert first.process.wait(timeout=30) == 1
        wait_for("the second leads", lambda: leads(second), 30)
        jobs.apply(dpo())
        node.wait_for_pods(1, "tune-dpo-0")
        assert len(jobs.list("pytorchjobs")) == 1
