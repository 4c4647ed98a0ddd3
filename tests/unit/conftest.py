"""Builders of the objects that the pure functions take."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

# Test modules are imported without a package (importlib mode), so what they share needs a place on the path.
sys.path.insert(0, str(Path(__file__).parent))

from trl_operator.api.job import Job, parse_job
from trl_operator.backend import child_from, pod_from
from trl_operator.plan.observation import Child, Pod

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
OWNER = {
    "apiVersion": "trl-operator.io/v1alpha1", "kind": "DPOJob", "name": "tune", "uid": UID, "controller": True,
}  # fmt: skip
WORKLOAD = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob"}
CONTROLLER = {**WORKLOAD, "controller": True}


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def make_job(job_object: Callable[..., dict[str, Any]]) -> Callable[..., Job]:
    """A job, parsed."""

    def make(kind: str = "DPOJob", **spec: Any) -> Job:
        return parse_job(job_object(kind, **spec))

    return make


@pytest.fixture
def job_object() -> Callable[..., dict[str, Any]]:
    """A job as the API server stores it."""

    def make(kind: str = "DPOJob", **spec: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "model": {"hub": {"repo": "org/base"}},
            "dataset": {"train": {"configMap": {"name": "rows", "key": "train.jsonl"}}},
            "storage": {"size": "10Gi"},
        }
        if kind == "GRPOJob":
            base["grpo"] = {"rewards": [{"name": "polite", "keyword": {"words": ["please"]}}]}
        metadata = {"namespace": "team", "name": "tune", "uid": UID, "generation": 1}
        return {"kind": kind, "metadata": metadata, "spec": {**base, **spec}}

    return make


@pytest.fixture
def make_pod(pod_object: Callable[..., dict[str, Any]]) -> Callable[..., Pod]:
    """A pod, cut down."""

    def make(*arguments: Any, **fields: Any) -> Pod:
        pod = pod_from(pod_object(*arguments, **fields))
        assert pod is not None
        return pod

    return make


@pytest.fixture
def pod_object() -> Callable[..., dict[str, Any]]:
    """A pod as the API server shows it."""

    def make(
        index: int = 0,
        phase: str = "Running",
        *,
        attempt: int = 0,
        exit_code: int | None = None,
        exit_reason: str = "Error",
        record: dict[str, Any] | str | None = None,
        waiting: tuple[str, str] | None = None,
        disruption: str = "",
        deleted_at: str | None = None,
        claims: tuple[str, ...] = (),
        asks: dict[str, Any] | None = None,
        **status: Any,
    ) -> dict[str, Any]:
        state: dict[str, Any] = {"running": {"startedAt": "2026-11-21T11:00:00Z"}}
        if exit_code is not None:
            message = record if isinstance(record, str) else json.dumps(record) if record else ""
            times = {"startedAt": "2026-11-21T11:00:00Z", "finishedAt": "2026-11-21T11:30:00Z"}
            state = {"terminated": {"exitCode": exit_code, "reason": exit_reason, "message": message, **times}}
        elif waiting or phase == "Pending":
            reason, message = waiting or ("ContainerCreating", "")
            state = {"waiting": {"reason": reason, "message": message}}
        conditions = [{"type": "DisruptionTarget", "status": "True", "reason": disruption}] if disruption else []
        labels = {
            "trl-operator.io/job-uid": UID,
            "trl-operator.io/job-kind": "DPOJob",
            "trl-operator.io/job-name": "tune",
            "trl-operator.io/attempt": str(attempt),
            "training.kubeflow.org/replica-index": str(index),
        }
        name = f"tune-dpo-{attempt}-worker-{index}"
        metadata: dict[str, Any] = {
            "namespace": "team",
            "name": name,
            "uid": f"pod-{attempt}-{index}",
            "resourceVersion": "1",
        }
        metadata["ownerReferences"] = [{**CONTROLLER, "name": f"tune-dpo-{attempt}", "uid": f"child-{attempt}"}]
        if deleted_at:
            metadata["deletionTimestamp"] = deleted_at
        containers = [{"name": "pytorch", "state": state}]
        found = {"phase": phase, "conditions": conditions, "containerStatuses": containers, **status}
        waits = any((c["type"], c["status"]) == ("PodScheduled", "False") for c in found["conditions"])
        volumes = [
            {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
            for number, claim in enumerate(claims)
        ]
        volumes = [*volumes, {"name": "tmp", "emptyDir": {}}]
        spec = {"volumes": volumes, **(asks or {}), **({} if waits else {"nodeName": "n1"})}
        return {"metadata": {**metadata, "labels": labels}, "spec": spec, "status": found}

    return make


@pytest.fixture
def make_child(child_object: Callable[..., dict[str, Any]]) -> Callable[..., Child]:
    """A PyTorchJob, cut down."""

    def make(*arguments: Any, **fields: Any) -> Child:
        child = child_from(child_object(*arguments, **fields))
        assert child is not None
        return child

    return make


@pytest.fixture
def child_object() -> Callable[..., dict[str, Any]]:
    """A PyTorchJob as the API server shows it."""

    def make(attempt: int = 0, condition: str = "Running", *, deleting: bool = False) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "namespace": "team",
            "name": f"tune-dpo-{attempt}",
            "uid": f"child-{attempt}",
            "resourceVersion": "1",
            "labels": {
                "trl-operator.io/attempt": str(attempt),
                "trl-operator.io/job-kind": "DPOJob",
                "trl-operator.io/job-name": "tune",
            },
            "ownerReferences": [OWNER],
        }
        if deleting:
            metadata["deletionTimestamp"] = "2026-11-21T11:59:00Z"
        conditions = [{"type": condition, "status": "True"}]
        return {**WORKLOAD, "metadata": metadata, "status": {"conditions": conditions}}

    return make
