"""The chart: what its values do, what they refuse, and that the operator's own pods are restricted."""

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from devcluster import tools
from devcluster.controlplane import ControlPlane
from devcluster.paths import REPOSITORY

CHART = REPOSITORY / "deploy/helm/trl-operator"
Render = Callable[..., list[dict[str, Any]]]


def of(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [obj for obj in objects if obj["kind"] == kind]
    return found


def test_helm_finds_nothing_to_complain_about() -> None:
    done = subprocess.run([tools.binary("helm"), "lint", "--strict", CHART], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_api_server_takes_everything_in_a_restricted_namespace(
    render_chart: Render, control_plane: ControlPlane, namespace: str
) -> None:
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    objects = render_chart(namespace, "crds.enabled=true")
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    control_plane.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", stdin=items
    )
    template = of(objects, "Deployment")["spec"]["template"]
    spec = {**template["spec"], "serviceAccountName": "default"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "op", "namespace": namespace}, "spec": spec}
    control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(pod))
    [container] = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"livenessProbe", "readinessProbe", "resources"} <= container.keys()


def test_crds_come_with_the_chart_are_kept_and_can_be_left_out(render_chart: Render) -> None:
    def crds(*values: str) -> list[dict[str, Any]]:
        return [obj for obj in render_chart("trl", *values) if obj["kind"] == "CustomResourceDefinition"]

    assert len(crds()) == 4
    assert all(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for crd in crds())
    assert all("annotations" not in crd["metadata"] for crd in crds("crds.keep=false"))
    assert crds("crds.enabled=false") == []
    committed = {path.name: yaml.safe_load(path.read_text()) for path in (REPOSITORY / "deploy/crds").iterdir()}
    assert {crd["metadata"]["name"]: crd for crd in crds("crds.keep=false")} == {
        crd["metadata"]["name"]: crd for crd in committed.values()
    }


def test_values_reach_the_operator(render_chart: Render) -> None:
    objects = render_chart(
        "trl",
        "trainer.image=example.com/trainer:7",
        "image.repository=localhost/trl-operator",
        "image.tag=dev",
        "receiver.port=9443",
        "replicaCount=3",
        "scope.namespaces={a,b}",
    )
    deployment = of(objects, "Deployment")["spec"]
    [container] = deployment["template"]["spec"]["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert deployment["replicas"] == 3
    assert container["image"] == "localhost/trl-operator:dev"
    assert env["TRL_OPERATOR_TRAINER_IMAGE"] == "example.com/trainer:7"
    assert env["TRL_OPERATOR_RECEIVER_URL"] == "https://trl-operator.trl.svc:9443"
    assert env["TRL_OPERATOR_WATCH_NAMESPACES"] == "a,b"
    assert of(objects, "Service")["spec"]["ports"] == [{"name": "receiver", "port": 9443, "targetPort": "receiver"}]
    digest = "sha256:" + "0" * 64
    [container] = of(render_chart("trl", f"image.digest={digest}"), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["image"] == f"trl-operator@{digest}"


@pytest.mark.parametrize(
    "value",
    [
        "replicas=2",
        "image.tga=x",
        "replicaCount=0",
        "image.digest=latest",
        "receiver.port=80",
        "receiver.port=8080",
        "crds.keep=maybe",
    ],
)
def test_a_wrong_value_is_refused(value: str) -> None:
    done = subprocess.run(
        [tools.binary("helm"), "template", "x", CHART, "--kube-version=1.34.0", f"--set={value}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert value.split("=")[0].split(".")[-1] in done.stderr.replace("/", ".")


def test_every_value_is_commented() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if re.match(r"^\s*[a-zA-Z]+: \S", line) and not re.match(r"^\s+(cpu|memory|pullPolicy):", line):
            commented = before.strip().startswith("#") or re.match(
                r"^(tolerations|affinity|priorityClassName|podAnnotations):", line
            )
            assert commented, f"values.yaml: {line} has no comment"
