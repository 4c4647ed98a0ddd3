"""policy/stop.py: what ends an attempt from outside."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from shown import SUCCEEDED, reason, running

from trl_contract.cluster import RunPolicy
from trl_operator.api.status import JobStatus
from trl_operator.plan.observation import format_time
from trl_operator.plan.view import View
from trl_operator.policy import stop
from trl_operator.status.events import events
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"cancel": True, "suspend": True, "activeDeadlineSeconds": 1}, "Cancelling"),
        ({"suspend": True, "activeDeadlineSeconds": 1}, "DeadlineExceeded"),
        ({"suspend": True, "activeDeadlineSeconds": 99}, "Suspending"),
        ({"activeDeadlineSeconds": 99}, None),
    ],
)
def test_cancellation_goes_before_deadline_before_suspension(
    now: datetime, policy: dict[str, Any], expected: str | None
) -> None:
    status = JobStatus(start_time=format_time(now - timedelta(seconds=9)))
    found = stop.wish(RunPolicy.model_validate(policy), status, now)
    assert (found.reason if found else None) == expected


def test_a_pod_that_hangs_in_its_deletion_holds_nobody_for_ever(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    _, status = running(make_job, make_child, now)
    cancelled = make_job(runPolicy={"cancel": True})
    hangs = (make_pod(0, deleted_at=format_time(now)),)
    status = decide(cancelled, status, View(pods=hangs), now).status
    assert "completionTime" not in decide(cancelled, status, View(pods=hangs), now + timedelta(seconds=60)).status
    assert decide(cancelled, status, View(pods=hangs), now + timedelta(seconds=61)).status["phase"] == "Cancelled"


def test_what_happens_by_wish_is_told_as_normal(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    gone = View(pods=(make_pod(0).vanished(),))
    cancelled = decide(make_job(runPolicy={"cancel": True}), status, gone, now).status
    assert [(e.type, e.reason) for e in events(status, cancelled)] == [("Normal", "Cancelled")]
    rests = decide(make_job(runPolicy={"suspend": True}), status, gone, now).status
    assert [(e.type, e.reason) for e in events(status, rests)] == [("Normal", "Suspended")]
    again = decide(job, rests, View(), now).status
    assert [(e.type, e.reason) for e in events(rests, again)] == [("Normal", "Resumed")]


def test_success_wins_over_a_suspension_that_came_too_late(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    _, status = running(make_job, make_child, now)
    held = make_job(runPolicy={"suspend": True})
    pod = make_pod(0, "Succeeded", exit_code=0, record=SUCCEEDED)
    assert decide(held, status, View(make_child(0, "Succeeded"), pods=(pod,)), now).status["phase"] == "Succeeded"


def test_a_cancelled_job_stops_for_good(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    _, status = running(make_job, make_child, now)
    cancelled = make_job(runPolicy={"cancel": True, "suspend": True, "activeDeadlineSeconds": 1})
    now += timedelta(minutes=1)
    stop = decide(cancelled, status, View(make_child(0), pods=(make_pod(0),)), now)
    assert (stop.status["phase"], reason(stop)) == ("Stopping", ("False", "Cancelling"))
    end = decide(cancelled, stop.status, View(pods=(make_pod(0).vanished(),)), now)
    assert (end.status["phase"], reason(end, "Succeeded")) == ("Cancelled", ("False", "Cancelled"))
    assert "failure" not in end.status
    assert decide(make_job(), end.status, View(), now).status == end.status
    assert decide(cancelled, {}, View(), now).status["phase"] == "Cancelled"
