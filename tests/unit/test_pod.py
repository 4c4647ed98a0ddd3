"""What a job says of its pods is found in them, whatever runs it, and so is what stands for what it does not say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from kubernetes import client
from pydantic import BaseModel

from trl_contract import affinity, pod, podvolumes
from trl_contract.cluster import EnvVar
from trl_operator.api.job import Job
from trl_operator.backend import BACKENDS
from trl_operator.plan.acceptance import references
from trl_operator.render.manifests import Installation, claim, network_policy
from trl_operator.render.volumes import CA_FOLDER

Make = Callable[..., Any]
Obj = dict[str, Any]

INSTALLATION = Installation("example.com/trainer@sha256:0", "https://op.trl.svc:10443", "-----CA-----")
HOSTNAME = "kubernetes.io/hostname"
MINE = {"matchLabels": {"trl-operator.io/job-uid": "11111111-2222-3333-4444-555555555555"}}
REQUIRED, PREFERRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred"))
EXAMPLE = Path(__file__).parents[2] / "examples/pod.yaml"
WHOLE: Obj = yaml.safe_load(EXAMPLE.read_text())["spec"]["pod"]


def mounts_of_a_pod() -> list[Obj]:
    """All mounts of a job that mounts what can be mounted, as committed."""
    golden = yaml.safe_load((Path(__file__).parent / "golden_pytorchjob.yaml").read_text())
    [container] = golden["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    return [*container["volumeMounts"], {"mountPath": CA_FOLDER}]


def template(job: Job, backend: str) -> Any:
    """The pods' template of an attempt."""
    module = BACKENDS[backend]  # type: ignore[index]
    if backend == "pytorchjob":
        return module.manifest(job, 0, INSTALLATION)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    [(_, runtime)] = module.beside(job, 0, INSTALLATION)
    [nodes] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return nodes["template"]["spec"]["template"]


