"""What a job should be warned of is said once, by whoever knows it, and stays."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from shown import checkpoint

from trl_contract import cautions
from trl_contract.report import Progress
from trl_contract.spec import SPECS
from trl_operator.api.job import Job
from trl_operator.api.reported import WarningStatus
from trl_operator.api.stored import owned, read_status, written
from trl_operator.constants import MANAGER_PROGRESS, MANAGER_STATUS
from trl_operator.plan.view import View
from trl_operator.status.events import events, reported
from trl_operator.status.lifecycle import decide
from trl_operator.status.progress import progress_fields

Make = Callable[..., Job]
COLLAPSE = {"reason": "LossCollapse", "message": "for 20 steps", "hint": "Train less."}
SHORT = [{"name": "short", "length": {"target": 5}}]
SMALL = {"perDeviceBatchSize": 1, "gradientAccumulationSteps": 1}


def test_the_page_and_the_api_name_every_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "warnings.md").read_text()
    named = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert named == cautions.REASONS | {"RewardCollapse", "LossCollapse", "UnstableLoss"}
    described = " ".join(str(WarningStatus.model_fields["reason"].description).split())
    assert all(reason in described for reason in named)


@pytest.mark.parametrize(
    ("kind", "spec", "told"),
    [
        *((kind, {}, []) for kind in SPECS),
        *((kind, {"peft": {"method": "none"}}, []) for kind in SPECS),
        *((kind, {"profile": profile}, []) for kind in SPECS for profile in ("conservative", "balanced", "aggressive")),
        ("SFTJob", {"training": {"learningRate": 2e-3}}, ["UnusualLearningRate"]),
        ("SFTJob", {"training": {"learningRate": 1e-3}}, []),
        ("SFTJob", {"training": {"learningRate": 1e-3}, "peft": {"method": "none"}}, ["UnusualLearningRate"]),
        ("RewardJob", {"training": {"learningRate": 1e-7}}, ["UnusualLearningRate"]),
        ("DPOJob", {"training": {"learningRate": 5e-7}, "peft": {"method": "none"}}, []),
        ("DPOJob", {"training": {"learningRate": 5e-7}}, ["UnusualLearningRate"]),
        ("GRPOJob", {"training": {"learningRate": 1e-3}}, ["UnusualLearningRate"]),
        ("SFTJob", {"training": SMALL}, ["SmallEffectiveBatch"]),
        ("SFTJob", {"training": SMALL, "numProcPerNode": 3}, ["SmallEffectiveBatch"]),
        ("SFTJob", {"training": SMALL, "numProcPerNode": 4}, []),
        (
            "GRPOJob",
            {"grpo": {"numGenerations": 3, "rewards": SHORT}, "training": {"perDeviceBatchSize": 3}},
            ["FewGenerations"],
        ),
        ("GRPOJob", {"profile": "smoke"}, []),
    ],
)
def test_what_is_odd_about_a_spec_is_told(make_job: Make, kind: str, spec: dict[str, Any], told: list[str]) -> None:
    job = make_job(kind, **spec)
    found = cautions.of(job.info.kind, job.training, job.cluster.world_size)
    assert [warning.reason for warning in found] == told
    assert set(told) <= cautions.REASONS
    for warning in found:
        assert (warning.message[-1] != ".", warning.hint[-1]) == (True, "."), "one follows the other"
        assert max(len(warning.message), len(warning.hint)) < 250, "it is cut at 300"


def test_the_words_name_the_field_its_value_and_what_to_do(make_job: Make) -> None:
    job = make_job("DPOJob", training={"learningRate": 1e-3, **SMALL})
    rate, small = cautions.of("DPOJob", job.training, 2)
    assert rate.message == (
        "training.learningRate is 0.001; a DPOJob with peft.method lora usually takes 1e-06 to 0.0001"
    )
    assert rate.hint == "Leave it out for 1e-05, or watch the first losses."
    assert small.message.startswith("an optimizer step sees 2 rows (training.perDeviceBatchSize x processes x")


def test_the_spec_is_warned_of_before_anything_starts_and_written_once(make_job: Make, now: datetime) -> None:
    job = make_job("SFTJob", training=SMALL)
    first = decide(job, {}, View(), now).status
    assert [warning["reason"] for warning in first["warnings"]] == ["SmallEffectiveBatch"]
    assert events({}, first)[0].reason == "SmallEffectiveBatch"
    again = decide(job, first, View(), now).status
    assert again["warnings"] == first["warnings"]
    assert "SmallEffectiveBatch" not in [event.reason for event in events(first, again)]


def test_each_manager_writes_its_own_warnings_and_keeps_the_others(make_job: Make, now: datetime) -> None:
    job = make_job("SFTJob", training=SMALL)
    small = decide(job, {}, View(), now).status["warnings"]
    stored = {"attempt": 0, "warnings": [COLLAPSE, *small]}
    assert owned(stored, MANAGER_STATUS)["warnings"] == small
    assert owned(stored, MANAGER_PROGRESS) == {"warnings": [COLLAPSE]}
    assert decide(job, stored, View(), now).status["warnings"] == small
    # Nothing has changed, so nothing is written.
    assert written(read_status({**stored, "phase": "Running"}))["warnings"] == small


def progress(**said: Any) -> Progress:
    return Progress.model_validate({"lastUpdateTime": "2026-11-21T12:00:00.000000Z", **said})


def test_what_metrics_warn_of_is_kept_in_the_words_in_which_it_was_told_first() -> None:
    before = {"warnings": [{**COLLAPSE, "reason": "SmallEffectiveBatch"}]}
    fields = progress_fields(progress(trainingWarnings=[COLLAPSE]), None, before)
    assert fields["warnings"] == [COLLAPSE]
    assert [(event.type, event.reason) for event in reported(before, fields)] == [("Warning", "LossCollapse")]
    # A later attempt says it of its own steps, says another one, or says nothing.
    stored = {**fields, "warnings": [*before["warnings"], *fields["warnings"]]}
    unstable = {**COLLAPSE, "reason": "UnstableLoss"}
    later = progress_fields(progress(trainingWarnings=[{**COLLAPSE, "message": "no"}, unstable]), None, stored)
    assert sorted(later["warnings"], key=lambda found: found["reason"]) == [COLLAPSE, unstable]
    assert progress_fields(progress(), None, stored)["warnings"] == [COLLAPSE]
    both = {**later, "checkpoints": [checkpoint(20)]}
    assert [event.reason for event in reported(stored, both)] == ["UnstableLoss", "FirstCheckpoint"]


def test_a_trainer_cannot_speak_for_the_operator_nor_without_end() -> None:
    odd = [{**COLLAPSE, "reason": reason} for reason in ("FewGenerations", "A", "B", "C", "D", "E")]
    fields = progress_fields(progress(trainingWarnings=odd), None, {})
    assert {found["reason"] for found in fields["warnings"]} == {"A", "B", "C"}
    full = progress_fields(progress(trainingWarnings=odd[1:5]), None, {})
    assert progress_fields(progress(trainingWarnings=odd[5:]), None, full)["warnings"] == full["warnings"], "it stays"
    control = progress_fields(progress(trainingWarnings=[{**COLLAPSE, "message": "a\x1b[2Jb"}]), None, {})
    assert control["warnings"][0]["message"] == "a[2Jb"
