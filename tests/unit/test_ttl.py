"""policy/ttl.py: when a job that has ended is deleted."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from shown import SUCCEEDED, running

from trl_contract.cluster import RunPolicy
from trl_operator.api.status import JobStatus
from trl_operator.plan.observation import format_time
from trl_operator.plan.view import View
from trl_operator.policy import ttl
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]


def test_the_time_after_the_end(now: datetime) -> None:
    policy = RunPolicy.model_validate({"ttlSecondsAfterFinished": 100})
    ended = JobStatus(completion_time=format_time(now - timedelta(seconds=99)))
    assert ttl.seconds_left(policy, ended, now) == 1
    assert ttl.seconds_left(policy, ended, now + timedelta(days=1)) == 0
    assert ttl.seconds_left(RunPolicy(), ended, now) is None
    assert ttl.seconds_left(policy, JobStatus(), now) is None


def test_a_finished_job_is_deleted_when_its_time_is_over(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"ttlSecondsAfterFinished": 100})
    pod = make_pod(0, "Succeeded", exit_code=0, record=SUCCEEDED)
    done = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now)
    assert done.requeue == pytest.approx(100)
    assert not decide(job, done.status, View(), now + timedelta(seconds=99)).delete_job
    assert decide(job, done.status, View(), now + timedelta(seconds=100)).delete_job
