"""JobSet, Trainer and Kueue run real pods in the cluster, and nothing of them stays when they are taken away."""

import json
import os
from typing import Any

import pytest

from devcluster import engines

QUEUE = {"kueue.x-k8s.io/queue-name": "team"}
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pods(image: str, container: str, script: str) -> dict[str, Any]:
    """A pod's template that Pod Security `restricted` admits and whose request is a tenth of a CPU."""
    requests = {"requests": {"cpu": "100m"}}
    main = {"name": container, "image": image, "command": ["sh", "-c", script], "resources": requests}
    return {"spec": {"restartPolicy": "Never", "containers": [{**main, "securityContext": RESTRICTED}]}}


def kueue_object(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": {"name": name}, "spec": spec}


def test_a_trainjob_waits_for_the_quota_that_a_pytorchjob_has(
    kubectl: Any, namespace: str, busybox: str, kueue: None
) -> None:
    quota = {"name": namespace, "resources": [{"name": "cpu", "nominalQuota": "100m"}]}
    kubectl.apply(
        kueue_object("ResourceFlavor", namespace),
        kueue_object(
            "ClusterQueue",
            namespace,
            namespaceSelector={},
            resourceGroups=[{"coveredResources": ["cpu"], "flavors": [quota]}],
        ),
    )
    kubectl.apply(kueue_object("LocalQueue", "team", clusterQueue=namespace), namespace=namespace)
    worker = {"replicas": 1, "restartPolicy": "Never", "template": pods(busybox, "pytorch", "sleep 2")}
    first = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "first", "labels": QUEUE},
        "spec": {"runPolicy": {"suspend": True}, "pytorchReplicaSpecs": {"Worker": worker}},
    }
    job = {"backoffLimit": 0, "template": pods(busybox, "node", 'test "$PET_NNODES" = 1')}
    ancestor = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
    jobs = [{"name": "node", "template": {"metadata": ancestor, "spec": job}}]
    second = [
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainingRuntime",
            "metadata": {"name": "second"},
            "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": {"replicatedJobs": jobs}}},
        },
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": "second", "labels": QUEUE},
            "spec": {
                "suspend": True,
                "runtimeRef": {"kind": "TrainingRuntime", "name": "second"},
                "trainer": {"numProcPerNode": 1},  # without it Trainer sets none of torchrun's variables
            },
        },
    ]
    within = f"--namespace={namespace}"
    kubectl.apply(first, namespace=namespace)
    kubectl.wait("condition=Running", within, "pytorchjob/first")
    kubectl.apply(*second, namespace=namespace)
    kubectl.wait("condition=Complete", within, "trainjob/second")
    ended = kubectl.get(within, "pytorchjob/first")["status"]["completionTime"]
    [started] = [
        each["lastTransitionTime"]
        for workload in kubectl.get(within, "workloads")["items"]
        for each in workload["status"]["conditions"]
        if workload["metadata"]["ownerReferences"][0]["name"] == "second" and each["type"] == "Admitted"
    ]
    assert started >= ended
    kubectl("delete", within, "pytorchjob/first", "trainjob/second", "localqueue/team")
    kubectl("delete", f"clusterqueue/{namespace}", f"resourceflavor/{namespace}")


@pytest.mark.skipif(bool(os.environ.get("CLUSTER")), reason="takes something away that others may use")
def test_nothing_is_left_of_kueue_where_it_was_removed(kubectl: Any, kueue: None) -> None:
    flavor = kueue_object("ResourceFlavor", "left")
    kubectl.apply(flavor)
    engines.remove("kueue")
    left = kubectl("get", "crds,clusterroles,validatingwebhookconfigurations,namespaces", "--output=name")
    assert "kueue" not in left
    engines.install("kueue")
    assert json.loads(kubectl("get", "resourceflavors", "--output=json"))["items"] == []
