"""Reports become status: short, finite, bounded, and nothing is forgotten that the new report does not say."""

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trl_contract.report import ExitRecord, Progress, ProgressReport
from trl_operator.status.progress import (
    decimal,
    duration,
    from_stock,
    has_valid_times,
    is_newer,
    last_words,
    not_later_than,
    progress_fields,
    without_eta,
)

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
        (0.123456789, "0.123457"), (12345.6, "12345.6"), (-0.69314, "-0.69314"), (1000, "1000"),
        ("1e-06", "1e-06"), ("3", "3"), (None, None), ("NaN", None), ("inf", None),
        ("-Infinity", None), ("1e400", None), ("x", None), ("", None),
    ],
)  # fmt: skip
def test_a_number_is_a_decimal_of_six_digits_or_nothing(value: float | str | None, text: str | None) -> None:
    assert decimal(value) == text


def test_numbers_are_short_where_people_look_and_exact_where_programs_compare() -> None:
    metrics = [{"name": "loss", "value": "0.65625"}, {"name": "learning_rate", "value": "1.23456e-05"}]
    metrics += [{"name": "grad_norm", "value": "12345.6"}, {"name": "reward", "value": "0.123456"}]
    saved = [{"step": 5, "path": "c", "time": TIME, "metrics": [{"name": "eval_loss", "value": "0.59996"}]}]
    before, after = ([{"name": "accuracy", "value": value}] for value in ("0.59996", "0.65625"))
    said = {"metrics": metrics, "checkpoints": saved, "evaluation": {"before": before, "after": after}}
    found = progress_fields(progress(tokensPerSecond=1234.56, gpus=1, elapsedSeconds=1000, **said), None, {})
    assert found["progress"]["metrics"] == [*metrics[:3], metrics[3] | {"display": "0.1235"}], (
        "as kubectl get prints it"
    )
    assert found["checkpoints"] == saved
    assert (found["evaluation"]["before"], found["evaluation"]["after"]) == (before, after)
    assert found["evaluation"]["display"] == "accuracy 0.6 → 0.6562"
    names = ("loss", "learningRate", "gradNorm", "tokensPerSecond")
    assert [found["progress"][name] for name in names] == ["0.6562", "1.235e-05", "12346", "1235"]
    assert found["usage"]["gpuHours"] == "0.2778"


def test_a_step_is_shown_of_all_steps_with_the_time_that_is_left() -> None:
    metrics = [{"name": "loss", "value": "0.25"}, {"name": "learning_rate", "value": "1e-06"}]
    report = progress(step=120, totalSteps=1000, etaSeconds=4800, metrics=metrics, activity="training", epoch=0.5)
    found = progress_fields(report, None, {})["progress"]
    assert (found["display"], found["eta"], found["percentage"]) == ("120/1000", "1h20m", 12)
    assert (found["loss"], found["learningRate"], found["epoch"]) == ("0.25", "1e-06", "0.5")
    assert "gradNorm" not in found


def test_what_is_done_before_the_first_step_is_shown_with_its_share() -> None:
    found = progress_fields(progress(activity="tokenizing", activityPercentage=40), None, {})["progress"]
    assert (found["activity"], found["display"], found["percentage"]) == ("tokenizing", "tokenizing 40 %", 0)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"activity": "loading"}, "loading"),
        ({"activity": "saving", "step": 60, "totalSteps": 100}, "60/100 saving"),
        ({"activity": "evaluating", "totalSteps": 100}, "0/100 evaluating"),
        ({"activity": "training", "step": 60, "totalSteps": 100}, "60/100"),
        ({"activity": "training", "step": 60}, "60"),
    ],
)
def test_what_is_done_beside_training_is_shown(said: dict[str, Any], shown: str) -> None:
    told = progress_fields(progress(**said), None, {})
    assert told["progress"]["display"] == shown
    if "totalSteps" in said:
        steps = f"{said.get('step', 0)}/100"
        done = progress_fields(progress(**said), 100, {})["progress"]
        assert done["display"] == steps, "nothing is done any more"
        resting = without_eta(told, {"completionTime": TIME})
        assert (resting["progress"]["display"] if resting else shown) == steps


