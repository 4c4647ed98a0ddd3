"""How a stored status is read, and who writes which part of it."""

from typing import Any

from shown import checkpoint

from trl_operator.api.status import JobStatus, workload
from trl_operator.api.stored import FIELDS, owned, read_status
from trl_operator.constants import MANAGER_PROGRESS, MANAGER_STATUS

CONDITION = {
    "type": "Running", "status": "True", "reason": "AllPodsRunning", "message": "m",
    "lastTransitionTime": "2026-11-21T12:00:00Z",
}  # fmt: skip


def test_each_field_is_written_by_one_manager() -> None:
    names = {str(field.alias) for field in JobStatus.model_fields.values()}
    operators, receivers = set(FIELDS[MANAGER_STATUS]), set(FIELDS[MANAGER_PROGRESS])
    assert not operators & receivers
    assert names - operators - receivers == {"effective", "pytorchJob", "warnings"}
    assert receivers == {"progress", "checkpoints", "resumedFromStep", "usage", "evaluation", "rewards"}
    status = {"attempt": 1, "progress": {}, "effective": {"worldSize": 2, "totalSteps": 9}}
    assert owned(status, MANAGER_STATUS) == {"attempt": 1, "effective": {"worldSize": 2}}
    assert owned(status, MANAGER_PROGRESS) == {"progress": {}, "effective": {"totalSteps": 9}}


def test_what_another_version_has_written_disturbs_nothing_else() -> None:
    newer: dict[str, Any] = {
        "phase": "Rehearsing",
        "attempt": 2,
        "surprise": {"a": 1},
        "retry": {"counted": 1, "surprise": 2},
        "conditions": [CONDITION, {**CONDITION, "type": "Fresh", "status": "Perhaps"}],
        "checkpoints": [checkpoint(20), {"step": "forty"}, checkpoint(60)],
        "progress": {"attempt": "two"},
        "startTime": "2026-11-21T11:00:00Z",
    }
    found = read_status(newer)
    assert (found.attempt, found.start_time, found.phase) == (2, "2026-11-21T11:00:00Z", None)
    assert found.retry is not None
    assert found.retry.counted == 1
    assert [c.type for c in found.conditions] == ["Running"]
    assert [saved.step for saved in found.checkpoints] == [20, 60]
    assert found.progress is None
    assert newer["phase"] == "Rehearsing", "what was given stays as it is"


def test_only_the_attempts_own_workload_is_taken_from_an_older_status() -> None:
    old = {"attempt": 1, "pytorchJob": {"name": "tune-dpo-1", "uid": "u"}}
    assert workload(old) == {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "tune-dpo-1", "uid": "u"}
    assert workload({**old, "attempt": 2}) == {}, "somebody keeps what an earlier attempt has left"
    new = {"apiVersion": "example.com/v1", "kind": "Box", "name": "tune-dpo-1", "uid": "v"}
    assert workload({**old, "workload": new}) == new
