"""policy/stall.py: whether an attempt that runs gets on, by what its reports say."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from shown import condition, reason, running

from trl_operator.api.stored import read_status
from trl_operator.plan.observation import Mark, format_time
from trl_operator.plan.view import View
from trl_operator.policy import stall
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]
TIMEOUT = 1800


def report(step: int, at: datetime, activity: str = "training", attempt: int = 0) -> dict[str, Any]:
    said = {"attempt": attempt, "activity": activity, "display": f"{step}/40", "step": step, "totalSteps": 40}
    return {"progress": {**said, "lastUpdateTime": format_time(at)}}


@pytest.fixture
def attempt(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> Callable[..., Any]:
    """`attempt(progress, mark, at)`: what is decided about an attempt that runs since `now`."""
    job, started = running(make_job, make_child, now, runPolicy={"maxRestarts": 0})
    alive = View(make_child(0), pods=(make_pod(0),))
    began = decide(job, started, alive, now).status

    def look(progress: dict[str, Any], mark: Mark | None, at: datetime, **status: Any) -> Any:
        view = View(make_child(0), pods=(make_pod(0),), mark=mark)
        return decide(job, {**began, **status, **progress}, view, at)

    return look


def test_what_reports_say_is_remembered_until_they_say_more(now: datetime) -> None:
    first = stall.mark(None, read_status({"attempt": 0, **report(5, now)}))
    assert first == Mark((0, 5, "training", "5/40"), now)
    later = now + timedelta(seconds=30)
    assert stall.mark(first, read_status({"attempt": 0, **report(5, later)})) is first
    assert stall.mark(first, read_status({"attempt": 0, **report(6, later)})) == Mark((0, 6, "training", "6/40"), later)
    assert stall.mark(first, read_status({"attempt": 1, **report(5, later)})) is None, "of an earlier attempt"
    assert stall.mark(None, read_status({"attempt": 0})) is None


def test_an_attempt_whose_reports_come_and_say_always_the_same_step_is_ended_and_counts(
    attempt: Make, make_child: Make, now: datetime
) -> None:
    mark = Mark((0, 5, "training", "5/40"), now)
    at = now + timedelta(seconds=TIMEOUT)
    early = attempt(report(5, at - timedelta(seconds=1)), mark, at)
    assert (early.delete, early.requeue) == ([], stall.SHORTEST_LOOK_SECONDS)
    late = attempt(report(5, at), mark, at)
    assert [child.uid for child in late.delete] == ["child-0"]
    assert reason(late) == ("False", "Stalled")
    assert "always at step 5" in condition(late.status, "Running")["message"]
    job_ends = attempt(report(5, at), None, at, conditions=late.status["conditions"])
    assert [child.uid for child in job_ends.delete] == ["child-0"], "it stays ended, though a new leader knows no mark"


def test_saving_or_evaluating_may_take_long(attempt: Make, now: datetime) -> None:
    at = now + timedelta(seconds=9 * TIMEOUT)
    for activity in ("evaluating", "saving", "tokenizing"):
        found = attempt(report(5, at, activity), Mark((0, 5, activity, "5/40"), now), at)
        assert (found.delete, found.status["phase"]) == ([], "Running")
        assert condition(found.status, "Stalled") == {}


@pytest.mark.parametrize("reported", [True, False])
def test_silence_is_said_once_and_never_ends_an_attempt(attempt: Make, now: datetime, reported: bool) -> None:
    mark = Mark((0, 5, "training", "5/40"), now) if reported else None
    progress = report(5, now) if reported else {}
    still = attempt(progress, mark, now + timedelta(seconds=TIMEOUT - 60))
    assert (condition(still.status, "Stalled"), still.requeue) == ({}, 60)
    silent = attempt(progress, mark, now + timedelta(seconds=TIMEOUT))
    assert silent.delete == []
    assert reason(silent, "Stalled") == ("Unknown", "NoReports")
    assert (silent.status["phase"], silent.requeue) == ("Running", TIMEOUT)
    days = now + timedelta(days=9)
    again = attempt(progress, mark, days, conditions=silent.status["conditions"])
    assert again.status == silent.status, "one write in all"
    heard = report(6, days)
    back = attempt(heard, Mark((0, 6, "training", "6/40"), days), days, conditions=silent.status["conditions"])
    assert reason(back, "Stalled") == ("False", "Reporting")


def test_a_stalled_attempt_is_followed_by_another_one(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, started = running(make_job, make_child, now)
    began = decide(job, started, View(make_child(0), pods=(make_pod(0),)), now).status
    at = now + timedelta(seconds=TIMEOUT)
    mark = Mark((0, 5, "training", "5/40"), now)
    view = View(make_child(0), pods=(make_pod(0),), mark=mark)
    ended = decide(job, {**began, **report(5, at)}, view, at).status
    gone = decide(job, {**ended, **report(5, at)}, View(pods=(make_pod(0).vanished(),)), at)
    assert (gone.status["attempt"], gone.status["retry"]["counted"]) == (1, 1)
    assert condition(gone.status, "Running")["message"].startswith("attempt 0 failed: its reports have said")
