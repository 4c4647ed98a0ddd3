"""The invariant checker is silent about good pictures, and speaks of each thing that is wrong in others."""

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest

from devcluster.invariants import ENDS, KINDS, REPORTED, RESOURCES, History, Obj, Picture, compare, look
from trl_operator import constants
from trl_operator.api.kinds import KINDS as REAL_KINDS
from trl_operator.api.stored import FIELDS

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
JOB = "job-uid"


def condition(kind: str, status: str, reason: str = "Because") -> Obj:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": "2026-11-26T11:00:00Z",
    }


def job(phase: str = "Running", attempt: int | None = 0, version: str = "1", **status: Any) -> Obj:
    told: Obj = {"phase": phase, "conditions": []}
    if attempt is not None:
        told |= {"attempt": attempt, "restarts": attempt}
    if phase in ("Starting", "Running"):
        told["workload"] = {"name": f"tune-dpo-{attempt}", "uid": f"pj-{attempt}"}
    if phase in ("Succeeded", "Failed", "Cancelled"):
        told |= {"completionTime": "2026-11-26T11:30:00Z"}
        told["conditions"] = [condition(kind, value) for kind, value in ENDS[phase].items()]
    if phase == "Failed":
        told["failure"] = {"reason": "Unknown", "message": "", "hint": ""}
    metadata = {"name": "tune", "namespace": "ml", "uid": JOB, "resourceVersion": version}
    return {"kind": "DPOJob", "metadata": metadata, "spec": {"numNodes": 1}, "status": told | status}


def child(kind: str, attempt: int = 0, owner: str | None = JOB, name: str = "", **status: Any) -> Obj:
    prefix = {"PyTorchJob": "pj", "TrainJob": "pj", "Pod": "pod"}.get(kind, kind)
    metadata: Obj = {
        "name": name or f"tune-dpo-{attempt}", "namespace": "ml",
        "uid": name or f"{prefix}-{attempt}", "resourceVersion": "1",
        "labels": {constants.LABEL_JOB_UID: owner or JOB, constants.LABEL_ATTEMPT: str(attempt)},
    }  # fmt: skip
    if owner and kind != "Pod":
        reference = {"apiVersion": constants.API_VERSION, "kind": "DPOJob", "name": "tune", "uid": owner}
        metadata["ownerReferences"] = [{**reference, "controller": True}]
    return {"kind": kind, "metadata": metadata, "status": status}


def pod(attempt: int = 0, phase: str = "Running") -> Obj:
    return child("Pod", attempt, phase=phase)


def running() -> list[Obj]:
    return [
        job(),
        child("PyTorchJob"),
        pod(),
        child("ConfigMap"),
        child("NetworkPolicy"),
        child("PersistentVolumeClaim"),
    ]


def deleting(obj: Obj, since: str = "2026-11-26T11:59:30Z") -> Obj:
    return {**obj, "metadata": {**obj["metadata"], "deletionTimestamp": since}}


def ended(workload: Obj, end: str) -> Obj:
    return {**workload, "status": {"conditions": [condition(end, "True")]}}


def said(*objects: Obj) -> set[str]:
    return {broken.invariant for broken in look(Picture(objects), NOW)}


def test_it_names_things_as_the_operator_does() -> None:
    assert set(KINDS) == set(REAL_KINDS)
    plurals = {f"{info.plural}.{constants.GROUP}" for info in REAL_KINDS.values()}
    assert plurals == {name for name in RESOURCES if name.endswith(constants.GROUP)}
    assert {"phase", "attempt", "restarts", "workload", "completionTime", "failure"} <= set(
        FIELDS[constants.MANAGER_STATUS]
    )
    assert set(REPORTED) == set(FIELDS[constants.MANAGER_PROGRESS])


