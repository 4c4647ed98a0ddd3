"""Reports become status: short, finite, bounded, and nothing is forgotten that the new report does not say."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_contract.report import Progress, ProgressReport
from trl_operator.status.progress import decimal, duration, from_stock, is_newer, progress_fields

TIME = "2026-11-21T12:00:00.000000Z"


def progress(**fields: Any) -> Progress:
    return Progress.model_validate({"lastUpdateTime": TIME, **fields})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (725, "12m5s"), (3600, "1h"), (4859, "1h20m"), (90000, "1d1h")],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: int, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456789, "0.123457"), ("1e-06", "1e-06"), ("3", "3"), (None, None), ("NaN", None), ("inf", None),
        ("-Infinity", None), ("1e400", None), ("x", None), ("", None),
    ],
)  # fmt: skip
def test_a_number_is_a_short_decimal_or_nothing(value: float | str | None, text: str | None) -> None:
    assert decimal(value) == text


def test_a_step_is_shown_of_all_steps_with_the_time_that_is_left() -> None:
    metrics = [{"name": "loss", "value": "0.25"}, {"name": "learning_rate", "value": "1e-06"}]
    report = progress(step=120, totalSteps=1000, etaSeconds=4800, metrics=metrics, activity="training", epoch=0.5)
    found = progress_fields(report, None, {})["progress"]
    assert (found["display"], found["eta"], found["percentage"]) == ("120/1000", "1h20m", 12)
    assert (found["loss"], found["learningRate"], found["epoch"]) == ("0.25", "1e-06", "0.5")
    assert "gradNorm" not in found


def test_all_steps_done_is_not_yet_done() -> None:
    assert progress_fields(progress(step=40, totalSteps=40), None, {})["progress"]["percentage"] == 99
    done = progress_fields(progress(step=40, totalSteps=40, etaSeconds=3), 100, {})["progress"]
    assert done["percentage"] == 100
    assert "eta" not in done


def test_what_a_report_does_not_say_is_kept() -> None:
    checkpoints = [{"step": 10, "path": "u/checkpoint-10", "time": TIME}]
    before = [{"name": "accuracy", "value": "0.1"}]
    current = progress_fields(
        progress(checkpoints=checkpoints, evaluation={"before": before}, resumedFromStep=5, trainableParameters=9),
        None,
        {},
    )
    after = [{"name": "accuracy", "value": "0.97"}]
    fields = progress_fields(progress(step=20, evaluation={"after": after}), None, current)
    assert fields["checkpoints"] == checkpoints
    assert fields["evaluation"] == {"before": before, "after": after}
    assert fields["resumedFromStep"] == 5
    assert fields["effective"]["trainableParameters"] == 9
    fresh = progress_fields(progress(attempt=1), None, {**current, "progress": {"attempt": 0}})
    assert "resumedFromStep" not in fresh
    assert fresh["checkpoints"] == checkpoints


def test_only_a_later_attempt_or_step_or_time_is_newer() -> None:
    known = {"progress": {"attempt": 1, "step": 10, "lastUpdateTime": TIME}}
    later = "2026-11-21T12:00:01.000000Z"
    assert is_newer(progress(), {})
    assert is_newer(progress(attempt=2), known)
    assert is_newer(progress(attempt=1, step=11), known)
    assert is_newer(progress(attempt=1, step=10, lastUpdateTime=later), known)
    assert not is_newer(progress(attempt=1, step=10), known)
    assert not is_newer(progress(attempt=1, step=9, lastUpdateTime=later), known)
    assert not is_newer(progress(attempt=0, step=99, lastUpdateTime=later), known)


def test_a_stock_report_carries_its_steps_as_metrics() -> None:
    metrics = {"current_step": "5", "total_steps": "20", "current_epoch": "0.25", "loss": "nan", "odd": "x"}
    status = {
        "lastUpdatedTime": TIME,
        "estimatedRemainingSeconds": 30,
        "metrics": [{"name": name, "value": value} for name, value in metrics.items()],
    }
    found = from_stock(ProgressReport.model_validate({"trainerStatus": status}), attempt=3)
    assert (found.attempt, found.step, found.total_steps, found.epoch, found.eta_seconds) == (3, 5, 20, 0.25, 30)
    names = [metric["name"] for metric in progress_fields(found, 25, {})["progress"]["metrics"]]
    assert names == ["current_step", "total_steps", "current_epoch"]


texts = st.text(max_size=64)
numbers = st.one_of(st.floats().map(str), st.integers().map(str), texts).filter(lambda text: len(text) <= 64)


@given(
    st.lists(st.fixed_dictionaries({"name": texts.filter(bool), "value": numbers}), max_size=64),
    st.one_of(st.none(), st.floats()),
    st.lists(st.text(max_size=300), max_size=8),
)
def test_whatever_is_reported_the_status_is_finite_printable_and_small(
    metrics: list[dict[str, str]], epoch: float | None, warnings: list[str]
) -> None:
    fields = progress_fields(progress(metrics=metrics, epoch=epoch, warnings=warnings), None, {})
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    assert "NaN" not in json.dumps(fields["progress"].get("epoch", ""))
    assert len(text) < 8 * 1024
    found = fields["progress"].get("metrics", [])
    assert len(found) <= 24
    assert len({metric["name"] for metric in found}) == len(found)
    assert all(metric["name"].isprintable() for metric in found)
