"""policy/restart.py: whether a failed attempt is followed by another one, and when."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from shown import checkpoint, failed, reason, record, running

from trl_operator.api.status import JobStatus, Retry
from trl_operator.api.stored import read_status
from trl_operator.plan.observation import format_time
from trl_operator.plan.outcome import Cause
from trl_operator.plan.view import View
from trl_operator.policy import restart
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]


def test_what_decides_about_the_next_attempt(now: datetime) -> None:
    lost, unknown, bad = (Cause(reason, "m") for reason in ("NodeLost", "Unknown", "DataFormatError"))
    assert restart.next_retry(JobStatus(), bad, 9, now) is None, "no attempt can help"
    first = restart.next_retry(JobStatus(), unknown, 1, now)
    assert first == Retry(counted=1, in_a_row=1, not_before=format_time(now + timedelta(seconds=10)))
    assert restart.next_retry(JobStatus(retry=first), unknown, 1, now) is None, "none is left"
    free = restart.next_retry(JobStatus(retry=first), lost, 1, now)
    assert free is not None
    assert (free.counted, free.free_in_a_row, free.in_a_row) == (1, 1, 2)
    spent = JobStatus(retry=Retry(counted=1, free_in_a_row=5, in_a_row=6))
    assert restart.next_retry(spent, lost, 1, now) is None
    assert restart.next_retry(spent, lost, 1, now, counts=False) is not None
    status = read_status({"retry": {"counted": 1, "freeInARow": 5, "inARow": 6}, "checkpoints": [checkpoint(40)]})
    newer = restart.next_retry(status, lost, 1, now)
    assert newer is not None
    assert (newer.counted, newer.free_in_a_row, newer.in_a_row, newer.checkpoint_step) == (1, 1, 1, 40)
    assert status.retry is not None
    assert status.retry.in_a_row == 6, "what was given stays as it is"


def test_a_retryable_failure_starts_the_next_attempt_after_a_pause(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    pod = failed(make_pod, 14, "RewardUnavailable", message="503")
    decision = decide(job, status, View(make_child(0, "Failed"), pods=(pod,)), now)
    after = decision.status
    assert (after["attempt"], after["restarts"], after["phase"]) == (1, 1, "Restarting")
    assert "workload" not in after
    assert reason(decision) == ("False", "RewardUnavailable")
    assert not decision.create
    early = decide(job, after, View(others=(make_child(0, "Failed"),)), now + timedelta(seconds=9))
    assert not early.create
    assert early.requeue == pytest.approx(1)
    due = decide(job, after, View(others=(make_child(0, "Failed"),)), now + timedelta(seconds=10))
    assert due.create
    assert due.status["attempt"] == 1
    assert not due.delete, "the failed attempt's pods stay for their logs"


def test_pauses_grow_to_five_minutes_and_the_budget_ends_the_job(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"maxRestarts": 7})
    pauses = []
    for attempt in range(7):
        pod = make_pod(0, "Failed", attempt=attempt, exit_code=1)
        decision = decide(job, status, View(make_child(attempt, "Failed"), pods=(pod,)), now)
        pauses.append(decision.requeue)
        now += timedelta(seconds=decision.requeue or 0)
        status = decide(job, decision.status, View(), now).status
        status = decide(job, status, View(make_child(attempt + 1)), now).status
    assert pauses == [10, 20, 40, 80, 160, 300, 300]
    last = make_pod(0, "Failed", attempt=7, exit_code=1, record="Traceback: boom")
    end = decide(job, status, View(make_child(7, "Failed"), (make_child(6, "Failed"),), (last,)), now)
    assert end.status["phase"] == "Failed"
    assert end.status["failure"]["reason"] == "Unknown"
    assert end.status["failure"]["log"] == "Traceback: boom"
    assert [child.attempt for child in end.delete] == [6], "the last attempt stays, earlier ones go"


@pytest.mark.parametrize(
    ("code", "told"),
    [(143, record("Preempted", "Preempted")), (15, record("Failed", "NetworkUnavailable")), (15, "")],
    ids=["preempted", "no network", "no network and no record"],
)
def test_what_is_nobodys_fault_is_free_but_not_for_ever_without_a_newer_checkpoint(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime, code: int, told: str
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"maxRestarts": 1})
    for attempt in range(5):
        pod = make_pod(0, "Failed", attempt=attempt, exit_code=code, record=told)
        status = decide(job, status, View(make_child(attempt, "Failed"), pods=(pod,)), now).status
        assert (status["retry"]["counted"], status["retry"]["freeInARow"]) == (0, attempt + 1)
        now += timedelta(hours=1)
        status = decide(job, status, View(make_child(attempt + 1)), now).status
    pod = make_pod(0, "Failed", attempt=5, exit_code=code, record=told)
    view = View(make_child(5, "Failed"), pods=(pod,))
    assert decide(job, status, view, now).status["retry"]["counted"] == 1
    newer = {**status, "checkpoints": [checkpoint(40)]}
    retry = decide(job, newer, view, now).status["retry"]
    assert (retry["counted"], retry["freeInARow"], retry["checkpointStep"]) == (0, 1, 40)


def test_a_failure_that_no_restart_can_mend_ends_the_job(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    pod = failed(make_pod, 12, "NonFiniteLoss", message="loss is nan at step 7", rank=0)
    decision = decide(job, status, View(make_child(0, "Failed"), pods=(pod,)), now)
    assert reason(decision, "Succeeded") == ("False", "NonFiniteLoss")
    failure = decision.status["failure"]
    assert (failure["rank"], failure["exitCode"], failure["pod"]) == (0, 12, "tune-dpo-0-worker-0")
    assert "learningRate" in failure["hint"]


def test_an_attempt_of_which_nothing_is_left_is_free_once(make_job: Make, make_child: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"maxRestarts": 1})
    status = decide(job, status, View(make_child(0, "Failed")), now).status
    assert (status["retry"]["counted"], status["retry"]["freeInARow"]) == (0, 1)
    now += timedelta(minutes=9)
    status = decide(job, decide(job, status, View(), now).status, View(make_child(1)), now).status
    status = decide(job, status, View(make_child(1, "Failed")), now).status
    assert (status["retry"]["counted"], status["retry"]["freeInARow"]) == (1, 1)


def test_a_newer_checkpoint_makes_the_pause_short_again(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"maxRestarts": 9})
    pauses = []
    for attempt, step in enumerate((0, 0, 0, 40, 40)):
        pod = make_pod(0, "Failed", attempt=attempt, exit_code=1)
        current = {**status, "checkpoints": [checkpoint(step)]}
        decision = decide(job, current, View(make_child(attempt, "Failed"), pods=(pod,)), now)
        pauses.append(decision.requeue)
        now += timedelta(seconds=decision.requeue or 0)
        status = decide(job, decision.status, View(), now).status
        status = decide(job, status, View(make_child(attempt + 1)), now).status
    assert pauses == [10, 20, 40, 10, 20]
    assert status["retry"]["counted"] == 5, "what counts against maxRestarts counts"