def test_what_a_job_has_taken_is_counted_over_its_attempts() -> None:
    said = {"gpus": 8, "lastUpdateTime": TIME}
    status: dict[str, Any] = {}
    seen = []
    for told in (
        {"attempt": 0, "elapsedSeconds": 100},
        {"attempt": 0, "elapsedSeconds": 1000, "trainingSeconds": 800, "step": 80},
        {"attempt": 1, "elapsedSeconds": 200},
        # It goes on from a checkpoint of step 50.
        {"attempt": 1, "elapsedSeconds": 800, "trainingSeconds": 900, "step": 90},
    ):
        status = progress_fields(progress(**said, **told), None, status)
        seen.append((status["usage"]["gpuHours"], status["usage"]["goodput"]))
    assert seen == [("0.2222", "0"), ("2.222", "0.8"), ("2.667", "0.6667"), ("4", "0.5")]
    assert status["usage"]["earlierSeconds"] == 1000
    told = progress_fields(progress(attempt=2, lastUpdateTime=TIME), None, status)
    assert told["usage"] == status["usage"], "an older trainer does not tell"
    assert "gpuHours" not in progress_fields(progress(elapsedSeconds=9), None, {})["usage"], "there are no GPUs"


def test_what_a_newer_trainer_says_beside_what_is_known_does_no_harm() -> None:
    told = {"activity": "dreaming", "lastUpdateTime": TIME, "mood": "good"}
    report = {"trainerStatus": {"lastUpdatedTime": TIME, "mood": 1}, "trl": told, "more": []}
    known = ProgressReport.model_validate(report).trl
    assert known is not None
    assert progress_fields(known, None, {})["progress"]["activity"] == "dreaming"
    record = {"outcome": "Failed", "time": TIME, "progress": told, "more": 1}
    assert ExitRecord.model_validate(record).progress == known


def test_all_steps_done_is_not_yet_done() -> None:
    assert progress_fields(progress(step=40, totalSteps=40), None, {})["progress"]["percentage"] == 99
    done = progress_fields(progress(step=40, totalSteps=40, etaSeconds=3), 100, {})["progress"]
    assert done["percentage"] == 100
    assert not done.keys() & {"eta", "etaSeconds"}


def test_a_report_of_a_newer_trainer_is_taken_without_what_is_not_known() -> None:
    metrics = [{"name": "a" * 65, "value": "1", "unit": "s"}] + [{"name": f"m{n}", "value": "0"} for n in range(99)]
    ours = {"lastUpdateTime": TIME, "step": 3, "activity": "dancing", "metrics": metrics, "mood": {"good": True}}
    status = {"lastUpdatedTime": TIME, "metrics": metrics, "mood": 1}
    report = ProgressReport.model_validate({"trainerStatus": status, "trl": ours, "mood": 1})
    assert report.trl is not None
    found = progress_fields(report.trl, None, {})["progress"]
    assert (found["step"], found["activity"], len(found["metrics"])) == (3, "dancing", 24)
    assert found["metrics"][0] == {"name": "a" * 64, "value": "1"}


def test_an_exit_record_of_a_newer_trainer_is_one() -> None:
    said = {"contractVersion": 2, "outcome": "Failed", "time": TIME, "reason": "MoonTooClose", "log": "x" * 9999}
    record = ExitRecord.model_validate({**said, "mood": 1, "progress": {"lastUpdateTime": TIME, "mood": 1}})
    assert (record.outcome, record.reason, len(record.log)) == ("Failed", "Unknown", 2048)


