"""The small parts of the operator: acceptance, store, settings, metrics, events, health."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import pytest
from pydantic import ValidationError
from shown import checkpoint

from trl_operator.handlers import Backoffs
from trl_operator.health import Health
from trl_operator.plan.acceptance import check_reference, check_spec, references
from trl_operator.plan.retained import check_retained, reused
from trl_operator.render.run import pin
from trl_operator.settings import ReceiverSettings, Settings, from_environment
from trl_operator.status.events import events, reported

Make = Callable[..., Any]
WORKLOAD = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "x", "uid": "u"}

ENVIRONMENT = {
    "TRL_OPERATOR_NAMESPACE": "trl",
    "TRL_OPERATOR_IDENTITY": "pod-1",
    "TRL_OPERATOR_TRAINER_IMAGE": "trainer:1",
    "TRL_OPERATOR_RECEIVER_URL": "https://op.trl.svc:10443",
    "PATH": "/bin",
}

# -- acceptance


def test_every_object_that_a_spec_names_is_checked(make_job: Make) -> None:
    volume = {"volume": {"claimName": "data", "path": "x.jsonl"}}
    reference = {"mode": "explicit", "source": {"volume": {"claimName": "refs", "path": "m"}}}
    job = make_job(
        dataset={"train": volume, "eval": volume}, dpo={"referenceModel": reference}, storage={"claimName": "s"}
    )
    assert [(found.field, found.name) for found in references(job)] == [
        ("dataset.train.volume", "data"),
        ("dataset.eval.volume", "data"),
        ("dpo.referenceModel.source.volume", "refs"),
        ("storage.claimName", "s"),
    ]
    mixed = make_job(dataset={"mixture": [volume, {"configMap": {"name": "rows", "key": "a.jsonl"}}]})
    assert [(found.field, found.name) for found in references(mixed)] == [
        ("dataset.mixture[0].volume", "data"),
        ("dataset.mixture[1].configMap", "rows"),
    ]
    rewards = [{"name": "c", "python": {"configMap": {"name": "r", "key": "k.py"}, "function": "f"}}]
    grpo = make_job("GRPOJob", grpo={"rewards": rewards})
    assert [found.field for found in references(grpo)] == [
        "dataset.train.configMap",
        "grpo.rewards[0].python.configMap",
    ]


def test_a_config_map_must_have_the_key(make_job: Make) -> None:
    [reference] = references(make_job())
    assert check_reference(reference, None, 1).reason == "ConfigMapNotFound"
    assert check_reference(reference, {"metadata": {}, "data": {"a": ""}}, 1).reason == "ConfigMapKeyNotFound"
    assert check_reference(reference, {"metadata": {}, "data": {"train.jsonl": ""}}, 1) is None
    assert check_reference(reference, {"metadata": {}, "binaryData": {"train.jsonl": ""}}, 1) is None


@pytest.mark.parametrize(
    ("field", "modes", "nodes", "reason"),
    [
        ("storage", ["ReadWriteOnce"], 1, None),
        ("storage", ["ReadWriteOnce"], 2, "AccessModeNotShared"),
        ("storage", ["ReadOnlyMany"], 2, "AccessModeNotShared"),
        ("storage", ["ReadWriteOnce", "ReadWriteMany"], 2, None),
        ("model", ["ReadOnlyMany"], 2, None),
        ("model", ["ReadWriteOnce"], 2, "AccessModeNotShared"),
    ],
)
def test_several_nodes_need_a_claim_that_they_can_share(
    make_job: Make, field: str, modes: list[str], nodes: int, reason: str | None
) -> None:
    source = (
        {"model": {"volume": {"claimName": "c", "path": "m"}}} if field == "model" else {"storage": {"claimName": "c"}}
    )
    [reference] = [found for found in references(make_job(**source)) if found.name == "c"]
    blocker = check_reference(reference, {"metadata": {}, "spec": {"accessModes": modes}}, nodes)
    assert (blocker and blocker.reason) == reason


RETAINED = {
    "metadata": {"name": "tune-dpo", "labels": {"trl-operator.io/job-uid": "an earlier one"}},
    "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {"storage": "10Gi"}}
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("storage", "nodes", "message"),
    [
        ({"size": "10Gi"}, 1, ""),
        ({"size": "10000Mi", "storageClassName": "fast", "retain": True}, 1, ""),
        ({"size": "0.01T"}, 1, ""),
        ({"size": 10 * 2**30}, 1, ""),
        ({"size": "11Gi"}, 1, "storage.size is 11Gi, but PersistentVolumeClaim tune-dpo of an earlier job has 10Gi"),
        ({"size": "10.5Gi"}, 1, "storage.size is 10.5Gi"),
        ({"size": 10 * 2**30 + 1}, 1, "storage.size is 10737418241"),
        ({"size": "1Gi", "storageClassName": "slow"}, 1, "storage.storageClassName is slow"),
        ({"size": "1Gi", "retain": False}, 1, "storage.retain is false"),
        ({"size": "1Gi", "accessModes": ["ReadWriteMany"]}, 2, "access modes ReadWriteOnce, but numNodes is 2"),
        ({"size": "1Gi", "accessModes": ["ReadWriteMany"]}, 1, "storage.accessModes is ReadWriteMany, but Persistent"),
        ({"size": "1Gi", "accessModes": ["ReadWriteOnce"], "reuse": "ifFits"}, 1, ""),
        ({"size": "11Gi", "storageClassName": "slow", "retain": False, "reuse": "always"}, 1, ""),
        ({"size": "1Gi", "accessModes": ["ReadWriteMany"], "reuse": "always"}, 2, "but numNodes is 2"),
        (
            {"size": "1Gi", "reuse": "never"},
            1,
            "storage.reuse is never, but PersistentVolumeClaim tune-dpo of an earlier job is there, with size 10Gi,"
            " class fast, access modes ReadWriteOnce",
        ),
    ],
)
def test_a_claim_that_an_earlier_job_has_left_must_fit_too(
    make_job: Make, storage: Any, nodes: int, message: str
) -> None:
    blocker = check_retained(RETAINED, make_job(storage=storage, numNodes=nodes))
    assert (blocker is None) == (not message)
    if blocker:
        assert message in blocker.message
        assert "delete the claim, or rename the job" in blocker.message


def test_what_defaults_say_of_new_claims_is_not_asked_of_one_that_is_there(make_job: Make) -> None:
    written = make_job(storage={"size": "1Gi"})
    storage = {"size": "1Gi", "storageClassName": "slow", "accessModes": ["ReadWriteMany"], "retain": False}
    filled = make_job(storage=storage)
    assert check_retained(RETAINED, replace(filled, own=written.cluster)) is None
    assert check_retained(RETAINED, filled) is not None, "it would be asked of the job itself"


def test_a_claim_for_many_nodes_fits_one(make_job: Make) -> None:
    shared = {**RETAINED, "spec": {**RETAINED["spec"], "accessModes": ["ReadWriteMany"]}}
    assert check_retained(shared, make_job(storage={"size": "1Gi", "accessModes": ["ReadWriteOnce"]})) is None
    alone = make_job(storage={"size": "1Gi", "accessModes": ["ReadWriteOncePod"]})
    assert check_retained(shared, alone).reason == "RetainedClaimDiffers"


def test_a_claim_that_is_used_again_is_told_with_its_numbers(make_job: Make) -> None:
    job = make_job(storage={"size": "5Gi"})
    said = reused(RETAINED, job)
    for part in (
        "tune-dpo that an earlier job has left",
        "size 10Gi, class fast, access modes ReadWriteOnce",
        "is 5Gi",
    ):
        assert part in said
    own = {**RETAINED, "metadata": {"name": "tune-dpo", "labels": {"trl-operator.io/job-uid": job.uid}}}
    assert reused(own, job) == reused(None, job) == reused(RETAINED, make_job(storage={"claimName": "tune-dpo"})) == ""


def test_rows_in_the_spec_are_counted_in_bytes(make_job: Make) -> None:
    rows = [{"prompt": "é" * 1000}]
    assert check_spec(make_job(dataset={"train": {"inline": rows * 64}})) is None
    assert check_spec(make_job(dataset={"train": {"inline": rows * 66}})).reason == "InlineTooLarge"


def test_what_is_accepted_fits_into_a_config_map_whatever_its_shape(make_job: Make) -> None:
    full = [{"prompt": [[[1]]] * 400, "chosen": "c", "rejected": "r"}] * 35
    dataset = {"train": {"inline": full}, "eval": {"inline": full}}

    def rewards(text: str) -> dict[str, Any]:
        schema = json.dumps({"type": "string", "description": text}, ensure_ascii=False)
        return {"rewards": [{"name": f"r{number}", "jsonSchema": {"schema": schema}} for number in range(16)]}

    taken = make_job("GRPOJob", dataset=dataset, grpo=rewards('"' * 8000))
    assert check_spec(taken) is None
    manifest = pin(taken, {}, "trainer:1").manifest
    assert manifest is not None
    assert 900_000 < sum(len(text.encode()) for text in manifest["data"].values()) < 2**20
    blocker = check_spec(make_job("GRPOJob", grpo=rewards("\N{GRINNING FACE}" * 16000)))
    assert blocker is not None
    assert (blocker.reason, blocker.polled) == ("SpecTooLarge", False)
    assert "at most 983040: shorten its texts" in blocker.message


# -- settings, metrics, events


def test_settings_come_from_the_environment() -> None:
    settings = from_environment(
        Settings, {**ENVIRONMENT, "TRL_OPERATOR_WATCH_NAMESPACES": "a,b", "TRL_OPERATOR_WORKERS": "3"}
    )
    assert (settings.namespaces, settings.workers, settings.identity) == (["a", "b"], 3, "pod-1")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"TRL_OPERATOR_IDENTITY": None}, "identity"),
        ({"TRL_OPERATOR_WORKERS": "many"}, "workers"),
        ({"TRL_OPERATOR_RECEIVER_URL": "http://op"}, "receiver_url"),
        ({"TRL_OPERATOR_WROKERS": "3"}, "wrokers"),
    ],
)
def test_a_missing_wrong_or_unknown_setting_is_named(change: dict[str, str | None], names: str) -> None:
    environment = {name: value for name, value in {**ENVIRONMENT, **change}.items() if value is not None}
    with pytest.raises(ValidationError, match=names):
        from_environment(Settings, environment)


def test_the_receiver_needs_no_setting_and_takes_none_of_the_controllers() -> None:
    assert from_environment(ReceiverSettings, {}).writes_per_second == 25
    for name, value in {"LEASE_NAME": "x", "WRITES_PER_SECOND": "0"}.items():
        with pytest.raises(ValidationError, match=name.lower()):
            from_environment(ReceiverSettings, {f"TRL_OPERATOR_{name}": value})


def test_each_transition_is_told_once() -> None:
    def status(*conditions: tuple[str, str, str], **fields: Any) -> dict[str, Any]:
        found = [
            {"type": t, "status": s, "reason": r, "message": "m", "lastTransitionTime": "2026-11-21T12:00:00Z"}
            for t, s, r in conditions
        ]
        return {"conditions": found, **fields}

    accepted = ("Accepted", "True", "Accepted")
    refused = status(("Accepted", "False", "ConfigMapNotFound"))
    started = status(accepted, ("Running", "False", "Starting"), attempt=0, workload=WORKLOAD)
    runs = status(
        accepted,
        ("Running", "True", "AllPodsRunning"),
        attempt=0,
        workload=WORKLOAD,
    )
    again = status(accepted, ("Running", "False", "PeerLost"), attempt=1, restarts=1)
    ended = status(
        accepted, ("Succeeded", "True", "Succeeded"), ("Finished", "True", "Succeeded"), completionTime="t",
        restarts=1, attempt=1,
    )  # fmt: skip
    story = [{}, refused, refused, started, runs, runs, again, ended, ended]
    told = [[event.reason for event in events(a, b)] for a, b in pairwise(story)]
    assert told == [
        ["ConfigMapNotFound"],
        [],
        ["Accepted", "AttemptStarted"],
        ["Running"],
        [],
        ["AttemptFailed"],
        ["Succeeded"],
        [],
    ]
    failed = status(("Failed", "True", "StorageFull"), ("Finished", "True", "StorageFull"), completionTime="t")
    [event] = events(runs, failed)
    assert (event.type, event.reason, event.message) == ("Warning", "Failed", "StorageFull: m")
    cancelled = status(("Failed", "False", "Cancelled"), ("Finished", "True", "Cancelled"), completionTime="t")
    [event] = events(runs, cancelled)
    assert (event.type, event.reason) == ("Normal", "Cancelled")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, ("Queued", "True", "QuotaReserved"), ["Normal QuotaReserved"]),
        (("Queued", "True", "Pending"), ("Queued", "True", "Pending"), []),
        (("Queued", "True", "Pending"), ("Queued", "False", "Admitted"), ["Normal Admitted"]),
        ({}, ("Queued", "False", "Admitted"), []),
        (("UpstreamReady", "False", "NotFound"), ("UpstreamReady", "True", "Succeeded"), ["Normal UpstreamReady"]),
        (("Accepted", "Unknown", "Newer"), ("Accepted", "False", "NameConflict"), ["Warning NameConflict"]),
        ({}, ("Suspended", "True", "Suspended"), ["Normal Suspended"]),
        (("Suspended", "True", "Suspended"), ("Suspended", "False", "Resumed"), ["Normal Resumed"]),
        ({}, ("Stalled", "Unknown", "NoReports"), ["Warning NoReports"]),
        (("Stalled", "Unknown", "NoReports"), ("Stalled", "False", "Reporting"), ["Normal Reporting"]),
        ({}, ("Stalled", "True", "StorageFull"), []),
    ],
)  # fmt: skip
def test_what_a_job_waits_for_is_told_when_it_comes_and_when_it_goes(before: Any, after: Any, told: list[str]) -> None:
    def status(condition: Any) -> dict[str, Any]:
        if not condition:
            return {}
        fields = dict(zip(("type", "status", "reason"), condition, strict=True))
        return {"conditions": [{**fields, "message": "m", "lastTransitionTime": "2026-11-21T12:00:00Z"}]}

    assert [f"{event.type} {event.reason}" for event in events(status(before), status(after))] == told


def test_the_first_checkpoint_and_the_last_one_are_told_and_what_a_restart_starts_from() -> None:
    saved = [checkpoint(5), checkpoint(10)]
    [first] = reported({}, {"checkpoints": saved[:1]})
    assert (first.type, first.reason) == ("Normal", "FirstCheckpoint")
    assert first.message == "the checkpoint of step 5 is in u/checkpoint-5"
    assert reported({"checkpoints": saved[:1]}, {"checkpoints": saved}) == reported({}, {"progress": {}}) == []
    base = {"lastTransitionTime": "2026-11-21T12:00:00Z", "message": "attempt 0 failed: m"}
    restarts = {"conditions": [{"type": "Running", "status": "False", "reason": "NodeLost", **base}], "restarts": 1}
    for known, start in ((saved, "the checkpoint of step 10"), ([], "the start")):
        [failed] = events({"checkpoints": known}, {**restarts, "attempt": 1})
        assert failed.message == f"NodeLost: attempt 0 failed: m; attempt 1 follows, from {start}"
    ends = [{"type": kind, "status": "True", "reason": "Succeeded", **base} for kind in ("Succeeded", "Finished")]
    ended = {"conditions": ends, "completionTime": "2026-11-21T12:00:00Z"}
    assert [event.reason for event in events({"checkpoints": saved}, ended)] == ["LastCheckpoint", "Succeeded"]
    assert "step 10 is in u/checkpoint-10" in events({"checkpoints": saved}, ended)[0].message


def test_a_watch_is_tried_again_without_end_and_at_least_every_ten_seconds() -> None:
    for _ in range(2):
        pauses = list(islice(Backoffs(), 100))
        assert pauses[:5] == [1, 2, 4, 8, 10]
        assert max(pauses) == 10


# -- health


def test_a_process_that_is_stuck_is_not_healthy() -> None:
    async def main() -> None:
        ages = {"queue": 0.0, "relist": 0.0}
        health = Health(lambda: ages["relist"], 600, lambda: ages["queue"])
        beat = asyncio.create_task(health.beat())
        await asyncio.sleep(0)
        assert health.problems() == []
        ages.update(queue=301, relist=1801)
        assert len(health.problems()) == 2
        beat.cancel()
        health._beat -= 20
        assert any("lags" in problem for problem in health.problems())

    asyncio.run(main())
