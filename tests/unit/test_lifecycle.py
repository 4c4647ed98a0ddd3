"""The state machine, row by row: what is stored and observed, and what comes next."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from shown import SUCCEEDED, UNSCHEDULABLE, condition, reason, record, running

from trl_contract.cluster import RunPolicy
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.observation import format_time
from trl_operator.plan.view import Told, View
from trl_operator.status.events import events
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]


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


def test_a_blocked_job_creates_nothing_and_is_told_when_to_look_again(make_job: Make, now: datetime) -> None:
    decision = decide(make_job(), {}, View(blocker=Blocker("ConfigMapNotFound", "create it")), now)
    assert not decision.create
    assert "attempt" not in decision.status
    assert decision.status["phase"] == "Pending"
    assert reason(decision, "Accepted") == ("False", "ConfigMapNotFound")
    assert decision.requeue is None


@pytest.mark.parametrize("kind", ["Accepted", "UpstreamReady"])
def test_a_job_whose_name_stays_taken_looks_again_less_and_less_often(make_job: Make, now: datetime, kind: Any) -> None:
    view = View(blocker=Blocker("NameConflict", "delete it", condition=kind, polled=True))
    status: dict[str, Any] = {}
    found = []
    for waited in (0, 10, 60, 300, 9000):
        decision = decide(make_job(), status, view, now + timedelta(seconds=waited))
        status = decision.status
        found.append(decision.requeue)
    assert found == [2, 2, 6, 30, 30]


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
        ('Error creating: admission webhook "policy" denied the request: no such team', "AdmissionDenied"),
        ("Error creating: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", "AdmissionDenied"),
        ('Internal error occurred: failed calling webhook "policy": connection refused', "WebhookUnavailable"),
        ('Error creating: pods "x" is forbidden: no PriorityClass with name gold was found', "PriorityClassNotFound"),
        ("pods is forbidden: maximum cpu usage per Container is 1, but limit is 2", "LimitRangeExceeded"),
        ("Error creating: the server does not like it", "CreateRefused"),
    ],
)
def test_the_newest_refusal_of_a_pod_is_told_in_its_own_words(
    make_job: Make, make_child: Make, now: datetime, newest: str, expected: str
) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(make_child(0), told=Told((newest, "exceeded quota: an old one"))), now)
    assert reason(decision) == ("False", expected)
    assert condition(decision.status, "Running")["message"] == newest
    again = decide(job, decision.status, View(make_child(0)), now)
    assert reason(again) == ("False", "Starting")


def test_a_job_succeeds_with_the_artifacts_of_its_record(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    artifact = {"type": "model", "uri": "u/final", "digest": "sha256:0", "size": 7}
    pod = make_pod(0, "Succeeded", exit_code=0, record={**SUCCEEDED, "artifacts": [artifact]})
    decision = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now)
    place = {"claimName": "tune-dpo", "path": "u/final"}
    assert decision.status["phase"] == "Succeeded"
    assert decision.status["artifacts"] == [{"type": "model", **place, "digest": "sha256:0", "size": 7}]
    assert reason(decision, "Succeeded") == ("True", "Succeeded")
    assert decision.status["completionTime"] == format_time(now)


def test_a_success_says_what_it_has_changed_and_how_to_fetch_it(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    artifact = {"type": "model", "uri": "u/final", "digest": "sha256:0"}
    pod = make_pod(0, "Succeeded", exit_code=0, record={**SUCCEEDED, "artifacts": [artifact]})
    before, after = {"name": "loss", "value": "2.31"}, {"name": "loss", "value": "1.02"}
    skipped = {"name": "runtime", "value": "9"}
    status |= {"run": {"image": "trainer:1", "digest": "sha256:1"}}
    for evaluation, ends in (
        ({"before": [before], "after": [skipped, after]}, "; on held-out rows, loss 2.31 → 1.02"),
        ({"after": [after]}, ""),
        ({}, ""),
    ):
        said = {**status, "evaluation": evaluation}
        done = decide(job, said, View(make_child(0, "Succeeded"), pods=(pod,)), now).status
        assert condition(done, "Finished")["message"] == f"training has finished{ends}"
        assert "tune-files:/claim/u/final tune-model" in done["artifacts"][0]["fetchCommand"]


def test_a_foreign_image_that_leaves_no_record_succeeds_and_this_is_said(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    pod = make_pod(0, "Succeeded", exit_code=0)
    decision = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now)
    assert reason(decision, "Succeeded") == ("True", "NoExitRecord")
    assert "all pods ended with exit code 0" in condition(decision.status, "Succeeded")["message"]


def test_a_success_whose_pods_are_gone_says_that_and_where_to_look(
    make_job: Make, make_child: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(make_child(0, "Succeeded")), now)
    assert reason(decision, "Succeeded") == ("True", "NoExitRecord")
    said = condition(decision.status, "Succeeded")["message"]
    assert said.endswith(f"look into folder {job.uid} of PersistentVolumeClaim tune-dpo")
    artifact = {"type": "model", "path": "u/final", "digest": "sha256:0"}
    progress = {"attempt": 0, "activity": "exporting", "display": "4/4", "step": 4, "totalSteps": 4}
    progress |= {"lastUpdateTime": format_time(now), "artifacts": [artifact]}
    decision = decide(job, {**status, "progress": progress}, View(make_child(0, "Succeeded")), now)
    assert decision.status["artifacts"] == [{**artifact, "claimName": "tune-dpo"}]
    assert condition(decision.status, "Succeeded")["message"].endswith("artifacts are those of its last report")
    earlier = {**progress, "attempt": 1}
    assert "artifacts" not in decide(job, {**status, "progress": earlier}, View(make_child(0, "Succeeded")), now).status


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


def test_a_pytorchjob_that_is_gone_is_a_failed_attempt(make_job: Make, make_child: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(), now)
    assert reason(decision) == ("False", "ChildDeleted")
    assert decision.status["attempt"] == 1


def test_an_attempt_that_somebody_suspends_waits_for_them(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now, runPolicy={"activeDeadlineSeconds": 60})
    suspended = replace(make_child(0), suspended_by="kubectl-patch")
    decision = decide(job, status, View(suspended, pods=(make_pod(0).vanished(),)), now)
    assert (decision.status["phase"], reason(decision)) == ("Starting", ("False", "WorkloadSuspended"))
    assert "by kubectl-patch" in condition(decision.status, "Running")["message"]
    assert (decision.delete, decision.requeue) == ([], 60)
    cancelled = make_job(runPolicy={"cancel": True})
    assert decide(cancelled, decision.status, View(suspended), now).delete == [suspended]


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


def test_a_workload_of_which_a_pod_has_failed_is_left_to_end_the_others_and_to_say_so(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    """A TrainJob says that it has failed once all its pods have ended; deleted before, it takes their logs away."""
    job, status = running(
        make_job, make_child, now, numNodes=2, storage={"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    )
    status = decide(job, status, View(make_child(0), pods=(make_pod(0), make_pod(1))), now).status
    failed, ending = make_pod(0, "Failed", exit_code=1), make_pod(1, deleted_at=format_time(now))
    one = decide(job, status, View(make_child(0), pods=(failed, ending)), now)
    assert (one.status["phase"], reason(one), one.delete) == ("Restarting", ("False", "Stopping"), [])
    ended = (failed, make_pod(1, "Failed", exit_code=143))
    two = decide(job, one.status, View(make_child(0), pods=ended), now)
    assert (two.status, two.delete) == (one.status, [])
    three = decide(job, two.status, View(make_child(0, "Failed"), pods=ended), now)
    assert (three.status["attempt"], three.status["restarts"]) == (1, 1)
    # On a lost node nobody ends it, and nobody says so.
    late = now + timedelta(seconds=61)
    lost = decide(job, one.status, View(make_child(0), pods=(failed, ending)), late)
    assert (lost.status["attempt"], lost.status["restarts"]) == (1, 1)
    # Nor does the last attempt's keep what it was given.
    once = replace(job, cluster=job.cluster.model_copy(update={"run_policy": RunPolicy(maxRestarts=0)}))
    end = decide(once, one.status, View(make_child(0), pods=(failed, ending)), late)
    assert (end.status["phase"], [child.uid for child in end.delete]) == ("Failed", ["child-0"])


def test_a_pod_that_failed_and_is_gone_ends_the_attempt_though_its_workload_makes_it_anew(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    pods = (make_pod(0, "Failed", exit_code=143).vanished(), make_pod(0))
    decision = decide(job, status, View(make_child(0), pods=pods), now)
    assert [child.uid for child in decision.delete] == ["child-0"]


def test_an_attempt_that_should_not_be_alive_is_deleted(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, status = running(make_job, make_child, now)
    decision = decide(job, status, View(make_child(0), (make_child(3),), (make_pod(0),)), now)
    assert [child.attempt for child in decision.delete] == [3]


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


def test_what_a_pod_waits_for_is_told_once(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now)
    view = View(make_child(0), pods=(make_pod(0, "Pending", conditions=[UNSCHEDULABLE]),))
    waits = decide(job, status, view, now).status
    assert [(e.type, e.reason) for e in events(status, waits)] == [("Warning", "Unschedulable")]
    assert events(waits, decide(job, waits, view, now).status) == []


def test_terminal_is_terminal(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    job, status = running(make_job, make_child, now)
    pod = make_pod(0, "Succeeded", exit_code=0, record=SUCCEEDED)
    done = decide(job, status, View(make_child(0, "Succeeded"), pods=(pod,)), now).status
    later = decide(job, done, View(), now + timedelta(days=9))
    assert later.status == done
    assert not later.create
    assert not later.delete_job


@pytest.mark.parametrize("ended", ["Succeeded", "Failed", "Cancelled"])
def test_a_job_that_ended_under_version_0_1_says_what_others_wait_for(
    make_job: Make, now: datetime, ended: str
) -> None:
    said = {"type": "Succeeded", "status": str(ended == "Succeeded"), "reason": ended, "message": "it is over"}
    at = {"lastTransitionTime": format_time(now), "observedGeneration": 1}
    stored = {"phase": ended, "attempt": 0, "completionTime": format_time(now), "conditions": [{**said, **at}]}
    told = decide(make_job(), stored, View(), now + timedelta(days=9)).status
    found = {each["type"]: each["status"] for each in told["conditions"]}
    expected = {"Running": "False", "Finished": "True"} | {k: str(k == ended) for k in ("Succeeded", "Failed")}
    assert found == expected | ({"Stalled": "True"} if ended == "Failed" else {})
    assert (told["completionTime"], told["phase"]) == (format_time(now), ended)
    assert decide(make_job(), told, View(), now + timedelta(days=10)).status == told


def test_conditions_that_follow_from_the_spec_are_shown(make_job: Make, now: datetime) -> None:
    off = decide(make_job(evaluation={"enabled": False}), {}, View(), now)
    assert reason(off, "EvaluationSkipped") == ("True", "Disabled")
    rows = {"train": {"configMap": {"name": "rows", "key": "train.jsonl"}}, "evalSplit": 0}
    assert reason(decide(make_job(dataset=rows), {}, View(), now), "EvaluationSkipped") == ("True", "NoHeldOutRows")
    said = {"evaluation": {"skipped": {"reason": "HeldOutRowsDropped", "message": "2 of 2 held-out rows"}}}
    assert "EvaluationSkipped" not in {
        found["type"] for found in decide(make_job(), {}, View(), now).status["conditions"]
    }
    assert reason(decide(make_job(), said, View(), now), "EvaluationSkipped") == ("True", "HeldOutRowsDropped")
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
    newer = [{**status["conditions"][0], "type": "Fresh"}, *status["conditions"]]
    after = decide(job, {**status, "conditions": newer}, View(make_child(0)), now).status
    assert [found["type"] for found in after["conditions"]] == ["Accepted", "Running", "Reconciling", "Fresh"]


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