def test_what_a_report_does_not_say_is_kept() -> None:
    checkpoints = [{"step": 10, "path": "u/checkpoint-10", "time": TIME}]
    before = [{"name": "accuracy", "value": "0.1"}]
    current = progress_fields(
        progress(
            checkpoints=checkpoints,
            evaluation={"before": before},
            resumedFromStep=5,
            trainableParameters=9,
            gradientCheckpointing=False,
        ),
        None,
        {},
    )
    after = [{"name": "accuracy", "value": "0.97"}]
    fields = progress_fields(progress(step=20, evaluation={"after": after}), None, current)
    assert fields["checkpoints"] == checkpoints
    assert fields["evaluation"] == {"before": before, "after": after, "display": "accuracy 0.1 → 0.97"}
    assert fields["resumedFromStep"] == 5
    assert (fields["effective"]["trainableParameters"], fields["effective"]["gradientCheckpointing"]) == (9, False)
    fresh = progress_fields(progress(attempt=1), None, {**current, "progress": {"attempt": 0}})
    assert "resumedFromStep" not in fresh
    assert fresh["checkpoints"] == checkpoints


def test_why_nothing_is_evaluated_is_kept_in_words_that_programs_may_rely_on() -> None:
    skipped = {"reason": "HeldOutRowsDropped", "message": "2 of 2\x07 held-out rows"}
    current = progress_fields(progress(evaluationSkipped=skipped), None, {})
    assert current["evaluation"] == {"skipped": {**skipped, "message": "2 of 2 held-out rows"}}
    assert progress_fields(progress(step=1), None, current)["evaluation"] == current["evaluation"]
    odd = progress_fields(progress(evaluationSkipped={**skipped, "reason": "No rows!"}), None, {})
    assert odd["evaluation"]["skipped"]["reason"] == "Unknown"


def test_only_a_later_attempt_or_time_is_newer_whatever_the_step() -> None:
    known = {"progress": {"attempt": 1, "step": 10, "lastUpdateTime": TIME}}
    later = "2026-11-21T12:00:01.000000Z"
    assert is_newer(progress(), {})
    assert is_newer(progress(attempt=2), known)
    assert is_newer(progress(attempt=1, step=10, lastUpdateTime=later), known)
    assert is_newer(progress(attempt=1, step=9, lastUpdateTime=later), known), "a forged far step silences nobody"
    assert not is_newer(progress(attempt=1, step=10), known)
    assert not is_newer(progress(attempt=1, step=11), known)
    assert not is_newer(progress(attempt=0, step=99, lastUpdateTime=later), known)


def test_a_time_ahead_of_ours_is_ours(now: datetime) -> None:
    ahead = not_later_than(now, progress(lastUpdateTime="2099-01-01T00:00:00Z"))
    assert (ahead.last_update_time, ahead.step) == (TIME, 0)
    assert has_valid_times(ahead)
    assert not_later_than(now, progress()) == progress()


def test_times_are_compared_as_times_not_as_text() -> None:
    known = {"progress": {"attempt": 0, "step": 1, "lastUpdateTime": "2026-11-21T12:00:00.5Z"}}
    assert not is_newer(progress(step=1, lastUpdateTime="2026-11-21T12:00:00Z"), known)
    assert is_newer(progress(step=1, lastUpdateTime="2026-11-21T11:00:01-01:00"), known)


@pytest.mark.parametrize(
    "text",
    [
        "", "noon", "2026-11-21", "2026-11-21T06:00:00", "2026-11-21 06:00:00Z", "20261121T060000Z",
        "2026-11-21T06:00Z", "2026-13-21T06:00:00Z", "2026-11-21T06:00:60Z", "２０２６-11-21T06:00:00Z",
        "2026-11-21T06:00:00Z\n", "2026-W47-6T06:00:00Z", "2026-11-21T06:00:00+24:00", "2026-11-21T06:00:00,5Z",
    ],
)  # fmt: skip
def test_a_time_that_the_api_server_would_refuse_is_none(text: str) -> None:
    assert has_valid_times(progress())
    assert not has_valid_times(progress(lastUpdateTime=text))
    assert not has_valid_times(progress(checkpoints=[{"step": 1, "path": "p", "time": text}]))
    assert last_words([record("Succeeded", lastUpdateTime=text)], 0, False, {}) is None


