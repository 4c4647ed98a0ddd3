"""Pods as they come out of what makes them: nothing that a job says of its pods gets lost on the way."""

from collections.abc import Callable
from typing import Any

import yaml

from devcluster.fakenode import FakeNode
from devcluster.paths import REPOSITORY

Obj = dict[str, Any]


def test_all_that_a_job_says_of_its_pods_is_there_in_the_pods(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Obj]
) -> None:
    said = yaml.safe_load((REPOSITORY / "examples/pod.yaml").read_text())["spec"]
    jobs.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "n"})
    own = {name: said[name] for name in ("storage", "numNodes", "onePodPerNode", "pod")}
    for kind in ("ConfigMap", "Secret"):
        names = {"ConfigMap": ("settings", "company-ca"), "Secret": ("licence",)}[kind]
        data = {"stringData" if kind == "Secret" else "data": {"ca.crt": "x"}}
        jobs.apply(*({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **data} for name in names))
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    jobs.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "lexicon"}, "spec": claim})
    jobs.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer"}})
    jobs.apply(dpo(**own, env=[{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]))
    mine = {"matchLabels": {"trl-operator.io/job-uid": jobs.get("dpojob", "tune")["metadata"]["uid"]}}
    pods, pod = node.wait_for_pods(2, "tune-dpo-0"), said["pod"]
    for metadata, spec in ((found["metadata"], found["spec"]) for found in pods):
        assert pod["labels"].items() <= metadata["labels"].items()
        assert pod["annotations"].items() <= metadata["annotations"].items()
        assert metadata["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        for name in ("runtimeClassName", "dnsConfig", "hostAliases", "serviceAccountName"):
            assert spec[name] == pod[name]
        [container] = spec["containers"]
        assert container["envFrom"] == pod["envFrom"]
        node_name = next(variable for variable in container["env"] if variable["name"] == "NODE")
        assert node_name["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
        at = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for wanted in pod["volumes"]:
            mount = at[wanted["mountPath"]]
            [source] = wanted.keys() & volumes[mount["name"]].keys() - {"name"}
            assert wanted[source].items() <= volumes[mount["name"]][source].items()
            assert mount.items() >= {k: wanted[k] for k in ("readOnly", "subPath") if k in wanted}.items()
        assert without_mine(spec["affinity"], mine) == pod["affinity"] | {
            "podAntiAffinity": apart(pod["affinity"]["podAntiAffinity"])
        }
        assert without_mine(spec["topologySpreadConstraints"], mine) == pod["topologySpreadConstraints"]


def without_mine(found: Any, mine: Obj) -> Any:
    """The same without the selectors of the job's own pods, which stand where the job says none."""
    if isinstance(found, dict):
        return {k: without_mine(v, mine) for k, v in found.items() if (k, v) != ("labelSelector", mine)}
    return [without_mine(item, mine) for item in found] if isinstance(found, list) else found


def apart(said: Obj) -> Obj:
    """With what onePodPerNode adds."""
    [name] = said
    return {name: [*said[name], {"topologyKey": "kubernetes.io/hostname"}]}
