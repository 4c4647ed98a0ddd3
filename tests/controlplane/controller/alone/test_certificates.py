"""The receiver's certificates in the API server: lost Secrets harm no running job, and a late API server no start."""

import ssl
from collections.abc import Callable
from typing import Any

from reporting import Trainer, report

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for

SECRETS = ("trl-operator-receiver", "trl-operator-receiver-ca")


def test_a_running_job_goes_on_reporting_when_the_secrets_are_deleted(
    make_operator: Callable[..., Any], jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    operator = make_operator(CERTIFICATE_SECONDS="0.5")
    for name in SECRETS:
        # Somebody has made them beforehand, empty.
        jobs.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}})
    operator.start()
    operator.receiver.start()
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    trainer, ca = Trainer(node, pod), node.files(pod, "/etc/trl")["ca.crt"]
    wait_for("a report is taken", lambda: trainer.post(report(1))[0] == 200, 20)
    place = ("127.0.0.1", operator.receiver.port)
    before = ssl.get_server_certificate(place)
    for name in SECRETS:
        jobs.delete("secret", name)
    wait_for("both are there again", lambda: len(jobs.list("secrets")) == 2 and operator.receiver.mount(), 20)
    wait_for("the receiver serves with the new certificate", lambda: ssl.get_server_certificate(place) != before, 30)
    assert trainer.post(report(2))[0] == 200
    jobs.wait("dpojob", "tune", "shows it", lambda s: s["progress"].get("step") == 2)
    jobs.apply(dpo("next"))
    [pod] = node.wait_for_pods(1, "next-dpo-0")
    assert node.files(pod, "/etc/trl")["ca.crt"] == ca
    held = {secret["metadata"]["name"]: secret["data"].keys() for secret in jobs.list("secrets")}
    assert held == {SECRETS[0]: {"ca.crt", "tls.crt", "tls.key"}, SECRETS[1]: {"ca.crt", "ca.key"}}


def test_an_operator_that_starts_before_the_api_server_is_healthy_and_ends_when_it_is_told_to(
    make_operator: Callable[..., Any], control_plane: ControlPlane
) -> None:
    operator = make_operator()
    assert operator.kubeconfig.exists()
    operator.receiver.folder.mkdir()
    assert operator.receiver.kubeconfig.exists()
    with control_plane.without("kube-apiserver"):
        for process in (operator, operator.receiver):
            process.launch()
            wait_for("it answers", lambda process=process: process.answer("healthz") != 0, 30)  # type: ignore[misc]
            assert (process.answer("healthz"), process.answer("readyz")) == (200, 503)
            assert process.stop() == 0
