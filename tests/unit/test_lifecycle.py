"""The state machine, row by row: what is stored and observed, and what comes next."""

import copy
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import format_time
from trl_operator.status.conditions import condition
from trl_operator.status.events import events
from trl_operator.status.lifecycle import Decision, View, decide

Make = Callable[..., Any]


def record(outcome: str, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    time = fields.pop("time", "2026-11-21T11:30:00.000000Z")
    return {"outcome": outcome, "time": time, **({"reason": reason} if reason else {}), **fields}


SUCCEEDED = record("Succeeded")
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}


def running(make_job: Make, make_child: Make, now: datetime, **spec: Any) -> tuple[Any, dict[str, Any]]:
    """A job and its status with attempt 0 under way."""
    job = make_job(**spec)
    status = decide(job, {}, View(), now).status
    return job, decide(job, status, View(make_child(0)), now).status


def reason(decision: Decision, kind: str = "Running") -> tuple[str, str]:
    found = condition(decision.status, kind)
    return found["status"], found["reason"]


def test_a_new_job_is_accepted_and_its_first_attempt_is_written_before_it_is_created(
    make_job: Make, now: datetime
) -> None:
    decision = decide(make_job(), {}, View(), now)
    assert decision.create
    assert (decision.status["attempt"], decision.status["phase"]) == (0, "Starting")
    assert "workload" not in decision.status
    assert decision.status["startTime"] == format_time(now)
    assert decision.status["effective"] == {"batchSize": 16, "worldSize": 1, "model": "org/base"}
    assert reason(decision, "Accepted") == ("True", "Accepted")


def test_deciding_twice_on_the_same_says_the_same(make_job: Make, now: datetime) -> None:
    job = make_job()
    first = decide(job, {}, View(), now).status
    assert decide(job, first, View(), now + timedelta(seconds=9)).status == first


def test_a_blocked_job_creates_nothing_and_looks_again_soon(make_job: Make, now: datetime) -> None:
    decision = decide(make_job(), {}, View(blocker=Blocker("ConfigMapNotFound", "create it")), now)
    assert not decision.create
    assert "attempt" not in decision.status
    assert decision.status["phase"] == "Pending"
    assert reason(decision, "Accepted") == ("False", "ConfigMapNotFound")
    assert decision.requeue is not None
    assert decision.requeue <= 5


@pytest.mark.parametrize("kind", ["Accepted", "UpstreamReady"])
def test_a_job_that_stays_blocked_looks_again_less_and_less_often(make_job: Make, now: datetime, kind: Any) -> None:
    view = View(blocker=Blocker("ConfigMapNotFound", "create it", condition=kind))
    status: dict[str, Any] = {}
    found = []
    for waited in (0, 10, 60, 300, 9000):
        decision = decide(make_job(), status, view, now + timedelta(seconds=waited))
        status = decision.status
        found.append(decision.requeue)
    assert found == [2, 2, 6, 30, 30]


def test_a_blocked_job_is_on_time_for_its_deadline(make_job: Make, now: datetime) -> None:
    job = make_job(runPolicy={"activeDeadlineSeconds": 905})
    started = decide(job, {}, View(), now).status
    for final, expected in ((False, 5), (True, 5)):
        view = View(blocker=Blocker("ConfigMapNotFound", "gone again", final=final))
        status = decide(job, started, view, now).status
        assert decide(job, status, view, now + timedelta(seconds=900)).requeue == expected


def test_an_attempt_runs_when_all_its_pods_do(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    storage = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    job, status = running(make_job, make_child, now, numNodes=2, storage=storage)
    one = decide(job, status, View(make_child(0), pods=(make_pod(0), make_pod(1, "Pending"))), now)
    assert (one.status["phase"], reason(one)) == ("Starting", ("False", "Starting"))
    two = decide(job, one.status, View(make_child(0), pods=(make_pod(0), make_pod(1))), now)
    assert (two.status["phase"], reason(two)) == ("Running", ("True", "AllPodsRunning"))
    still = decide(job, two.status, View(make_child(0), pods=(make_pod(0), make_pod(1, "Succeeded", exit_code=0))), now)
    assert still.status == two.status


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        ({"waiting": ("ImagePullBackOff", "no such image")}, "ImagePullFailed"),
        ({"waiting": ("CreateContainerConfigError", 'secret "hf" not found')}, "SecretNotFound"),
        ({"waiting": ("CreateContainerConfigError", "couldn't find key token in Secret team/hf")}, "SecretKeyNotFound"),
        ({"conditions": [UNSCHEDULABLE]}, "Unschedulable"),
        ({}, "Starting"),
    ],
)
def test_a_job_that_does_not_start_says_why(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime, pod: dict[str, Any], expected: str
) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(make_child(0), pods=(make_pod(0, "Pending", **pod),)), now)
    assert reason(decision) == ("False", expected)