@pytest.mark.parametrize(
    "objects",
    [
        running(),
        [job("Pending", None)],
        [job("Starting"), child("PyTorchJob"), pod(phase="Pending")],
        # Between two attempts: the pods of the first stay for their logs.
        [job("Restarting", 1), ended(child("PyTorchJob"), "Failed"), pod(phase="Failed"), child("ConfigMap")],
        [job("Running", 1), ended(child("PyTorchJob"), "Failed"), pod(phase="Failed"), child("PyTorchJob", 1), pod(1)],
        [job("Succeeded"), ended(child("PyTorchJob"), "Succeeded"), pod(phase="Succeeded")],
        [job("Failed"), ended(child("PyTorchJob"), "Failed")],
        [job(), child("TrainJob"), child("TrainingRuntime"), pod()],
        [job("Running", 2), child("TrainJob", 2), *(child("TrainingRuntime", each) for each in (1, 2)), pod(2)],
        [job("Succeeded"), ended(child("TrainJob"), "Complete"), pod(phase="Succeeded")],
        [job("Cancelled")],
        [job("Suspended", 1), deleting(child("PyTorchJob"))],
        # The pod of a lost node, and a retained claim.
        [job("Running", 1), deleting(pod(), "2026-11-26T11:58:00Z"), child("PyTorchJob", 1), pod(1)],
        [child("PersistentVolumeClaim", owner=None)],
        [deleting(child("ConfigMap"))],
        [{"kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt", "namespace": "ml", "uid": "other"}}],
    ],
)  # fmt: skip
def test_it_is_silent_about_what_is_right(objects: list[Obj]) -> None:
    assert look(Picture(objects), NOW) == []


@pytest.mark.parametrize(
    ("invariant", "objects"),
    [
        ("one live attempt", [*running(), child("PyTorchJob", 0, name="tune-dpo-0b")]),
        ("one live attempt", [job("Running", 1), child("PyTorchJob"), child("PyTorchJob", 1), pod(1)]),
        ("one live attempt", [job("Running", 1), pod(), child("PyTorchJob", 1), pod(1)]),
        ("one live attempt", [job("Running", 1), deleting(pod()), child("PyTorchJob", 1), pod(1)]),
        ("no orphans", [child("ConfigMap", owner="gone")]),
        ("no orphans", [child("NetworkPolicy", owner="gone")]),
        ("no orphans", [child("PyTorchJob", owner="gone")]),
        ("no orphans", [child("PersistentVolumeClaim", owner="gone")]),
        ("no orphans", [child("TrainingRuntime", owner="gone")]),
        ("no orphans", [child("TrainJob", owner="gone")]),
        ("no orphans", [job("Running", 2), child("TrainJob", 2), child("TrainingRuntime"), pod(2)]),
        ("one live attempt", [job("Running", 1), child("TrainJob"), child("PyTorchJob", 1), pod(1)]),
        ("no orphans", [job("Pending"), child("ConfigMap", owner=None)]),
        ("attempts without gaps", [*running(), child("ConfigMap", 1)]),
        ("attempts without gaps", [job(), child("TrainJob"), child("TrainingRuntime", 1), pod()]),
        ("attempts without gaps", [*running(), ended(child("PyTorchJob", 2), "Failed")]),
        ("attempts without gaps", [job("Restarting", None), child("PyTorchJob")]),
        ("attempts without gaps", [job("Restarting", 1, restarts=2)]),
        ("an end is told alike", [job("Failed", conditions=[condition("Succeeded", "True")])]),
        ("an end is told alike", [job("Succeeded", conditions=[])]),
        ("an end is told alike", [job("Cancelled", conditions=[condition("Succeeded", "False")])]),
        ("an end is told alike", [job("Running", conditions=[condition("Finished", "True")]), *running()[1:]]),
        ("an end is told alike", [job("Restarting", completionTime="2026-11-26T11:30:00Z")]),
        ("an end is told alike", [job("Restarting", conditions=[condition("Succeeded", "False")])]),
        ("an end is told alike", [job("Restarting", failure={"reason": "Unknown"})]),
        ("an end leaves nothing alive", [job("Cancelled"), child("PyTorchJob")]),
        ("status agrees with children", [job("Running"), pod()]),
        ("status agrees with children", [job("Starting"), ended(child("PyTorchJob", name="another"), "Failed")]),
        ("status agrees with children", [job("Running"), child("PyTorchJob"), pod(phase="Pending")]),
        ("status agrees with children", [job(workload={"name": "x", "uid": "x"}), child("PyTorchJob"), pod()]),
        ("status agrees with children", [job("Suspended", 0), child("PyTorchJob")]),
        ("status agrees with children", [job("Blocked", 1), pod()]),
    ],
)  # fmt: skip
def test_it_speaks_of_what_is_wrong(invariant: str, objects: list[Obj]) -> None:
    assert said(*objects) == {invariant}


