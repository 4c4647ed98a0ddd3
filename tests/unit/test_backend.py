"""backend/: what runs an attempt, and that one more kind of it is one more file."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from test_reconcile import World

from trl_operator import backend
from trl_operator.backend.pytorchjob import child_from, maker, manifest
from trl_operator.constants import MANAGER_STATUS
from trl_operator.kube import JOBS
from trl_operator.plan.observation import Child, Owner, current_attempt, number, workload
from trl_operator.plan.view import View
from trl_operator.render.manifests import Installation
from trl_operator.resource import Resource
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]

INSTALLATION = Installation("example.com/trainer@sha256:0", "https://op.trl.svc:10443", "-----CA-----")
GOLDEN = Path(__file__).with_name("golden_pytorchjob.yaml")


def test_a_whole_pytorchjob_is_as_committed(make_job: Make) -> None:
    job = make_job(
        numNodes=2,
        model={"volume": {"claimName": "models", "path": "org/base"}},
        storage={"claimName": "shared", "subPath": "team"},
        resources={"limits": {"nvidia.com/gpu": 4, "memory": "64Gi"}},
        sharedMemory="8Gi",
        nodeSelector={"gpu": "h100"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        imagePullSecrets=[{"name": "pull"}],
        env=[{"name": "NCCL_DEBUG", "value": "$(WARN)"}],
    )
    found = manifest(job, 3, INSTALLATION)
    assert found == yaml.safe_load(GOLDEN.read_text()), yaml.safe_dump(found, sort_keys=False)


def test_only_workers_and_nothing_that_lets_the_training_operator_retry(make_job: Make) -> None:
    spec = manifest(make_job(), 0, INSTALLATION)["spec"]
    assert list(spec["pytorchReplicaSpecs"]) == ["Worker"]
    assert spec["runPolicy"] == {"cleanPodPolicy": "Running"}
    assert spec["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "Never"
    assert "elasticPolicy" not in spec


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "active"),
        ([("Running", "True")], "active"),
        ([("Running", "False"), ("Succeeded", "True")], "succeeded"),
        ([("Succeeded", "True"), ("Failed", "True")], "failed"),
        ([("Failed", "False")], "active"),
    ],
)
def test_a_pytorchjobs_conditions_become_one_verdict(
    child_object: Make, conditions: list[tuple[str, str]], state: str
) -> None:
    obj = child_object(0)
    obj["status"]["conditions"] = [{"type": kind, "status": value} for kind, value in conditions]
    child = child_from(obj)
    assert child is not None
    assert (child.state, child.deleting) == (state, False)
    obj["metadata"]["deletionTimestamp"] = "2026-11-21T11:59:00Z"
    assert child_from(obj) == Child(**{**vars(child), "deleting": True})


def test_a_pod_is_of_the_pytorchjob_that_controls_it(pod_object: Make) -> None:
    pod = pod_object(1)
    assert maker(pod) == Owner("tune-dpo-0", "child-0")
    for change in ({"kind": "Job"}, {"apiVersion": "batch/v1"}, {"controller": False}):
        foreign = pod_object(1)
        foreign["metadata"]["ownerReferences"][0] |= change
        assert maker(foreign) is None


def test_the_newest_refusal_of_a_pod_comes_first_and_other_events_are_none(make_child: Make) -> None:
    def event(message: str, time: str, reason: str = "FailedCreatePod") -> dict[str, str]:
        return {"reason": reason, "message": message, "lastTimestamp": time}

    events = [event(str(minute), f"2026-11-21T11:{minute}:00Z") for minute in (10, 30, 20)]
    events += [event("no time", ""), event("other", "2026-11-21T11:40:00Z", "ExitedWithCode")]
    assert backend.denials(make_child(0), events) == ("30", "20", "10", "no time")


# -- an operator of version 0.1 has written status.pytorchJob


def test_a_job_whose_attempt_an_older_operator_began_goes_on_and_its_workload_is_said_anew(
    job_object: Make, child_object: Make, pod_object: Make, now: datetime
) -> None:
    world = World(job_object(), now)
    old = {"attempt": 0, "restarts": 0, "pytorchJob": {"name": "tune-dpo-0", "uid": "child-0"}}
    stored = world.kube.objects["dpojobs", "team", "tune"]
    body = {"metadata": stored["metadata"], "status": old}
    asyncio.run(world.kube.apply(JOBS["DPOJob"], "team", body, MANAGER_STATUS, "status"))
    world.store.put_job(world.kube.objects["dpojobs", "team", "tune"])
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0)))
    world.store.put_pod(world.kube.put("pods", pod_object(0)))
    world.reconcile()
    assert (world.status["phase"], world.status["attempt"]) == ("Running", 0)
    name = {"name": "tune-dpo-0", "uid": "child-0"}
    assert world.status["workload"] == {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", **name}
    assert "pytorchJob" not in world.status
    assert ("create", "pytorchjobs") not in world.kube.writes


def test_an_older_operators_attempt_whose_pytorchjob_is_gone_has_failed(make_job: Make, now: datetime) -> None:
    old = {"attempt": 0, "pytorchJob": {"name": "tune-dpo-0", "uid": "child-0"}}
    after = decide(make_job(), old, View(), now)
    assert (after.status["attempt"], after.create) == (1, False)
    assert "PyTorchJob tune-dpo-0 was deleted" in after.status["conditions"][-1]["message"]
    stored = {"kind": "DPOJob", "metadata": {"namespace": "team", "name": "tune", "uid": "u"}, "status": old}
    attempt = current_attempt(stored)
    assert attempt is not None
    assert (attempt.child_uid, attempt.child_kind) == ("child-0", "PyTorchJob")
    assert workload(after.status) == {}


# -- another backend

BOXES = Resource("example.com", "v1", "boxes")


def box() -> Any:
    """A backend whose workloads are Boxes."""

    def child(obj: dict[str, Any]) -> Child:
        metadata = obj["metadata"]
        said = {"job": ("DPOJob", "team", "tune"), "api_version": "example.com/v1", "kind": "Box", "owner_uid": "u"}
        found = {name: metadata[name] for name in ("name", "uid")}
        attempt, version = number(metadata, "trl-operator.io/attempt"), int(metadata["resourceVersion"])
        return Child(**said, **found, attempt=attempt, version=version, state="active")  # type: ignore[arg-type]

    def make(job: Any, attempt: int, installation: Installation) -> dict[str, Any]:
        labels = {"trl-operator.io/attempt": str(attempt)}
        metadata = {"name": job.child_name(attempt), "labels": labels, "ownerReferences": [job.owner_reference]}
        return {"apiVersion": "example.com/v1", "kind": "Box", "metadata": metadata}

    return SimpleNamespace(
        KIND="Box", RESOURCE=BOXES, MISSING="no boxes", CONTAINER="node", LABEL_INDEX="example.com/index",
        manifest=make, child_from=child, DENIED="NoBox", maker=lambda pod: None,
    )  # fmt: skip


def test_another_backend_runs_new_attempts_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, job_object: Make, child_object: Make, pod_object: Make, now: datetime
) -> None:
    rows = {"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}}
    world = World(job_object(dataset=rows), now)
    world.reconcile()
    assert world.status["workload"]["kind"] == "PyTorchJob"
    monkeypatch.setattr(backend, "BACKENDS", (box(), *backend.BACKENDS))
    uid = world.status["workload"]["uid"]
    running = pod_object(0)
    running["metadata"]["ownerReferences"][0]["uid"] = uid
    world.store.put_pod(world.kube.put("pods", running))
    world.reconcile()
    assert (world.status["phase"], world.status["workload"]["uid"]) == ("Running", uid)
    fresh = World(job_object(dataset=rows), now)
    fresh.reconcile()
    assert fresh.status["workload"] == {
        "apiVersion": "example.com/v1", "kind": "Box", "name": "tune-dpo-0", "uid": "tune-dpo-0-uid",
    }  # fmt: skip
    assert ("create", "boxes") in fresh.kube.writes
    assert ("create", "pytorchjobs") not in fresh.kube.writes
