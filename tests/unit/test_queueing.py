"""policy/queueing.py: attempts that wait for Kueue, and what becomes of them when it takes back what it gave."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from shown import condition, reason

from trl_operator.api.job import Job, parse_job
from trl_operator.backend.pytorchjob import manifest
from trl_operator.constants import LABEL_QUEUE, LABEL_QUEUE_PRIORITY
from trl_operator.plan.acceptance import check_spec
from trl_operator.plan.admission import NOT_ENABLED, NOT_INSTALLED, Admission, admission_from
from trl_operator.plan.observation import Child
from trl_operator.plan.view import View
from trl_operator.render.manifests import Installation
from trl_operator.status.decision import Decision
from trl_operator.status.events import events
from trl_operator.status.lifecycle import decide
from trl_operator.store.admissions import Admissions
from trl_operator.store.store import Store

Make = Callable[..., Any]

INSTALLATION = Installation("example.com/trainer@sha256:0", "https://op.trl.svc:10443", "-----CA-----")
SHORT = "couldn't assign flavors to pod set worker: insufficient unused quota for cpu in flavor spot, 1 more needed"
WAITS = ("Pending", f"LocalQueue team: {SHORT}")
GIVEN = "ClusterQueue all: cpu/memory of flavor spot"
ADMITTED = Admission(known=True, admitted=True, place=GIVEN)
PREEMPTED = ("Preempted", "to accommodate a workload of higher priority")
LOST = replace(ADMITTED, evicted=PREEMPTED)
TAKEN = Admission(WAITS, known=True, was_admitted=True, evicted=PREEMPTED)


def workload(*conditions: tuple[str, str, str, str], active: bool = True, **status: Any) -> dict[str, Any]:
    """A Workload of attempt 0 as Kueue writes it."""
    owner = {"kind": "PyTorchJob", "name": "tune-dpo-0", "uid": "child-0", "controller": True}
    metadata = {"namespace": "team", "name": "pytorchjob-tune", "uid": "w", "resourceVersion": "7"}
    told = [dict(zip(("type", "status", "reason", "message"), found, strict=True)) for found in conditions]
    return {
        "metadata": {**metadata, "ownerReferences": [owner]},
        "spec": {"queueName": "team", "active": active},
        "status": {"conditions": told, **status},
    }


def waiting(child: Child, queue: str = "team", priority: str = "") -> Child:
    return replace(child, suspended_by="trl-operator", queue=queue, queue_priority=priority)


def queued(job: Job, child: Child, now: datetime, admission: Admission = Admission(WAITS, known=True)) -> Decision:  # noqa: B008
    first = decide(job, {}, View(admission=admission), now)
    child = child if child.suspended_by else waiting(child)
    return decide(job, first.status, View(child, admission=admission), now)


@pytest.fixture
def job(make_job: Make) -> Job:
    found: Job = make_job(queue={"name": "team"})
    return found


@pytest.fixture
def runs(job: Job, make_child: Make, make_pod: Make, now: datetime) -> dict[str, Any]:
    """The status of the job while its attempt, which was admitted, runs."""
    child = replace(make_child(0), queue="team")
    status = queued(job, make_child(0), now).status
    return decide(job, status, View(child, pods=(make_pod(0),), admission=ADMITTED), now).status


# -- what is sent


def test_the_workload_of_a_queued_job_is_made_suspended_with_kueues_labels_and_topology(make_job: Make) -> None:
    rack = "cloud.provider.com/rack"
    found = manifest(
        make_job(queue={"name": "team", "priorityClass": "high", "topology": {"required": rack}}), 0, INSTALLATION
    )
    labels, template = found["metadata"]["labels"], found["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    assert (labels[LABEL_QUEUE], labels[LABEL_QUEUE_PRIORITY]) == ("team", "high")
    assert found["spec"]["runPolicy"]["suspend"] is True
    assert template["metadata"]["annotations"]["kueue.x-k8s.io/podset-required-topology"] == rack
    assert LABEL_QUEUE not in template["metadata"]["labels"], "a pod with the label would be a workload by itself"
    anywhere = manifest(make_job(queue={"name": "team", "topology": {"unconstrained": True}}), 0, INSTALLATION)
    annotations = anywhere["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["metadata"]["annotations"]
    assert annotations["kueue.x-k8s.io/podset-unconstrained-topology"] == "true"


def test_the_label_of_a_job_means_the_same_as_the_name_in_its_spec(job_object: Make) -> None:
    obj = job_object()
    obj["metadata"]["labels"] = {LABEL_QUEUE: "team"}
    job = parse_job(obj)
    assert check_spec(job) is None
    made = manifest(job, 0, INSTALLATION)
    assert (made["metadata"]["labels"][LABEL_QUEUE], made["spec"]["runPolicy"]["suspend"]) == ("team", True)
    obj["spec"]["queue"] = {"name": "team"}
    assert check_spec(parse_job(obj)) is None
    obj["spec"]["queue"] = {"name": "other"}
    blocker = check_spec(parse_job(obj))
    assert blocker is not None
    assert (blocker.reason, "queue.name is other" in blocker.message) == ("QueueNamesDiffer", True)


# -- what Kueue says


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (
            workload(),
            (
                "Pending",
                "LocalQueue team: Kueue has not said why Workload pytorchjob-tune waits: others like it come first",
            ),
        ),
        (workload(("QuotaReserved", "False", "Pending", SHORT)), ("Pending", f"LocalQueue team: {SHORT}")),
        (
            workload(("QuotaReserved", "False", "Inadmissible", "LocalQueue team doesn't exist")),
            ("Inadmissible", "LocalQueue team doesn't exist"),
        ),
        (
            workload(
                ("QuotaReserved", "True", "QuotaReserved", ""),
                admissionChecks=[
                    {"name": "ready", "state": "Ready", "message": ""},
                    {"name": "nodes", "state": "Pending", "message": "0 of 2 are there"},
                ],
            ),
            ("AdmissionChecksPending", "quota is reserved; admission checks: nodes is Pending: 0 of 2 are there"),
        ),
        (
            workload(("Evicted", "True", "Deactivated", "by an administrator"), active=False),
            (
                "Deactivated",
                "Workload pytorchjob-tune: by an administrator; set its spec.active to true, or cancel the job",
            ),
        ),
        (
            workload(("Finished", "True", "FailedToStart", "no such selector")),
            ("FailedToStart", "Workload pytorchjob-tune is over: no such selector: cancel the job"),
        ),
    ],
)
def test_a_queued_job_says_in_kueues_words_for_what_it_waits(
    job: Job, make_child: Make, now: datetime, obj: dict[str, Any], expected: tuple[str, str]
) -> None:
    status = queued(job, make_child(0), now, admission_from(obj)).status
    said = condition(status, "Queued")
    assert (said["status"], said["reason"], said["message"]) == ("True", *expected)
    assert status["phase"] == "Queued"
    assert status["waiting"] == {"reason": expected[0], "message": expected[1]}
    assert (condition(status, "Running")["reason"], status["restarts"]) == ("Queued", 0)


def test_of_an_admitted_workload_quota_and_flavor_are_said(job: Job, runs: dict[str, Any]) -> None:
    given = {"podSetAssignments": [{"name": "worker", "flavors": {"memory": "spot", "cpu": "spot"}}]}
    found = admission_from(workload(("Admitted", "True", "Admitted", ""), admission={"clusterQueue": "all", **given}))
    assert (found.admitted, found.place) == (True, GIVEN)
    assert runs["phase"] == "Running"
    said = condition(runs, "Queued")
    assert (said["status"], said["reason"], said["message"]) == ("False", "Admitted", f"admitted by {GIVEN}")


def test_a_job_that_waits_in_a_queue_is_under_way_and_its_place_is_told_once(
    job: Job, runs: dict[str, Any], make_child: Make, now: datetime
) -> None:
    waits, admitted = (
        queued(job, make_child(0), now, found).status for found in (Admission(WAITS, known=True), ADMITTED)
    )
    said = condition(waits, "Reconciling")
    assert (said["status"], said["reason"]) == ("True", "Pending")
    story = ({}, waits, waits, admitted, runs, runs)
    told = [[f"{event.type} {event.reason}" for event in events(a, b)] for a, b in pairwise(story)]
    started = "Normal AttemptStarted"
    assert told == [["Normal Pending", started], [], ["Normal Admitted"], ["Normal Running"], []]
    assert "Normal Admitted" in [f"{event.type} {event.reason}" for event in events(waits, runs)]


@pytest.mark.parametrize("why", [NOT_ENABLED, NOT_INSTALLED])
def test_a_job_stays_queued_and_says_so_where_kueue_says_nothing(
    job: Job, make_child: Make, make_pod: Make, now: datetime, why: tuple[str, str]
) -> None:
    decision = queued(job, make_child(0), now, Admission(why))
    said = condition(decision.status, "Queued")
    assert (decision.status["phase"], said["reason"], said["message"]) == ("Queued", *why)
    assert (decision.delete, decision.requeue) == ([], None)
    runs = decide(job, decision.status, View(make_child(0), pods=(make_pod(0),), admission=Admission(why)), now)
    assert (runs.status["phase"], reason(runs, "Queued")) == ("Running", ("False", "Admitted"))
    again = View(waiting(make_child(0)), pods=(make_pod(0).vanished(),), admission=Admission(why))
    assert reason(decide(job, runs.status, again, now)) == ("False", "EvictedByKueue")


def test_a_job_whose_queue_is_removed_while_it_waits_leaves_it(make_job: Make, make_child: Make, now: datetime) -> None:
    waits = queued(make_job(queue={"name": "team"}), make_child(0), now).status
    decision = decide(make_job(), waits, View(waiting(make_child(0)), admission=Admission(NOT_INSTALLED)), now)
    assert ([child.uid for child in decision.delete], reason(decision)) == (["child-0"], ("False", "QueueChanged"))
    # A label that Kueue itself has put on the workload of a job without a queue is none of the job's.
    by_default = View(waiting(make_child(0), queue="default"), admission=Admission(WAITS, known=True))
    decision = decide(make_job(), {**waits, "conditions": []}, by_default, now)
    assert (decision.delete, decision.status["phase"]) == ([], "Queued")


def test_one_that_is_admitted_and_not_yet_let_go_still_waits(job: Job, make_child: Make, now: datetime) -> None:
    decision = queued(job, make_child(0), now, ADMITTED)
    assert (decision.status["phase"], reason(decision, "Queued")) == ("Queued", ("True", "Admitted"))
    assert decision.delete == []


# -- what it takes back


def test_an_evicted_attempt_ends_at_no_cost_and_the_next_one_queues_once_no_pod_is_left(
    job: Job, runs: dict[str, Any], make_child: Make, make_pod: Make, now: datetime
) -> None:
    child, pod = replace(make_child(0), queue="team"), make_pod(0, deleted_at="2026-11-21T12:05:00Z")
    ends = decide(job, runs, View(child, pods=(pod,), admission=LOST), now)
    assert (ends.delete, ends.status["phase"]) == ([child], "Restarting")
    assert reason(ends) == ("False", "EvictedByKueue")
    assert "Preempted: to accommodate a workload" in condition(ends.status, "Running")["message"]
    still = decide(job, ends.status, View(pods=(pod,)), now)
    assert (still.status["attempt"], still.create, still.delete) == (0, False, [])
    over = decide(job, still.status, View(pods=(pod.vanished(),)), now)
    assert (over.status["attempt"], over.status["restarts"], over.requeue) == (1, 1, 0)
    assert over.status["retry"]["counted"] == 0
    assert "notBefore" not in over.status["retry"]
    assert condition(over.status, "Queued") == {}
    following = decide(job, over.status, View(admission=Admission()), now)
    assert (following.create, following.status["phase"], reason(following)) == (True, "Queued", ("False", "Queued"))


def test_evictions_are_free_however_often(make_job: Make, make_child: Make, make_pod: Make, now: datetime) -> None:
    job = make_job(queue={"name": "team"}, runPolicy={"maxRestarts": 0})
    status: dict[str, Any] = {}
    for attempt in range(12):
        started = decide(job, status, View(), now)
        assert started.create
        child = replace(make_child(attempt), queue="team")
        running = View(child, pods=(make_pod(0, attempt=attempt),), admission=ADMITTED)
        evicted = replace(running, admission=LOST)
        gone = View(pods=(make_pod(0, attempt=attempt).vanished(),))
        status = started.status
        for view in (running, evicted, gone):
            status = decide(job, status, view, now).status
    assert (status["attempt"], status["retry"]["counted"], status["retry"]["inARow"]) == (12, 0, 0)


@pytest.mark.parametrize(
    ("suspended", "pods", "said", "admission"),
    [
        # Kueue has decided, and has yet to suspend.
        (False, True, True, LOST),
        # All of it was missed but the end.
        (True, False, False, TAKEN),
        (True, False, False, replace(TAKEN, evicted=None)),
        # Somebody has deleted the Workload.
        (True, True, False, Admission()),
        (True, False, True, Admission(WAITS, known=True)),
    ],
)
def test_whatever_is_seen_of_an_eviction_the_attempt_has_no_second_life(
    job: Job, runs: dict[str, Any], make_child: Make, make_pod: Make, now: datetime,
    suspended: bool, pods: bool, said: bool, admission: Admission,
) -> None:  # fmt: skip
    before = runs if said else queued(job, make_child(0), now).status
    child = waiting(make_child(0)) if suspended else replace(make_child(0), queue="team")
    view = View(child, pods=(make_pod(0).vanished(),) if pods else (), admission=admission)
    decision = decide(job, before, view, now)
    assert (decision.delete, reason(decision)) == ([child], ("False", "EvictedByKueue"))


def test_an_attempt_that_kueue_saw_not_start_in_time_is_followed_after_a_pause(
    job: Job, make_child: Make, make_pod: Make, now: datetime
) -> None:
    late = replace(ADMITTED, evicted=("PodsReadyTimeout", "Exceeded the PodsReady timeout team/tune"))
    status, child = queued(job, make_child(0), now).status, replace(make_child(0), queue="team")
    status = decide(job, status, View(child, pods=(make_pod(0, "Pending"),), admission=ADMITTED), now).status
    assert status["phase"] == "Starting"
    status = decide(job, status, View(waiting(child), admission=late), now).status
    after = decide(job, status, View(), now)
    assert reason(after) == ("False", "StartTimeout")
    assert (after.requeue, after.status["retry"]["counted"]) == (10, 0)


def test_a_workload_that_is_not_active_keeps_its_attempt_until_it_is(
    job: Job, runs: dict[str, Any], make_child: Make, make_pod: Make, now: datetime
) -> None:
    child, gone = waiting(make_child(0)), (make_pod(0).vanished(),)
    off = Admission(("Deactivated", "by an administrator"), known=True, was_admitted=True, active=False)
    held = decide(job, runs, View(child, pods=gone, admission=off), now)
    assert (held.delete, held.status["phase"], reason(held, "Queued")) == ([], "Queued", ("True", "Deactivated"))
    on = decide(job, held.status, View(child, pods=gone, admission=replace(off, active=True)), now)
    assert (on.delete, reason(on)) == ([child], ("False", "EvictedByKueue"))


def test_where_kueue_manages_all_jobs_one_without_a_queue_waits_and_ends_alike(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job, child = make_job(), replace(make_child(0), suspended_by="kueue")
    status = decide(job, {}, View(), now).status
    assert status["phase"] == "Starting"
    waits = decide(job, status, View(child, admission=Admission(WAITS, known=True)), now)
    assert (waits.status["phase"], reason(waits, "Queued")) == ("Queued", ("True", "Pending"))
    runs = decide(job, waits.status, View(make_child(0), pods=(make_pod(0),), admission=ADMITTED), now)
    assert reason(runs, "Queued") == ("False", "Admitted")
    assert reason(decide(job, runs.status, View(child, admission=LOST), now)) == ("False", "EvictedByKueue")


@pytest.mark.parametrize(
    "admission",
    [Admission(NOT_ENABLED), Admission(), Admission(("Inadmissible", "LocalQueue  doesn't exist"), known=True)],
    ids=["not enabled", "not yet seen", "seen"],
)
def test_a_job_without_a_queue_that_is_held_back_at_its_creation_says_what_is_missing(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime, admission: Admission
) -> None:
    status, child = decide(make_job(), {}, View(), now).status, replace(make_child(0), suspended_by="trl-operator")
    waits = decide(make_job(), status, View(child, admission=admission), now)
    said = condition(waits.status, "Queued")
    assert (waits.delete, waits.status["phase"], said["reason"]) == ([], "Queued", "QueueNotNamed")
    assert "manageJobsWithoutQueueName): set queue.name to a LocalQueue of namespace team" in said["message"]
    named = decide(make_job(queue={"name": "team"}), waits.status, View(child, admission=admission), now)
    assert (named.delete, reason(named)) == ([child], ("False", "QueueChanged"))
    freed = decide(make_job(), waits.status, View(make_child(0), pods=(make_pod(0),), admission=Admission()), now)
    assert freed.status["phase"] == "Running"
    assert {found["type"] for found in freed.status["conditions"]}.isdisjoint({"Queued"}), "it is let go by hand"
    assert "waiting" not in freed.status


# -- another queue


def test_a_job_that_waits_moves_to_the_queue_that_it_now_names(make_job: Make, make_child: Make, now: datetime) -> None:
    job = make_job(queue={"name": "team", "priorityClass": "low"})
    child = waiting(make_child(0), priority="low")
    status = queued(job, child, now).status
    still = View(waiting(child, priority="low"), admission=Admission(WAITS, known=True))
    assert decide(job, status, still, now).status["phase"] == "Queued"
    job = make_job(queue={"name": "team", "priorityClass": "high"})
    ends = decide(job, status, still, now)
    assert (ends.delete, reason(ends)) == ([still.child], ("False", "QueueChanged"))
    said = condition(ends.status, "Running")["message"]
    assert said == (
        "attempt 0 is in queue team with priorityClass low, and its job is now for queue team with priorityClass high"
    )
    over = decide(job, ends.status, View(), now)
    assert (over.status["attempt"], over.status["retry"]["counted"], over.requeue) == (1, 0, 0)


def test_an_attempt_that_runs_stays_in_its_queue_and_says_so(
    make_job: Make, runs: dict[str, Any], make_child: Make, make_pod: Make, now: datetime
) -> None:
    child = replace(make_child(0), queue="team")
    view = View(child, pods=(make_pod(0),), admission=ADMITTED)
    status = decide(make_job(queue={"name": "other"}), runs, view, now).status
    assert status["phase"] == "Running"
    assert condition(status, "Queued")["message"].endswith("job is now for queue other: the next attempt goes there")


def test_a_queue_that_kueue_has_chosen_for_a_job_without_one_is_no_other_queue(
    make_job: Make, make_child: Make, now: datetime
) -> None:
    job = make_job()
    status = decide(job, {}, View(), now).status
    view = View(waiting(make_child(0), "default"), admission=Admission(WAITS, known=True))
    assert decide(job, status, view, now).delete == []


# -- wishes, and time


@pytest.mark.parametrize(("wish", "phase"), [("suspend", "Suspended"), ("cancel", "Cancelled")])
def test_a_queued_job_that_is_to_stop_leaves_its_queue(
    make_job: Make, job: Job, make_child: Make, now: datetime, wish: str, phase: str
) -> None:
    status, child = queued(job, make_child(0), now).status, waiting(make_child(0))
    wished = make_job(queue={"name": "team"}, runPolicy={wish: True})
    stops = decide(wished, status, View(child, admission=Admission(WAITS, known=True)), now)
    assert (stops.delete, stops.status["phase"]) == ([child], "Stopping")
    over = decide(wished, stops.status, View(), now)
    assert (over.status["phase"], condition(over.status, "Queued")) == (phase, {})


def test_the_deadline_holds_in_a_queue_and_says_what_was_waited_for(
    make_job: Make, make_child: Make, now: datetime
) -> None:
    job = make_job(queue={"name": "team"}, runPolicy={"activeDeadlineSeconds": 60})
    waits = queued(job, make_child(0), now)
    assert waits.requeue == 60
    view = View(waiting(make_child(0)), admission=Admission(WAITS, known=True))
    late = decide(job, waits.status, view, now + timedelta(seconds=60))
    assert reason(late) == ("False", "DeadlineExceeded")
    assert condition(late.status, "Running")["message"].endswith(f"it waited for: Pending: LocalQueue team: {SHORT}")


# -- what is kept of Workloads


def test_the_newest_workload_of_an_attempt_has_the_word_and_those_of_others_are_not_kept(make_child: Make) -> None:
    known = Admissions(Store(), enabled=True)
    [watched] = known.watched()
    child = make_child(0)
    assert known.of(child) == Admission()
    first = workload(("QuotaReserved", "False", "Pending", SHORT))
    known.put(first)
    assert known.of(child).waits == WAITS
    stale = workload()
    stale["metadata"]["resourceVersion"] = "6"
    known.put(stale)
    assert known.of(child).waits == WAITS
    other = workload(("Admitted", "True", "Admitted", ""))
    other["metadata"] |= {"uid": "x", "resourceVersion": "9"}
    other["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "j", "uid": "child-0", "controller": True}]
    known.put(other)
    assert not known.of(child).admitted
    watched.sweep(["elsewhere"], set(), 10)
    watched.sweep([], set(), 6)
    assert known.of(child).known
    watched.sweep([], set(), 7)
    assert known.of(child) == Admission()
    known.put(first)
    watched.drop(first)
    assert known.of(child) == Admission()
    assert Admissions(Store(), enabled=False).of(child) == Admission(NOT_ENABLED)