def between(old: Obj, new: Obj, *, quiet: bool = False) -> set[str]:
    found = compare(Picture([old]), Picture([new]), quiet=quiet)
    return {broken.invariant for broken in found}


def test_two_pictures_show_what_changed_that_must_not() -> None:
    end = job("Succeeded")
    assert between(end, end) == set()
    assert between(end, job("Succeeded", version="2", progress={"step": 4})) == set()
    assert between(job(), job("Succeeded", version="2")) == set()
    assert between(end, job("Succeeded", version="2", observedGeneration=2)) == set()
    assert between(end, job("Running", version="2")) == {"terminal is terminal"}
    assert between(end, job("Succeeded", version="2", restarts=3)) == {"terminal is terminal"}
    assert between(job(attempt=1), job("Restarting", 0, version="2")) == {"attempts without gaps"}


def test_two_pictures_show_writes_that_changed_nothing() -> None:
    old, new = job(), job(version="2")
    assert between(old, new) == {"no write without a change"}
    new["metadata"]["managedFields"] = [{"time": "2026-11-26T11:59:00Z"}]
    old["status"]["conditions"] = [condition("Running", "True")]
    new["status"]["conditions"] = [{**condition("Running", "True"), "lastTransitionTime": "2026-11-26T11:59:00Z"}]
    assert between(old, new) == {"no write without a change"}
    new["status"]["progress"] = {"step": 5}
    assert between(old, new) == set()
    assert between(old, new, quiet=True) == {"no write without a change"}
    rows = child("ConfigMap")
    again = deepcopy(rows)
    again["metadata"]["resourceVersion"] = "2"
    assert between(rows, again) == {"no write without a change"}


def told(*events: tuple[bool, Obj]) -> set[str]:
    history = History()
    for gone, obj in events:
        history.event(gone, obj)
    return {broken.invariant for broken in history.broken}


def test_a_history_of_two_attempts_is_right() -> None:
    first = child("PyTorchJob")
    assert (
        told(
            (False, job("Pending", None)),
            (False, job("Starting", 0)),
            (False, first),
            (False, pod()),
            (False, job("Running", 0)),
            (False, pod(phase="Failed")),
            (False, ended(first, "Failed")),
            (False, job("Restarting", 1)),
            (False, child("PyTorchJob", 1)),
            (True, ended(first, "Failed")),
            (False, job("Succeeded", 1)),
        )
        == set()
    )


@pytest.mark.parametrize(
    ("invariant", "events"),
    [
        # A second incarnation of an attempt, though the first is gone by then.
        ("one workload per attempt", [(False, child("PyTorchJob")), (True, child("PyTorchJob")),
                                      (False, child("PyTorchJob", 0, name="again"))]),
        ("one workload per attempt", [(False, ended(child("PyTorchJob", 1), "Failed"))]),
        ("one live attempt", [(False, child("PyTorchJob")), (False, child("PyTorchJob", 1))]),
        ("one live attempt", [(False, pod()), (False, child("PyTorchJob", 0)), (True, child("PyTorchJob", 0)),
                              (False, child("PyTorchJob", 1))]),
        ("attempts without gaps", [(False, job("Starting", 0)), (False, job("Starting", 2))]),
        ("attempts without gaps", [(False, job("Starting", 1))]),
        ("attempts without gaps", [(False, job("Starting", each)) for each in (0, 1, 0)]),
        ("terminal is terminal", [(False, job(each)) for each in ("Starting", "Failed", "Running")]),
    ],
)  # fmt: skip
def test_a_history_shows_what_was_wrong_for_a_moment_only(invariant: str, events: list[tuple[bool, Obj]]) -> None:
    assert told(*events) == {invariant}