@pytest.mark.parametrize(
    "change",
    [
        *({name: 2**31} for name in ("attempt", "step", "totalSteps", "etaSeconds", "resumedFromStep")),
        {"trainableParameters": 2**63},
        {"checkpoints": [{"step": 2**31, "path": "p", "time": TIME}]},
        {"rewards": [{"name": "r", "mean": "0", "std": "0", "errors": 2**31}]},
    ],
)
def test_a_number_that_the_status_cannot_hold_is_no_report(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        progress(**change)
    with pytest.raises(ValidationError):
        ExitRecord.model_validate(
            {"outcome": "Succeeded", "time": TIME, "progress": {"lastUpdateTime": TIME, **change}}
        )


def test_lists_with_keys_name_each_key_once() -> None:
    twice = [{"step": 5, "path": path, "time": TIME} for path in ("a", "b")]
    rewards = [{"name": "polite", "mean": mean, "std": "0"} for mean in ("1", "2")]
    fields = progress_fields(progress(checkpoints=twice, rewards=rewards), None, {})
    assert [(c["step"], c["path"]) for c in fields["checkpoints"]] == [(5, "b")]
    assert [(r["name"], r["mean"]) for r in fields["rewards"]] == [("polite", "2")]


def record(outcome: str, **fields: Any) -> ExitRecord:
    said = {"step": 40, "totalSteps": 40, "lastUpdateTime": TIME, **fields}
    return ExitRecord.model_validate({"outcome": outcome, "time": TIME, "progress": said})


def test_the_end_is_at_100_percent_whichever_of_report_and_record_comes_last() -> None:
    earlier, later = "2026-11-21T11:59:59Z", "2026-11-21T12:00:01Z"
    for time in (earlier, TIME, later):
        told = progress_fields(progress(step=40, totalSteps=40, etaSeconds=9, lastUpdateTime=time), None, {})
        assert told["progress"]["percentage"] == 99
        told["checkpoints"] = [{"step": 40, "path": "c", "time": TIME}]
        done = last_words([record("Succeeded")], 0, False, told)
        assert done is not None
        assert done["progress"]["percentage"] == 100
        assert not done["progress"].keys() & {"eta", "etaSeconds"}
        assert done["progress"]["lastUpdateTime"] == max(time, TIME)
        assert done["checkpoints"] == told["checkpoints"]
        assert last_words([record("Succeeded")], 0, True, done) is None, "nothing is written twice"


def test_an_attempt_without_a_record_that_succeeded_is_at_100_percent_too() -> None:
    told = progress_fields(progress(step=38, totalSteps=40, trainableParameters=7), None, {})
    done = last_words([], 0, True, told)
    assert done is not None
    assert (done["progress"]["percentage"], done["progress"]["display"]) == (100, "38/40")
    assert done["effective"] == told["effective"]
    assert last_words([], 0, False, told) is None
    assert last_words([], 1, True, told) is None, "an earlier attempt's progress is not this one's"
    assert last_words([], 0, True, {}) is None


def test_a_failed_attempts_record_is_kept_as_far_as_it_got() -> None:
    words = last_words([record("Failed", checkpoints=[{"step": 30, "path": "c", "time": TIME}])], 0, False, {})
    assert words is not None
    assert (words["progress"]["percentage"], words["checkpoints"][0]["step"]) == (99, 30)
    assert last_words([record("Failed")], 0, False, words) is None
    assert last_words([record("Failed")], 1, False, {}) is None


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
    status["metrics"] = [{"name": "current_step", "value": "1e300"}, {"name": "total_steps", "value": "-5"}]
    odd = from_stock(ProgressReport.model_validate({"trainerStatus": status}), attempt=3)
    assert (odd.step, odd.total_steps) == (2**31 - 1, 0)


texts = st.text(max_size=64)
numbers = st.one_of(st.floats().map(str), st.integers().map(str), texts).filter(lambda text: len(text) <= 64)


@settings(deadline=None)  # how long one example takes says nothing on a busy machine
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
