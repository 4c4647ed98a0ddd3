"""From the chart in which controller and receiver were one process to today's, by helm, under a job that reports."""

import json
import os
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from reporting import Trainer, report

from devcluster import tools
from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode
from devcluster.paths import REPOSITORY
from devcluster.waiting import wait_for
from trl_operator.api.job import parse_job
from trl_operator.backend import BACKENDS
from trl_operator.certs import new_authority, new_serving
from trl_operator.render.manifests import Installation, child_metadata, claim

OLD, NEW = Path(__file__).parent / "chart-0.1.0", REPOSITORY / "deploy/helm/trl-operator"
Helm = Callable[..., None]


@pytest.fixture
def helm(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Helm]:
    """`helm(verb, arguments...)` for the release in the test's namespace, which is uninstalled afterwards."""

    def run(*arguments: str | Path) -> None:
        command = [tools.binary("helm"), f"--kubeconfig={control_plane.kubeconfig}", f"--namespace={namespace}"]
        environment = {**os.environ, **{f"HELM_{kind}_HOME": str(tmp_path) for kind in ("CACHE", "CONFIG", "DATA")}}
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    yield run
    run("uninstall", "trl-operator")


def leave_as_the_old_version_did(jobs: Any, url: str, job: dict[str, Any]) -> None:
    """One Secret with everything, and a job with a running attempt that was given its CA."""
    authority = new_authority(datetime.now(UTC))
    pem = {**authority, **new_serving(authority, "127.0.0.1", datetime.now(UTC))}
    data = {name: b64encode(value).decode() for name, value in pem.items()}
    jobs.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "trl-operator-receiver"}, "data": data})
    jobs.apply(job)
    parsed = parse_job(jobs.get("dpojob", "tune"))
    installation = Installation("localhost/trl-trainer:dev", url, authority["ca.crt"].decode())
    workload = BACKENDS["pytorchjob"].manifest(parsed, 0, installation)
    spec = workload["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    [told] = [volume for volume in spec["volumes"] if volume["name"] == "attempt"]
    del told["projected"]
    told["configMap"] = {"name": "tune-dpo-0"}
    data = {"job.json": '{"contractVersion": 1, "attempt": 0}', "ca.crt": installation.ca_certificate}
    own = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": child_metadata(parsed, 0), "data": data}
    jobs.apply(claim(parsed), own, workload)
    child = {"name": "tune-dpo-0", "uid": jobs.get("pytorchjob", "tune-dpo-0")["metadata"]["uid"]}
    status = {**{name: job[name] for name in ("apiVersion", "kind")}, "metadata": {"name": "tune"}}
    status["status"] = {"attempt": 0, "pytorchJob": child}
    how = ("--server-side", "--subresource=status", "--field-manager=trl-operator-status", "--filename=-")
    jobs.plane.kubectl("apply", *how, f"--namespace={jobs.namespace}", stdin=json.dumps(status))


def test_a_job_that_reports_goes_on_reporting(
    helm: Helm, new_operator: Callable[..., Any], jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    helm("install", "trl-operator", OLD, "--set=receiver.port=9443,podLabels.team=infra")
    operator = new_operator()
    leave_as_the_old_version_did(jobs, operator.settings["RECEIVER_URL"], dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    node.run(pod)
    trainer = Trainer(node, pod)
    before = {obj["metadata"]["name"]: obj for obj in jobs.list("deployments.apps")}
    own = ("--set=crds.enabled=false", f"--set=scope.namespaces={{{jobs.namespace}}}")
    helm("upgrade", "trl-operator", NEW, "--reset-then-reuse-values", *own)
    after = {obj["metadata"]["name"]: obj for obj in jobs.list("deployments.apps")}
    assert after["trl-operator"]["metadata"]["uid"] == before["trl-operator"]["metadata"]["uid"], "not made anew"
    template = after["trl-operator"]["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "infra", "what was set for the former chart still is"
    operator.start()
    operator.receiver.start()
    wait_for(
        "its reports are taken, with what it has had since its start", lambda: trainer.post(report(7))[0] == 200, 20
    )
    status = jobs.wait("dpojob", "tune", "shows it", lambda s: s.get("progress", {}).get("display") == "7/40")
    assert (status["phase"], status["attempt"]) == ("Running", 0)
    child = jobs.get("pytorchjob", "tune-dpo-0")["metadata"]
    assert status["workload"] == {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "name": "tune-dpo-0",
        "uid": child["uid"],
    }
    assert "pytorchJob" not in status, "what the old version wrote is read, and said anew in today's words"
    held = {secret["metadata"]["name"]: secret["data"].keys() for secret in jobs.list("secrets") if "type" in secret}
    assert held["trl-operator-receiver"] == {"ca.crt", "tls.crt", "tls.key"}
    assert held["trl-operator-receiver-ca"] == {"ca.crt", "ca.key"}
    # What the ReplicaSets make, that of the old Deployment too: to whom does the Service lead?
    for name, deployment in {"old": before["trl-operator"], **after}.items():
        template = deployment["spec"]["template"]
        spec = {**template["spec"], "serviceAccountName": "default"}
        metadata = {"name": f"pod-{name}", "labels": template["metadata"]["labels"]}
        jobs.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    service = jobs.get("service", "trl-operator")
    selector = ",".join(f"{label}={value}" for label, value in service["spec"]["selector"].items())
    chosen = jobs.plane.kubectl(
        "get", "pods", f"--namespace={jobs.namespace}", f"--selector={selector}", "--output=name"
    )
    assert chosen.split() == ["pod/pod-trl-operator-receiver"]