def test_the_example_names_every_field() -> None:
    assert set(WHOLE) == {field.alias for field in pod.Pod.model_fields.values()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_field_is_found_in_the_pods_of_each_backend(make_job: Make, backend: str) -> None:
    found = template(make_job(numNodes=2, storage={"claimName": "shared"}, pod=WHOLE), backend)
    metadata, spec = found["metadata"], found["spec"]
    assert WHOLE["labels"].items() <= metadata["labels"].items()
    assert WHOLE["annotations"].items() <= metadata["annotations"].items()
    for name in ("runtimeClassName", "dnsConfig", "hostAliases", "serviceAccountName"):
        assert spec[name] == WHOLE[name]
    [container] = spec["containers"]
    assert container["envFrom"] == WHOLE["envFrom"]
    volumes, mounts = ({each["name"]: each for each in found} for found in (spec["volumes"], container["volumeMounts"]))
    for said in WHOLE["volumes"]:
        [mount] = [mount for mount in mounts.values() if mount["mountPath"] == said["mountPath"]]
        volume = {name: value for name, value in volumes[mount["name"]].items() if name != "name"}
        assert {**volume, **mount} == {**said, "name": mount["name"]}
    assert volumes["ca-bundle"]["configMap"] == {"name": "company-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["TRL_CA_BUNDLE"] == f"{mounts['ca-bundle']['mountPath']}/ca.crt"
    assert env["TRL_SECRET_VARIABLES"].split() == ["TEAM_*"], "what comes from a Secret is kept out of logs"
    said = WHOLE["affinity"]
    assert spec["affinity"]["nodeAffinity"] == said["nodeAffinity"]
    assert spec["affinity"]["podAntiAffinity"] == said["podAntiAffinity"]
    [near] = spec["affinity"]["podAffinity"][PREFERRED]
    assert near["podAffinityTerm"] == {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": MINE}
    first, second = WHOLE["topologySpreadConstraints"]
    assert spec["topologySpreadConstraints"] == [{**first, "labelSelector": MINE}, second]


def test_what_the_pods_mount_and_read_must_be_there_and_shared_if_they_write_to_it(make_job: Make) -> None:
    job = make_job(pod=WHOLE)
    named = {(found.field, found.kind, found.name, found.key, found.writes) for found in references(job)}
    assert named >= {
        ("pod.caBundle", "ConfigMap", "company-ca", "ca.crt", False),
        ("pod.envFrom[0]", "ConfigMap", "settings", "", False),
        ("pod.volumes[0]", "PersistentVolumeClaim", "lexicon", "", False),
        ("pod.volumes[1]", "ConfigMap", "settings", "", False),
    }
    claim = {"name": "a", "mountPath": "/a", "persistentVolumeClaim": {"claimName": "a"}}
    [written] = [found for found in references(make_job(pod={"volumes": [claim]})) if found.name == "a"]
    assert written.writes


def test_a_claim_that_is_the_storage_too_is_one_volume(make_job: Make) -> None:
    claim = {"name": "a", "mountPath": "/a", "persistentVolumeClaim": {"claimName": "shared"}, "subPath": "notes"}
    spec = template(make_job(storage={"claimName": "shared"}, pod={"volumes": [claim]}), "pytorchjob")["spec"]
    [name] = [volume["name"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
    mounted = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == name]
    assert [mount["mountPath"] for mount in mounted] == ["/mnt/storage", "/a"]


@pytest.mark.parametrize("path", [mount["mountPath"] for mount in mounts_of_a_pod()])
def test_nothing_is_mounted_over_what_the_operator_mounts(path: str) -> None:
    for taken in (path, f"{path}/below", str(Path(path).parent)):
        volume = {"name": "a", "mountPath": taken, "emptyDir": {}}
        with pytest.raises(ValueError, match="mountPath"):
            podvolumes.PodVolume.model_validate(volume)


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD", "PYTHONPATH", "KUBERNETES_SERVICE_HOST", "KUBEFLOW_TRAINER_SERVER_URL", "TRL_JOB_FILE",
        "MASTER_ADDR", "PET_NNODES", "TORCHELASTIC_RUN_ID", "PATH", "RANK", "LOCAL_RANK", "WORLD_SIZE",
        "CUDA_VISIBLE_DEVICES", "HOME", "DISABLE_KUBEFLOW_INTEGRATION",
    ],
)  # fmt: skip
def test_no_prefix_and_key_of_env_from_give_a_variable_that_env_may_not_set(name: str) -> None:
    with pytest.raises(ValueError, match="operator"):
        EnvVar.model_validate({"name": name, "value": "x"})
    for end in range(len(name) + 1):
        with pytest.raises(ValueError, match="prefix"):
            pod.EnvFrom.model_validate({"prefix": name[:end], "configMapRef": {"name": "c"}})


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
        affinity.LabelSelectorRequirement, affinity.TopologySpreadConstraint, pod.HostAlias,
    )
} | {
    pod.DNSConfig: client.V1PodDNSConfig, pod.DNSConfigOption: client.V1PodDNSConfigOption,
    pod.EnvFrom: client.V1EnvFromSource, pod.ConfigMapEnv: client.V1ConfigMapEnvSource,
    pod.SecretEnv: client.V1SecretEnvSource, podvolumes.ClaimSource: client.V1PersistentVolumeClaimVolumeSource,
    podvolumes.ConfigMapSource: client.V1ConfigMapVolumeSource, podvolumes.SecretSource: client.V1SecretVolumeSource,
    podvolumes.EmptyDirSource: client.V1EmptyDirVolumeSource, podvolumes.CsiSource: client.V1CSIVolumeSource,
    podvolumes.LocalObjectName: client.V1LocalObjectReference,
}  # fmt: skip


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

    assert below(pod.Pod) == {*NAMES, podvolumes.PodVolume, pod.CABundle}
    own = {field.alias for field in podvolumes.PodVolume.model_fields.values()}
    assert own <= {*client.V1Volume.attribute_map.values(), *client.V1VolumeMount.attribute_map.values()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_installation_copies_is_on_everything_and_never_wins_over_ours(make_job: Make, backend: str) -> None:
    metadata = {"labels": {"a/b": "x", "trl-operator.io/job-uid": "y", "other": "z"}, "annotations": {"c": "d"}}
    installation = replace(
        INSTALLATION, copied_labels=("a/b", "trl-operator.io/job-uid", "none"), copied_annotations=("c",)
    )
    job = installation.of(make_job(storage={"size": "1Gi"}), {"metadata": metadata})
    module = BACKENDS[backend]  # type: ignore[index]
    objects = [claim(job), network_policy(job, 0), module.manifest(job, 0, installation), template(job, backend)]
    for obj in (*objects, *(obj for _, obj in module.beside(job, 0, installation))):
        found = obj["metadata"]
        assert (found["labels"]["a/b"], found["annotations"]["c"]) == ("x", "d")
        assert found["labels"]["trl-operator.io/job-uid"] == job.uid
        assert "other" not in found["labels"]