@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        ("Error creating: pods is forbidden: exceeded quota: none", "QuotaExceeded"),
        ('Error creating: pods "x" is forbidden: violates PodSecurity "restricted"', "PodSecurityDenied"),
        ('Error creating: admission webhook "policy" denied the request: no such team', "CreateRefused"),
    ],
)
def test_the_newest_refusal_of_a_pod_is_told_in_its_own_words(
    make_job: Make, make_child: Make, now: datetime, newest: str, expected: str
) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(make_child(0), denials=(newest, "exceeded quota: an old one")), now)
    assert reason(decision) == ("False", expected)
    assert condition(decision.status, "Running")["message"] == newest
    again = decide(job, decision.status, View(make_child(0)), now)
    assert reason(again) == ("False", "Starting")


def test_a_job_succeeds_with_the_artifacts_of_its_record(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    artifact = {"type": "model", "uri": "u/final", "digest": "sha256:0"}
    pod = make_pod(0, "Succeeded", exit_code=0, record={**SUCCEEDED, "artifacts": [artifact]})
    decision = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now)
    assert (decision.status["phase"], decision.status["artifacts"]) == ("Succeeded", [artifact])
    assert reason(decision, "Succeeded") == ("True", "Succeeded")
    assert decision.status["completionTime"] == format_time(now)


def test_a_foreign_image_that_leaves_no_record_succeeds_and_this_is_said(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    pod = make_pod(0, "Succeeded", exit_code=0)
    decision = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now)
    assert reason(decision, "Succeeded") == ("True", "NoExitRecord")


def test_a_failed_attempt_waits_for_all_its_pods_before_anything_is_decided(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    storage = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    job, status = running(make_job, make_child, now, numNodes=2, storage=storage)
    pods = (make_pod(0), make_pod(1, "Failed", exit_code=10, record=record("Failed", "DataFormatError")))
    decision = decide(job, status, View(make_child(0, "Failed"), pods=pods), now)
    assert (decision.status["attempt"], decision.status["phase"]) == (0, "Restarting")
    assert "completionTime" not in decision.status
    assert not decision.delete


def failed(make_pod: Make, code: int, why: str | None, **fields: Any) -> Any:
    return make_pod(0, "Failed", exit_code=code, record=record("Failed", why, **fields) if why else None)


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


def test_preemption_is_free_but_not_for_ever_without_a_newer_checkpoint(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"maxRestarts": 1})
    for attempt in range(5):
        pod = make_pod(0, "Failed", attempt=attempt, exit_code=143, record=record("Preempted", "Preempted"))
        status = decide(job, status, View(make_child(attempt, "Failed"), pods=(pod,)), now).status
        assert (status["retry"]["counted"], status["retry"]["freeInARow"]) == (0, attempt + 1)
        now += timedelta(hours=1)
        status = decide(job, status, View(make_child(attempt + 1)), now).status
    pod = make_pod(0, "Failed", attempt=5, exit_code=143, record=record("Preempted", "Preempted"))
    view = View(make_child(5, "Failed"), pods=(pod,))
    assert decide(job, status, view, now).status["retry"]["counted"] == 1
    newer = {**status, "checkpoints": [{"step": 40}]}
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


def test_a_pytorchjob_that_is_gone_is_a_failed_attempt(make_job: Make, make_child: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(), now)
    assert reason(decision) == ("False", "ChildDeleted")
    assert decision.status["attempt"] == 1


def test_a_pod_that_vanished_releases_the_gang(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(make_child(0), pods=(make_pod(0).vanished(),)), now)
    assert [child.uid for child in decision.delete] == ["child-0"]
    assert decision.status["attempt"] == 0
    ended = decide(job, decision.status, View(pods=(make_pod(0).vanished(),)), now)
    assert reason(ended) == ("False", "ChildDeleted")


