"""The chart: what its values do, what they refuse, and that the operator's own pods are restricted."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import tools
from devcluster.controlplane import ControlPlane
from devcluster.paths import REPOSITORY
from trl_contract.base import KINDS
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.jobdefaults import FIELDS, JobDefaults
from trl_operator.settings import ReceiverSettings, Settings, from_environment

CHART = REPOSITORY / "deploy/helm/trl-operator"
Render = Callable[..., list[dict[str, Any]]]


RECEIVER = "trl-operator-receiver"


def of(objects: list[dict[str, Any]], kind: str, name: str = "trl-operator") -> dict[str, Any]:
    [found] = [obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) == (kind, name)]
    return found


def environment(objects: list[dict[str, Any]], name: str = "trl-operator") -> dict[str, Any]:
    [container] = of(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value") for variable in container["env"]}


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
    for name in ("trl-operator", RECEIVER):
        template = of(objects, "Deployment", name)["spec"]["template"]
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


def test_the_values_of_the_former_chart_say_what_they_said() -> None:
    """Whoever has them all in a file upgrades with that: each is known, and none has come to mean something else."""
    former = CHART.parents[2] / "tests/controlplane/controller/alone/chart-0.1.0/values.yaml"

    def render(*arguments: str | Path) -> str:
        command = [tools.binary("helm"), "template", "trl-operator", CHART, "--kube-version=1.36.0", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert render(f"--values={former}") == render()
    changed = ("receiver.port=9443", "scope.namespaces={a}", "image.tag=v7")
    assert render(f"--values={former}", f"--set={','.join(changed)}") == render(f"--set={','.join(changed)}")


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
    deployment, env = of(objects, "Deployment")["spec"], environment(objects)
    assert deployment["replicas"] == 3
    for name in ("trl-operator", RECEIVER):
        [container] = of(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "localhost/trl-operator:dev"
        assert environment(objects, name)["TRL_OPERATOR_WATCH_NAMESPACES"] == "a,b"
    assert env["TRL_OPERATOR_TRAINER_IMAGE"] == "example.com/trainer:7"
    assert env["TRL_OPERATOR_RECEIVER_URL"] == "https://trl-operator.trl.svc:9443"
    assert environment(objects, RECEIVER)["TRL_OPERATOR_RECEIVER_PORT"] == "9443"
    assert of(objects, "Service")["spec"]["ports"] == [{"name": "receiver", "port": 9443, "targetPort": "receiver"}]
    digest = "sha256:" + "0" * 64
    [container] = of(render_chart("trl", f"image.digest={digest}"), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["image"] == f"trl-operator@{digest}"


def test_every_variable_of_the_chart_is_a_setting(render_chart: Render) -> None:
    values = ("scope.namespaces={a,b}", "receiver.replicaCount=4", "receiver.writesPerSecond=50", "kueue.enabled=true")
    objects = render_chart("trl", *values, "kueue.checkpointAwarePreemption=true")
    for name, model in {"trl-operator": Settings, RECEIVER: ReceiverSettings}.items():
        settings = from_environment(model, {key: value or "x" for key, value in environment(objects, name).items()})
        assert settings.namespaces == ["a", "b"]
        assert name == RECEIVER or (settings.kueue and settings.checkpoint_aware_preemption)
    found = from_environment(ReceiverSettings, environment(objects, RECEIVER))
    assert found.writes_per_second == 12.5, "the replicas share the pace"


def test_who_processes_are_is_said_to_all_pods_or_left_to_the_cluster(render_chart: Render) -> None:
    always = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    ours, large = dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 1000), 1000680000
    left = [f"podSecurityContext.{name}=none" for name in ours]
    for values, expected in (
        ([], ours),
        (left, {}),
        ([*left[1:], f"podSecurityContext.runAsUser={large}"], {"runAsUser": large}),
        ([*left, "podSecurityContext.seLinuxOptions.level=s0:c1"], {"seLinuxOptions": {"level": "s0:c1"}}),
    ):
        objects = render_chart("trl", *values)
        for name in ("trl-operator", RECEIVER):
            assert of(objects, "Deployment", name)["spec"]["template"]["spec"]["securityContext"] == always | expected
        given = {key: value or "x" for key, value in environment(objects).items()}
        assert from_environment(Settings, given).pod_security.to_wire() == expected


def test_what_is_copied_from_jobs_reaches_the_operator(render_chart: Render) -> None:
    env = environment(render_chart("trl", "copiedLabels={a/b,c}", "copiedAnnotations={d}"))
    settings = from_environment(Settings, {name: value or "x" for name, value in env.items()})
    assert (settings.copied_labels, settings.copied_annotations) == ("a/b,c", "d")


def test_job_defaults_reach_the_operator_as_they_are(render_chart: Render) -> None:
    one, two = "jobDefaults[0]", "jobDefaults[1].spec"
    env = environment(
        render_chart(
            "trl",
            f"{one}.name=team-a",
            f"{one}.namespaces={{a,b}}",
            f"{one}.kinds={{DPOJob}}",
            f"{one}.selector.matchLabels.tier=gold",
            f"{one}.spec.env[0].name=PRICE",
            f'{one}.spec.env[0].value=$(HOME) "<é>" $$5',
            "jobDefaults[1].name=all",
            f"{two}.runPolicy.ttlSecondsAfterFinished=604800",
            f"{two}.backend=pytorchjob",
        )
    )
    # As Kubernetes reads a value.
    told = {name: (value or "x").replace("$$", "$") for name, value in env.items()}
    team, everyone = from_environment(Settings, told).job_defaults
    assert team.spec == {"env": [{"name": "PRICE", "value": '$(HOME) "<é>" $$5'}]}
    assert team.is_for("b", "DPOJob", {"tier": "gold"})
    assert not team.is_for("b", "DPOJob", {})
    assert everyone.spec == {"runPolicy": {"ttlSecondsAfterFinished": 604800}, "backend": "pytorchjob"}
    assert "TRL_OPERATOR_JOB_DEFAULTS" not in environment(render_chart("trl"))


def test_the_chart_knows_the_fields_that_job_defaults_have() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["jobDefaults"]["items"]["properties"]
    assert schema.keys() == {str(field.alias) for field in JobDefaults.model_fields.values()}
    assert schema["kinds"]["items"]["enum"] == list(KINDS)
    found = set()
    for name, said in schema["spec"]["properties"].items():
        sections = name in ("storage", "pod", "runPolicy")
        found |= {f"{name}.{inner}" for inner in said["properties"]} if sections else {name}
    assert found == set(FIELDS)


def test_reports_go_to_the_receiver_which_mounts_its_certificate_and_no_ca_key(render_chart: Render) -> None:
    objects = render_chart("trl")
    selector = of(objects, "Service")["spec"]["selector"]
    labels = {
        name: of(objects, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        for name in ("trl-operator", RECEIVER)
    }
    assert selector.items() <= labels[RECEIVER].items()
    assert not selector.items() <= labels["trl-operator"].items()
    receiver = of(objects, "Deployment", RECEIVER)["spec"]["template"]["spec"]
    [tls] = [volume["secret"] for volume in receiver["volumes"] if "secret" in volume]
    assert tls["secretName"] == environment(objects)["TRL_OPERATOR_SECRET_NAME"]
    assert {item["key"] for item in tls["items"]} == {"tls.crt", "tls.key"}
    [port] = of(objects, "Service")["spec"]["ports"]
    assert port["targetPort"] in {port["name"] for port in receiver["containers"][0]["ports"]}


def test_only_pods_of_jobs_reach_the_receiver_and_nothing_but_probes_the_controller(render_chart: Render) -> None:
    objects = render_chart("trl")
    for name, open_ports in {"trl-operator": [["health"]], RECEIVER: [["health"], ["receiver"]]}.items():
        policy, deployment = of(objects, "NetworkPolicy", name)["spec"], of(objects, "Deployment", name)["spec"]
        assert policy["podSelector"]["matchLabels"] == deployment["selector"]["matchLabels"]
        assert [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]] == open_ports
    [sender] = of(objects, "NetworkPolicy", RECEIVER)["spec"]["ingress"][1]["from"]
    assert sender["podSelector"]["matchExpressions"] == [{"key": LABEL_JOB_UID, "operator": "Exists"}]
    kinds = [obj["kind"] for obj in render_chart("trl", "networkPolicy.enabled=false")]
    assert "NetworkPolicy" not in kinds


def test_a_service_leads_to_the_metrics_of_each_deployment(render_chart: Render) -> None:
    objects = render_chart("trl")
    for name in ("trl-operator", RECEIVER):
        service, deployment = of(objects, "Service", f"{name}-metrics"), of(objects, "Deployment", name)
        assert service["metadata"]["labels"]["trl-operator.io/metrics"] == "true"
        assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
        [port], [container] = service["spec"]["ports"], deployment["spec"]["template"]["spec"]["containers"]
        assert {"name": port["targetPort"], "containerPort": port["port"]} in container["ports"]


def test_workloads_may_be_patched_only_where_attempts_without_a_checkpoint_are_preferred(render_chart: Render) -> None:
    def verbs(*values: str) -> list[list[str]]:
        rules = [rule for obj in render_chart("trl", *values) if obj["kind"] == "ClusterRole" for rule in obj["rules"]]
        return [rule["verbs"] for rule in rules if rule["resources"] == ["workloads"]]

    assert verbs() == []
    assert verbs("kueue.enabled=true") == [["list", "watch"]]
    assert verbs("kueue.enabled=true", "kueue.checkpointAwarePreemption=true") == [["list", "watch", "patch"]]
    with pytest.raises(subprocess.CalledProcessError):
        verbs("kueue.checkpointAwarePreemption=true")


@pytest.mark.parametrize(
    "value",
    [
        "replicas=2",
        "image.tga=x",
        "replicaCount=0",
        "image.digest=latest",
        "receiver.port=80",
        "receiver.port=8080",
        "receiver.replicaCount=0",
        "receiver.writesPerSecond=0",
        "networkPolicy.enabled=maybe",
        "crds.keep=maybe",
        "kueue.enabled=maybe",
        "kueue.checkpointAwarePreemption=maybe",
        "backend=mpijob",
        "otherBackends={mpijob}",
        "podSecurityContext.runAsUser=0",
        "copiedLabels={kueue.x-k8s.io/queue-name}",
        "copiedLabels={app.kubernetes.io/name}",
        "copiedAnnotations={app.kubernetes.io/managed-by}",
        "podSecurityContext.fsGroup=any",
        "podSecurityContext.privileged=true",
        "limits.maxNumNodes=-1",
        "limits.hub=maybe",
        "limits.registries={it's}",
        "limits.registries={registry.example.com/}",
        "limits.registries={https://registry.example.com}",
        "limits.rewardHosts={https://score.team.svc}",
        "limits.rewardHosts={score.team.svc:8080}",
        "limits.serviceAccounts={*}",
        "limits.maxNodes=4",
        "jobDefaults[0].spec.nodeSelectr=x",
        "jobDefaults[0].spec.storage.size=1Gi",
        "jobDefaults[0].kinds={Job}",
        "jobDefaults[0].namespaces=a",
        "jobDefaults[0].selector.matchlabels.a=b",
    ],
)
def test_a_wrong_value_is_refused(value: str) -> None:
    done = subprocess.run(
        [tools.binary("helm"), "template", "x", CHART, "--kube-version=1.36.0", f"--set={value}"],
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
