"""What the dev cluster promises to the operator and its jobs, shown with real pods."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(bool(os.environ.get("CLUSTER")), reason="is about the dev cluster only")

RESTRICTED_POD = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
ALL_REDUCE = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
print(f"rank {dist.get_rank()} of {dist.get_world_size()} on {os.uname().nodename}: {total.item()}", flush=True)
dist.destroy_process_group()
"""


def pod(
    name: str, image: str, script: str, volumes: Sequence[dict[str, Any]] = (), /, **container: Any
) -> dict[str, Any]:
    """A pod that Pod Security `restricted` admits; each volume is mounted at /NAME."""
    mounts = [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]
    main = {
        "name": "main",
        "image": image,
        "command": ["sh", "-c", script],
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": mounts,
        **container,
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "securityContext": RESTRICTED_POD,
        "containers": [main],
        "volumes": [*volumes],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def claim(name: str) -> dict[str, Any]:
    """A claim that any number of pods may write to, of the default StorageClass."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def all_reduce_job(image: str) -> list[dict[str, Any]]:
    """A PyTorchJob of two Worker pods that run torchrun, and the ConfigMap with its script."""
    environment = [
        {
            "name": "PET_NODE_RANK",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['training.kubeflow.org/replica-index']"}},
        },
        {"name": "PET_MASTER_ADDR", "value": "sum-worker-0"},
        {"name": "PET_MASTER_PORT", "value": "23456"},
        {"name": "OMP_NUM_THREADS", "value": "1"},
    ]
    volumes = [{"name": "script", "configMap": {"name": "script"}}, {"name": "tmp", "emptyDir": {}}]
    template = pod(
        "unused", image, "", volumes, name="pytorch", command=["torchrun", "/script/sum.py"], env=environment
    )
    worker = {"replicas": 2, "restartPolicy": "Never", "template": {"spec": template["spec"]}}
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "sum"},
        "spec": {"nprocPerNode": "1", "pytorchReplicaSpecs": {"Worker": worker}},
    }
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}, "data": {"sum.py": ALL_REDUCE}}
    return [script, job]


def test_two_worker_pods_reduce_over_gloo_in_a_restricted_namespace(
    kubectl: Any, namespace: str, trainer_image: str
) -> None:
    kubectl.apply(*all_reduce_job(trainer_image), namespace=namespace)
    kubectl.wait("condition=Succeeded", f"--namespace={namespace}", "pytorchjob/sum", timeout=300)
    logs = [kubectl("logs", f"--namespace={namespace}", f"sum-worker-{rank}") for rank in (0, 1)]
    assert [f"rank {rank} of 2 on sum-worker-{rank}: 3.0" in logs[rank] for rank in (0, 1)] == [True, True], logs


def test_a_namespace_that_enforces_restricted_refuses_a_pod_that_is_not(
    kubectl: Any, namespace: str, busybox: str
) -> None:
    loose = pod("loose", busybox, "true")
    loose["spec"]["containers"][0].pop("securityContext")
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        kubectl.apply(loose, namespace=namespace)


def test_a_webhook_refuses_a_pytorchjob_without_its_container(kubectl: Any, namespace: str, busybox: str) -> None:
    _, job = all_reduce_job(busybox)
    job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["name"] = "trainer"
    with pytest.raises(AssertionError, match=r"validator\.pytorchjob\.training-operator.* denied the request"):
        kubectl.apply(job, namespace=namespace)


def test_a_pod_over_its_memory_limit_is_seen_as_oomkilled(kubectl: Any, namespace: str, busybox: str) -> None:
    kubectl.apply(
        pod("greedy", busybox, "tail /dev/zero", resources={"limits": {"memory": "32Mi"}}), namespace=namespace
    )
    kubectl.wait("jsonpath={.status.phase}=Failed", f"--namespace={namespace}", "pod/greedy")
    state = kubectl.get(f"--namespace={namespace}", "pod/greedy")["status"]["containerStatuses"][0]["state"]
    assert (state["terminated"]["reason"], state["terminated"]["exitCode"]) == ("OOMKilled", 137)


def test_a_projected_token_is_valid_for_its_own_audience_only_and_names_its_pod(
    kubectl: Any, namespace: str, busybox: str
) -> None:
    token = {"serviceAccountToken": {"path": "token", "audience": "trl-operator", "expirationSeconds": 600}}
    volume = {"name": "token", "projected": {"sources": [token]}}
    kubectl.apply(pod("bearer", busybox, "cat /token/token", [volume]), namespace=namespace)
    kubectl.wait("jsonpath={.status.phase}=Succeeded", f"--namespace={namespace}", "pod/bearer")
    bearer = kubectl.get(f"--namespace={namespace}", "pod/bearer")
    value = kubectl("logs", f"--namespace={namespace}", "bearer")

    def review(audience: str) -> dict[str, Any]:
        body = {"spec": {"token": value, "audiences": [audience]}}
        given = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", **body})
        status: dict[str, Any] = json.loads(kubectl("create", "--output=json", "--filename=-", given=given))["status"]
        return status

    reviewed = review("trl-operator")
    assert reviewed["authenticated"] is True
    assert reviewed["audiences"] == ["trl-operator"]
    assert reviewed["user"]["username"] == f"system:serviceaccount:{namespace}:default"
    extra = reviewed["user"]["extra"]
    assert extra["authentication.kubernetes.io/pod-name"] == ["bearer"]
    assert extra["authentication.kubernetes.io/pod-uid"] == [bearer["metadata"]["uid"]]
    assert extra["authentication.kubernetes.io/node-name"] == [bearer["spec"]["nodeName"]]
    assert not review("https://kubernetes.default.svc.cluster.local").get("authenticated")


def test_a_dynamic_claim_is_written_by_one_pod_and_read_by_another_as_uid_1000(
    kubectl: Any, namespace: str, busybox: str
) -> None:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "shared"}}
    # Both are there at once, as the workers of a job are.
    writer = pod("writer", busybox, "id -u > /data/user; until [ -e /data/read ]; do sleep 0.1; done", [volume])
    reader = pod("reader", busybox, "until cat /data/user; do sleep 0.1; done 2>/dev/null; touch /data/read", [volume])
    kubectl.apply(claim("shared"), writer, reader, namespace=namespace)
    for name in ("writer", "reader"):
        kubectl.wait("jsonpath={.status.phase}=Succeeded", f"--namespace={namespace}", f"pod/{name}")
    assert kubectl("logs", f"--namespace={namespace}", "reader") == "1000\n"
    volume_name = kubectl.get(f"--namespace={namespace}", "pvc/shared")["spec"]["volumeName"]
    path = Path(kubectl.get("pv", volume_name)["spec"]["hostPath"]["path"])
    assert (path / "user").stat().st_uid == 1000
    kubectl("delete", f"--namespace={namespace}", "pod/writer", "pod/reader", "pvc/shared")
    kubectl("wait", "--for=delete", "--timeout=120s", f"pv/{volume_name}")
    assert not path.exists()


def test_a_pod_resolves_services_and_reaches_the_api_through_one(kubectl: Any, namespace: str, busybox: str) -> None:
    # busybox does not speak the API server's TLS: what answers plain HTTP with this is the API server all the same.
    script = "nslookup kubernetes.default.svc.cluster.local && ! wget -O - http://kubernetes.default:443/ 2>&1"
    kubectl.apply(pod("client", busybox, script), namespace=namespace)
    kubectl.wait("jsonpath={.status.phase}=Succeeded", f"--namespace={namespace}", "pod/client")
    said = kubectl("logs", f"--namespace={namespace}", "client")
    assert "10.96.0.1" in said
    assert "400 Bad Request" in said
    assert '"gitVersion": "v1.36.5"' in kubectl("get", "--raw=/version")