def test_a_pod_on_a_lost_node_counts_as_gone_a_minute_after_its_grace(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    pod = make_pod(0, disruption="DeletionByTaintManager", deleted_at=format_time(now))
    view = View(make_child(0, "Failed"), pods=(pod,))
    waiting = decide(job, status, view, now + timedelta(seconds=60))
    assert waiting.status["attempt"] == 0
    over = decide(job, status, view, now + timedelta(seconds=61))
    assert reason(over) == ("False", "NodeLost")
    assert over.status["retry"]["counted"] == 0


def test_an_attempt_that_should_not_be_alive_is_deleted(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(make_child(0), (make_child(3),), (make_pod(0),)), now)
    assert [child.attempt for child in decision.delete] == [3]


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


def test_success_is_not_lost_with_the_pytorchjob(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    storage = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    job, status = running(make_job, make_child, now, numNodes=2, storage=storage)
    pods = [make_pod(index, "Succeeded", exit_code=0, record=SUCCEEDED).vanished() for index in (0, 1)]
    end = decide(job, status, View(make_child(0), pods=tuple(pods)), now)
    assert (end.status["phase"], end.delete) == ("Succeeded", []), "though its PyTorchJob does not say so yet"
    assert decide(job, end.status, View(others=(make_child(0),)), now).delete == []
    assert decide(job, status, View(pods=tuple(pods)), now).status["phase"] == "Succeeded"
    assert decide(job, status, View(pods=tuple(pods[:1])), now).status["phase"] == "Restarting"


def test_a_record_of_failure_outweighs_the_pytorchjobs_success(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    pod = make_pod(0, "Succeeded", exit_code=0, record=record("Failed", "NonFiniteLoss", message="nan"))
    end = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now)
    assert (end.status["phase"], end.status["failure"]["reason"]) == ("Failed", "NonFiniteLoss")


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
        current = {**status, "checkpoints": [{"step": step}]}
        decision = decide(job, current, View(make_child(attempt, "Failed"), pods=(pod,)), now)
        pauses.append(decision.requeue)
        now += timedelta(seconds=decision.requeue or 0)
        status = decide(job, decision.status, View(), now).status
        status = decide(job, status, View(make_child(attempt + 1)), now).status
    assert pauses == [10, 20, 40, 10, 20]
    assert status["retry"]["counted"] == 5, "what counts against maxRestarts counts"


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


def test_what_a_pod_waits_for_is_told_once(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now)
    view = View(make_child(0), pods=(make_pod(0, "Pending", conditions=[UNSCHEDULABLE]),))
    waits = decide(job, status, view, now).status
    assert [(e.type, e.reason) for e in events(status, waits)] == [("Warning", "Unschedulable")]
    assert events(waits, decide(job, waits, view, now).status) == []


def test_the_deadline_holds_between_attempts_too(make_job: Make, now: datetime) -> None:
    job = make_job(runPolicy={"activeDeadlineSeconds": 60})
    status = decide(job, {}, View(), now).status
    blocked = View(blocker=Blocker("ConfigMapNotFound", "gone again"))
    assert decide(job, status, blocked, now + timedelta(seconds=61)).status["phase"] == "Failed"


def test_terminal_is_terminal(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now)
    pod = make_pod(0, "Succeeded", exit_code=0, record=SUCCEEDED)
    done = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now).status
    later = decide(job, done, View(), now + timedelta(days=9))
    assert later.status == done
    assert not later.create
    assert not later.delete_job


def test_a_finished_job_is_deleted_when_its_time_is_over(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"ttlSecondsAfterFinished": 100})
    pod = make_pod(0, "Succeeded", exit_code=0, record=SUCCEEDED)
    done = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now)
    assert done.requeue == pytest.approx(100)
    assert not decide(job, done.status, View(), now + timedelta(seconds=99)).delete_job
    assert decide(job, done.status, View(), now + timedelta(seconds=100)).delete_job


def test_conditions_that_follow_from_the_spec_are_shown(make_job: Make, now: datetime) -> None:
    off = decide(make_job(evaluation={"enabled": False}), {}, View(), now)
    assert reason(off, "EvaluationSkipped") == ("True", "Disabled")
    rows = {"train": {"configMap": {"name": "rows", "key": "train.jsonl"}}, "evalSplit": 0}
    assert reason(decide(make_job(dataset=rows), {}, View(), now), "EvaluationSkipped") == ("True", "NoHeldOutRows")
    polite = [{"name": "polite", "keyword": {"words": ["please"]}}]
    free = decide(make_job("GRPOJob", grpo={"beta": 0, "rewards": polite}), {}, View(), now)
    assert reason(free, "KLPenaltyDisabled") == ("True", "BetaIsZero")


def test_a_condition_keeps_its_time_until_its_status_changes(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    later = now + timedelta(minutes=5)
    still = decide(job, status, View(make_child(0), pods=(make_pod(0, "Pending"),)), later).status
    assert condition(still, "Running")["lastTransitionTime"] == format_time(now)
    runs = decide(job, still, View(make_child(0), pods=(make_pod(0),)), later).status
    assert condition(runs, "Running")["lastTransitionTime"] == format_time(later)


def test_a_condition_that_a_newer_version_has_left_is_kept(make_job: Make, make_child: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now)
    newer = [{"type": "Fresh", "status": "True", "reason": "New", "message": ""}, *status["conditions"]]
    after = decide(job, {**status, "conditions": newer}, View(make_child(0)), now).status
    assert [found["type"] for found in after["conditions"]] == ["Accepted", "Running", "Fresh"]


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
    assert reason(stop) == ("False", "Cancelling")
    end = decide(cancelled, stop.status, View(pods=(make_pod(0).vanished(),)), now)
    assert (end.status["phase"], reason(end, "Succeeded")) == ("Cancelled", ("False", "Cancelled"))
    assert "failure" not in end.status
    assert decide(make_job(), end.status, View(), now).status == end.status
    assert decide(cancelled, {}, View(), now).status["phase"] == "Cancelled"


def test_nothing_that_was_stored_is_changed_in_place(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    pod = make_pod(0, "Failed", exit_code=1)
    status = decide(job, status, View(make_child(0, "Failed"), pods=(pod,)), now).status
    for spec in ({}, {"runPolicy": {"suspend": True}}, {"runPolicy": {"cancel": True}}):
        for view in (View(), View(make_child(1)), View(make_child(1, "Failed"), pods=(make_pod(0, attempt=1),))):
            before = copy.deepcopy(status)
            decide(make_job(**spec), status, view, now + timedelta(minutes=1))
            assert status == before
