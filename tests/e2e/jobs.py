"""Jobs that train a tiny model in a minute."""

import os
import time
from collections.abc import Callable
from typing import Any

BACKEND = os.environ.get("BACKEND", "pytorchjob")
"""What runs the jobs: pytorchjob or trainjob."""
OTHER = os.environ.get("BACKEND", "trainjob")
"""What runs some of them, so that both are there unless all are to run on one."""
KINDS = {"SFTJob": "conversations", "RewardJob": "pairs", "DPOJob": "pairs", "GRPOJob": "prompts"}
GROUPS = {"pytorchjob": "kubeflow.org", "trainjob": "trainer.kubeflow.org"}
INDEX = {"pytorchjob": "training.kubeflow.org/replica-index", "trainjob": "batch.kubernetes.io/job-completion-index"}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
# A job takes one minute or two on a quiet machine; this is for a busy one.
SECONDS = 400


def wait_for(found: Callable[[], Any], seconds: float, describe: Callable[[], str]) -> Any:
    """Return the first true value of `found`; fail after `seconds` with what `describe` says."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, describe()
        time.sleep(1)
    return value


def script(name: str, image: str, *arguments: str) -> dict[str, Any]:
    """A Kubernetes Job that runs a script of this folder, a key of the ConfigMap `scripts`, in the trainer image."""
    container = {
        "name": name,
        "image": image,
        "command": ["python", f"/scripts/{name}.py", *arguments],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "models", "mountPath": "/models"}, {"name": "scripts", "mountPath": "/scripts"}],
    }
    spec = {
        "restartPolicy": "Never",
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "scripts", "configMap": {"name": "scripts"}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }


def job(kind: str, backend: str = BACKEND, **training: Any) -> dict[str, Any]:
    """A job of two nodes that trains the tiny model."""
    spec: dict[str, Any] = {
        "model": {"volume": {"claimName": "models", "path": "tiny/model"}},
        "dataset": {"train": {"volume": {"claimName": "models", "path": f"tiny/{KINDS[kind]}.jsonl"}}},
        "numNodes": 2,
        "backend": backend,
        "peft": {"method": "none"},
        "training": {
            "maxSteps": 6,
            "perDeviceBatchSize": 4,
            "gradientAccumulationSteps": 1,
            "learningRate": 1e-3,
            "loggingSteps": 1,
            **training,
        },
        "evaluation": {"maxExamples": 8},
        "storage": {"claimName": "models", "subPath": "runs"},
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "4Gi"}},
    }
    if kind == "GRPOJob":
        keyword = {"name": "polite", "keyword": {"words": ["thank", "happy", "gladly"]}}
        length = {"name": "brief", "weight": 0.5, "length": {"target": 8}}
        spec["grpo"] = {"rewards": [keyword, length], "generation": {"maxCompletionLength": 12}}
    name = kind.removesuffix("Job").lower()
    return {"apiVersion": "trl-operator.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def queues(name: str, cpu: str) -> list[dict[str, Any]]:
    """A ClusterQueue with so much quota, which preempts what has a lower priority, and the objects that it needs."""
    quotas = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "1Ti"}]
    flavors = [{"name": name, "resources": quotas}]
    spec = {
        "namespaceSelector": {},
        "resourceGroups": [{"coveredResources": ["cpu", "memory"], "flavors": flavors}],
        "preemption": {"withinClusterQueue": "LowerPriority"},
    }
    return [
        kueue_object("ResourceFlavor", name, spec={}),
        kueue_object("ClusterQueue", name, spec=spec),
        kueue_object("WorkloadPriorityClass", "low", value=1),
        kueue_object("WorkloadPriorityClass", "high", value=1000),
        kueue_object("LocalQueue", "team", spec={"clusterQueue": name}),
    ]


def kueue_object(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": {"name": name}, **fields}
