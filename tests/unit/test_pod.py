"""What a job says of its pods is found in them, whatever runs it, and so is what stands for what it does not say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from kubernetes import client
from pydantic import BaseModel

from trl_contract import affinity
from trl_contract.pod import DNSConfig, DNSConfigOption, HostAlias, Pod
from trl_operator.api.job import Job
from trl_operator.backend import BACKENDS
from trl_operator.render.manifests import Installation

Make = Callable[..., Any]
Obj = dict[str, Any]

INSTALLATION = Installation("example.com/trainer@sha256:0", "https://op.trl.svc:10443", "-----CA-----")
HOSTNAME = "kubernetes.io/hostname"
MINE = {"matchLabels": {"trl-operator.io/job-uid": "11111111-2222-3333-4444-555555555555"}}
REQUIRED, PREFERRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred"))
EXAMPLE = Path(__file__).parents[2] / "examples/pod.yaml"
WHOLE: Obj = yaml.safe_load(EXAMPLE.read_text())["spec"]["pod"]


def template(job: Job, backend: str) -> Any:
    """The pods' template of an attempt."""
    module = BACKENDS[backend]  # type: ignore[index]
    if backend == "pytorchjob":
        return module.manifest(job, 0, INSTALLATION)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    [(_, runtime)] = module.beside(job, 0, INSTALLATION)
    [nodes] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return nodes["template"]["spec"]["template"]


def test_the_example_names_every_field() -> None:
    assert set(WHOLE) == {field.alias for field in Pod.model_fields.values()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_field_is_found_in_the_pods_of_each_backend(make_job: Make, backend: str) -> None:
    found = template(make_job(numNodes=2, storage={"claimName": "shared"}, pod=WHOLE), backend)
    metadata, spec = found["metadata"], found["spec"]
    assert WHOLE["labels"].items() <= metadata["labels"].items()
    assert WHOLE["annotations"].items() <= metadata["annotations"].items()
    for name in ("runtimeClassName", "dnsConfig", "hostAliases"):
        assert spec[name] == WHOLE[name]
    said = WHOLE["affinity"]
    assert spec["affinity"]["nodeAffinity"] == said["nodeAffinity"]
    assert spec["affinity"]["podAntiAffinity"] == said["podAntiAffinity"]
    [near] = spec["affinity"]["podAffinity"][PREFERRED]
    assert near["podAffinityTerm"] == {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": MINE}
    first, second = WHOLE["topologySpreadConstraints"]
    assert spec["topologySpreadConstraints"] == [{**first, "labelSelector": MINE}, second]


@pytest.mark.parametrize("backend", BACKENDS)
def test_autoscalers_and_meshes_leave_pods_alone_unless_the_job_says_otherwise(make_job: Make, backend: str) -> None:
    quiet = {
        "sidecar.istio.io/inject": "false",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    assert template(make_job(), backend)["metadata"]["annotations"] == quiet
    job = make_job(pod={"annotations": {"karpenter.sh/do-not-disrupt": "false"}})
    assert template(job, backend)["metadata"]["annotations"] == quiet | {"karpenter.sh/do-not-disrupt": "false"}


def test_the_pods_of_a_job_spread_over_nodes_where_they_can_and_must_if_told(make_job: Make) -> None:
    def spec(**fields: Any) -> Obj:
        found: Obj = template(make_job(storage={"claimName": "shared"}, **fields), "pytorchjob")["spec"]
        return {name: found[name] for name in ("affinity", "topologySpreadConstraints") if name in found}

    soft = {"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": MINE}
    apart = {"topologyKey": HOSTNAME, "labelSelector": MINE}
    assert spec() == {}, "one pod has nobody to stay away from"
    assert spec(numNodes=2) == spec(numNodes=2, onePodPerNode=False) == {"topologySpreadConstraints": [soft]}
    assert spec(numNodes=2, onePodPerNode=True) == {"affinity": {"podAntiAffinity": {REQUIRED: [apart]}}}
    hard = spec(numNodes=2, onePodPerNode=True, pod=WHOLE)["affinity"]["podAntiAffinity"][REQUIRED]
    assert hard == [*WHOLE["affinity"]["podAntiAffinity"][REQUIRED], apart]


NAMES = {
    model: getattr(client, f"V1{model.__name__}")
    for model in (
        affinity.Affinity, affinity.NodeAffinity, affinity.NodeSelector, affinity.NodeSelectorTerm,
        affinity.NodeSelectorRequirement, affinity.PreferredSchedulingTerm, affinity.PodAffinity,
        affinity.PodAffinityTerm, affinity.WeightedPodAffinityTerm, affinity.LabelSelector,
        affinity.LabelSelectorRequirement, affinity.TopologySpreadConstraint, HostAlias,
    )
} | {DNSConfig: client.V1PodDNSConfig, DNSConfigOption: client.V1PodDNSConfigOption}  # fmt: skip


@pytest.mark.parametrize("model", NAMES)
def test_what_is_kubernetes_own_is_spelled_as_kubernetes_spells_it(model: type[BaseModel]) -> None:
    theirs = set(NAMES[model].attribute_map.values())
    assert {field.alias for field in model.model_fields.values()} <= theirs


def test_every_model_that_a_pod_is_made_of_is_compared() -> None:
    def below(model: type[BaseModel]) -> set[type[BaseModel]]:
        found, left = set(), [field.annotation for field in model.model_fields.values()]
        while left:
            kind = left.pop()
            left += get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= {kind} | below(kind)
        return found

    assert below(Pod) == set(NAMES)
