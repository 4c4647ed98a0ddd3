"""policy/preemption.py: which attempts Kueue is to prefer, and for how long."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from trl_operator.api.status import Condition, JobStatus
from trl_operator.plan.admission import Admission, admission_from
from trl_operator.plan.observation import format_time
from trl_operator.policy.preemption import boost
from trl_operator.store.objects import news

Make = Callable[..., Any]
NEVER = float("inf")
ADMITTED = Admission(known=True, admitted=True)
BOOSTED = replace(ADMITTED, boost="1", boost_is_ours=True)


def status(since: datetime, *published: datetime, running: str = "True") -> JobStatus:
    """Of an attempt that runs since then."""
    said = Condition(type="Running", status=running, reason="Test", message="", last_transition_time=format_time(since))
    saved = [{"step": step, "path": f"step-{step}", "time": format_time(time)} for step, time in enumerate(published)]
    return JobStatus.model_validate({"conditions": [said], "checkpoints": saved})


@pytest.mark.parametrize(
    ("checkpoint", "limit"),
    [({"everyMinutes": 5}, 600), ({}, 1800), ({"everySteps": 100}, 1800), ({"everyEpochs": 0.5}, 1800)],
)
def test_an_attempt_without_a_checkpoint_is_preferred_for_twice_the_time_between_two(
    make_job: Make, now: datetime, checkpoint: dict[str, Any], limit: int
) -> None:
    job, since = make_job(checkpoint=checkpoint), now - timedelta(seconds=60)
    assert boost(job, status(since), ADMITTED, now) == ("1", limit - 60)
    assert boost(job, status(since), BOOSTED, now) == ("1", limit - 60)
    over = since + timedelta(seconds=limit)
    assert boost(job, status(since), BOOSTED, over) == ("", NEVER)


def test_it_no_longer_is_once_it_has_one_and_one_of_an_earlier_attempt_is_none(make_job: Make, now: datetime) -> None:
    job, earlier = make_job(), now - timedelta(hours=1)
    assert boost(job, status(now, earlier), ADMITTED, now)[0] == "1"
    assert boost(job, status(now, earlier, now + timedelta(seconds=1)), ADMITTED, now) == ("", NEVER)


@pytest.mark.parametrize(
    ("running", "admission"),
    [
        ("False", ADMITTED),
        ("True", Admission(known=True)),
        ("True", replace(ADMITTED, evicted=("Preempted", ""))),
    ],
    ids=["starting", "queued", "evicted"],
)
def test_what_does_not_run_is_not_preferred(make_job: Make, now: datetime, running: str, admission: Admission) -> None:
    assert boost(make_job(), status(now, running=running), admission, now) == ("", NEVER)


@pytest.mark.parametrize("value", ["1", "-60"])
@pytest.mark.parametrize("running", ["True", "False"])
def test_the_boost_of_somebody_else_stays(make_job: Make, now: datetime, value: str, running: str) -> None:
    theirs = replace(ADMITTED, boost=value)
    assert boost(make_job(), status(now, running=running), theirs, now) == (value, NEVER)


def test_the_first_checkpoint_of_an_attempt_is_news_and_no_other_one(job_object: Make, now: datetime) -> None:
    def told(*published: datetime) -> int:
        obj = {**job_object(), "status": status(now, *published).to_wire()}
        return news(obj, obj["status"])

    earlier, first, second = now - timedelta(hours=1), now + timedelta(minutes=5), now + timedelta(minutes=10)
    assert told() == told(earlier) != told(earlier, first) == told(earlier, first, second)


def test_what_a_trainer_reports_is_no_news(job_object: Make, now: datetime) -> None:
    stored = status(now).to_wire()
    warning = {"reason": "LossCollapse", "message": "for 20 steps", "hint": "Train less."}
    for said in ({"warnings": [warning]}, {"effective": {"totalSteps": 9}}, {"progress": {"step": 3}}):
        assert news(job_object(), stored) == news(job_object(), {**stored, **said}), said


@pytest.mark.parametrize(("manager", "ours"), [("trl-operator-boost", True), ("kubectl-annotate", False)])
def test_a_workload_says_its_boost_and_whose_it_is(manager: str, ours: bool) -> None:
    name = "kueue.x-k8s.io/priority-boost"
    written = {"manager": manager, "fieldsV1": {"f:metadata": {"f:annotations": {f"f:{name}": {}}}}}
    others = {"manager": "kueue", "fieldsV1": {"f:metadata": {"f:annotations": {".": {}}}}}
    metadata: dict[str, Any] = {"name": "w", "uid": "u", "annotations": {name: "1"}}
    found = admission_from({"metadata": {**metadata, "managedFields": [others, written]}})
    assert (found.name, found.uid, found.boost, found.boost_is_ours) == ("w", "u", "1", ours)
