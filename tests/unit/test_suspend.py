"""policy/suspend.py: what a rest costs."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from shown import condition, reason, running

from trl_operator.api.stored import read_status
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import format_time
from trl_operator.plan.view import View
from trl_operator.policy import suspend
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]


def test_rests_add_up_and_one_before_the_start_does_not_count(now: datetime) -> None:
    rests = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": ""}
    rests["lastTransitionTime"] = format_time(now - timedelta(seconds=50))
    assert suspend.suspended_seconds(read_status({"conditions": [rests]}), now) == 0
    started = {"conditions": [rests], "startTime": format_time(now - timedelta(seconds=99)), "suspendedSeconds": 7}
    assert suspend.suspended_seconds(read_status(started), now) == 57
    later = {**started, "startTime": format_time(now - timedelta(seconds=20))}
    assert suspend.suspended_seconds(read_status(later), now) == 27


def test_a_suspended_job_stops_rests_and_goes_on_at_no_cost(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    held = make_job(runPolicy={"suspend": True})
    stop = decide(held, status, View(make_child(0), pods=(make_pod(0),)), now)
    assert ([child.uid for child in stop.delete], reason(stop)) == (["child-0"], ("False", "Suspending"))
    wait = decide(held, stop.status, View(pods=(make_pod(0),)), now)
    assert not wait.create
    assert condition(wait.status, "Suspended") == {}
    rest = decide(held, wait.status, View(pods=(make_pod(0).vanished(),)), now)
    assert (rest.status["phase"], reason(rest, "Suspended")) == ("Suspended", ("True", "Suspended"))
    assert (rest.status["attempt"], rest.status["restarts"]) == (1, 0)
    still = decide(held, rest.status, View(), now + timedelta(hours=9))
    assert (still.status, still.create) == (rest.status, False)
    again = decide(job, still.status, View(), now + timedelta(hours=9))
    assert again.create
    assert reason(again, "Suspended") == ("False", "Resumed")
    assert again.status["suspendedSeconds"] == 9 * 3600
    assert "retry" not in again.status


def test_a_job_created_suspended_waits_and_is_still_checked(make_job: Make, now: datetime) -> None:
    held = make_job(runPolicy={"suspend": True})
    rest = decide(held, {}, View(), now)
    assert (rest.status["phase"], rest.create) == ("Suspended", False)
    assert "attempt" not in rest.status
    assert reason(rest, "Accepted") == ("True", "Accepted")
    blocked = decide(held, {}, View(blocker=Blocker("ConfigMapNotFound", "create it")), now)
    assert reason(blocked, "Accepted") == ("False", "ConfigMapNotFound")
    assert blocked.status["phase"] == "Suspended"
