"""Builders of the objects that the pure functions take."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from trl_operator.api.job import Job, parse_job
from trl_operator.plan.observation import Child, Pod, child_from, pod_from

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
OWNER = {
    "apiVersion": "trl-operator.io/v1alpha1", "kind": "DPOJob", "name": "tune", "uid": UID, "controller": True,
}  # fmt: skip


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """A job as the API server stores it, parsed."""

    def make(kind: str = "DPOJob", **spec: Any) -> Job:
        base: dict[str, Any] = {
            "model": {"hub": {"repo": "org/base"}},
            "dataset": {"train": {"configMap": {"name": "rows", "key": "train.jsonl"}}},
            "storage": {"size": "10Gi"},
        }
        if kind == "GRPOJob":
            base["grpo"] = {"rewards": [{"name": "polite", "keyword": {"words": ["please"]}}]}
        metadata = {"namespace": "team", "name": "tune", "uid": UID, "generation": 1}
        return parse_job({"kind": kind, "metadata": metadata, "spec": {**base, **spec}})

    return make


@pytest.fixture
def make_pod() -> Callable[..., Pod]:
    """A pod as the API server shows it, cut down."""

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
        **status: Any,
    ) -> Pod:
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
        metadata = {"namespace": "team", "name": name, "uid": f"pod-{attempt}-{index}", "resourceVersion": "1"}
        if deleted_at:
            metadata["deletionTimestamp"] = deleted_at
        containers = [{"name": "pytorch", "state": state}]
        found = {"phase": phase, "conditions": conditions, "containerStatuses": containers, **status}
        obj = {"metadata": {**metadata, "labels": labels}, "spec": {"nodeName": "n1"}, "status": found}
        pod = pod_from(obj)
        assert pod is not None
        return pod

    return make


@pytest.fixture
def make_child() -> Callable[..., Child]:
    """A PyTorchJob as the API server shows it, cut down."""

    def make(attempt: int = 0, condition: str = "Running", *, deleting: bool = False) -> Child:
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
        child = child_from({"metadata": metadata, "status": {"conditions": [{"type": condition, "status": "True"}]}})
        assert child is not None
        return child

    return make
