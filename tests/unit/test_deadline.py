"""policy/deadline.py: when a job has had its time."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from shown import UNSCHEDULABLE, reason, running

from trl_contract.cluster import RunPolicy
from trl_operator.api.status import JobStatus
from trl_operator.api.stored import read_status
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import format_time
from trl_operator.plan.view import View
from trl_operator.policy import deadline
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]


def test_the_clock_counts_from_the_start_and_stands_still_in_a_rest(now: datetime) -> None:
    policy = RunPolicy.model_validate({"activeDeadlineSeconds": 60})
    status = JobStatus(start_time=format_time(now - timedelta(seconds=50)))
    assert deadline.seconds_left(policy, status, now) == 10
    assert deadline.seconds_left(RunPolicy(), status, now) == float("inf")
    assert deadline.seconds_left(policy, JobStatus(), now) == float("inf")
    status.suspended_seconds = 30
    assert deadline.seconds_left(policy, status, now) == 40
    rests = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": ""}
    rests["lastTransitionTime"] = format_time(now)
    resting = read_status({**status.to_wire(), "conditions": [rests]})
    assert deadline.seconds_left(policy, resting, now) == float("inf")


def test_a_blocked_job_is_on_time_for_its_deadline(make_job: Make, now: datetime) -> None:
    job = make_job(runPolicy={"activeDeadlineSeconds": 905})
    started = decide(job, {}, View(), now).status
    for polled, expected in ((False, 5), (True, 5)):
        view = View(blocker=Blocker("ConfigMapNotFound", "gone again", polled=polled))
        status = decide(job, started, view, now).status
        assert decide(job, status, view, now + timedelta(seconds=900)).requeue == expected


def test_the_deadline_stops_the_attempt_waits_for_its_pods_and_fails_the_job(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"activeDeadlineSeconds": 60})
    pods = (make_pod(0),)
    before = decide(job, status, View(make_child(0), pods=pods), now + timedelta(seconds=59))
    assert before.requeue == pytest.approx(1)
    now += timedelta(seconds=60)
    stop = decide(job, before.status, View(make_child(0), pods=pods), now)
    assert ([child.uid for child in stop.delete], reason(stop)) == (["child-0"], ("False", "DeadlineExceeded"))
    wait = decide(job, stop.status, View(pods=pods), now)
    assert "completionTime" not in wait.status
    end = decide(job, wait.status, View(pods=(make_pod(0).vanished(),)), now)
    assert end.status["failure"]["reason"] == "DeadlineExceeded"


def test_the_deadline_says_what_the_job_was_waiting_for(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"activeDeadlineSeconds": 60})
    pending = (make_pod(0, "Pending", conditions=[UNSCHEDULABLE]),)
    status = decide(job, status, View(make_child(0), pods=pending), now).status
    now += timedelta(seconds=60)
    status = decide(job, status, View(make_child(0), pods=pending), now).status
    end = decide(job, status, View(pods=(pending[0].vanished(),)), now)
    failure = end.status["failure"]
    assert failure["reason"] == "DeadlineExceeded"
    assert "waited for: Unschedulable: pod tune-dpo-0-worker-0: 0/1 nodes" in failure["message"]


@pytest.mark.parametrize("kind", ["Accepted", "UpstreamReady"])
def test_the_deadline_holds_before_the_first_attempt(make_job: Make, now: datetime, kind: Any) -> None:
    job = make_job(runPolicy={"activeDeadlineSeconds": 60})
    view = View(blocker=Blocker("ConfigMapNotFound", "create it", condition=kind))
    first = decide(job, {}, view, now)
    assert (first.requeue or 0) <= 60
    end = decide(job, first.status, view, now + timedelta(seconds=60))
    assert end.status["failure"]["reason"] == "DeadlineExceeded"
    assert "ConfigMapNotFound: create it" in end.status["failure"]["message"]


def test_a_suspension_before_the_start_does_not_lengthen_the_deadline(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    policy = {"activeDeadlineSeconds": 60}
    status = decide(make_job(runPolicy={**policy, "suspend": True}), {}, View(), now).status
    assert "startTime" not in status
    now += timedelta(hours=9)
    status = decide(make_job(runPolicy=policy), status, View(), now).status
    view = View(make_child(0), pods=(make_pod(0),))
    assert decide(make_job(runPolicy=policy), status, view, now).requeue == pytest.approx(60)


def test_the_deadline_holds_between_attempts_too(make_job: Make, now: datetime) -> None:
    job = make_job(runPolicy={"activeDeadlineSeconds": 60})
    status = decide(job, {}, View(), now).status
    blocked = View(blocker=Blocker("ConfigMapNotFound", "gone again"))
    assert decide(job, status, blocked, now + timedelta(seconds=61)).status["phase"] == "Failed"


def test_the_deadline_stands_still_while_a_job_is_suspended(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    policy = {"activeDeadlineSeconds": 60}
    job, status = running(make_job, make_child, now, runPolicy=policy)
    held = make_job(runPolicy={**policy, "suspend": True})
    status = decide(held, status, View(pods=()), now + timedelta(seconds=10)).status
    assert status["phase"] == "Suspended"
    later = now + timedelta(seconds=1000)
    assert decide(held, status, View(), later).status["phase"] == "Suspended"
    status = decide(job, status, View(), later).status
    status = decide(job, status, View(make_child(1), pods=(make_pod(0, attempt=1),)), later).status
    assert status["phase"] == "Running"
    left = decide(job, status, View(make_child(1), pods=(make_pod(0, attempt=1),)), later)
    assert left.requeue == pytest.approx(50)
