"""The loop from observation to writes, against an API server in memory."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from fake_kube import FakeKube

from trl_operator.errors import ApiError, LeaseLost
from trl_operator.metrics import ControllerMetrics
from trl_operator.reconcile import Reconciler
from trl_operator.render.manifests import Installation
from trl_operator.store.needs import Needs
from trl_operator.store.queue import WorkQueue
from trl_operator.store.store import Store
from trl_operator.worker import work

WORKLOAD = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "tune-dpo-0", "uid": "child-0"}
KEY = ("DPOJob", "team", "tune")
Objects = Callable[..., dict[str, Any]]


class Lease:
    held = True

    def check(self) -> None:
        if not self.held:
            raise LeaseLost


class World:
    """A job `tune` whose attempt 0 runs, and a reconciler; the store knows the job only."""

    def __init__(self, job: dict[str, Any], now: datetime, *, boosts: bool = False) -> None:
        self.kube = FakeKube()
        self.store = Store()
        self.needs = Needs(self.store, kueue=boosts, boosts=boosts)
        self.lease = Lease()
        self.metrics = ControllerMetrics()
        self.now = now
        self.installation = Installation("trainer:1", "https://op:10443", "CA")
        self.reconciler = Reconciler(
            self.kube,  # type: ignore[arg-type]
            self.store,
            self.needs,
            self.lease,  # type: ignore[arg-type]
            lambda: self.installation,
            "test",
            lambda _: True,
            self.metrics,
            lambda: self.now,
        )
        self.store.put_job(self.kube.put("dpojobs", {**job, "status": {}}))

    def reconcile(self) -> float | None:
        return asyncio.run(self.reconciler.reconcile(KEY))

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.kube.objects["dpojobs", "team", "tune"]["status"])

    def told(self) -> list[str]:
        """The reasons of the events that were written."""
        return [obj["reason"] for (plural, _, _), obj in self.kube.objects.items() if plural == "events"]

    def progress(self, **fields: Any) -> None:
        """The receiver writes a report."""
        job = self.kube.objects["dpojobs", "team", "tune"]
        self.kube.put("dpojobs", {**job, "status": {**job["status"], "progress": fields}})


@pytest.fixture
def world(job_object: Objects, child_object: Objects, pod_object: Objects, now: datetime) -> World:
    return runs(World(job_object(), now), child_object, pod_object)


def runs(world: World, child_object: Objects, pod_object: Objects) -> World:
    running = {"attempt": 0, "restarts": 0, "workload": WORKLOAD}
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.store.put_job(world.kube.put("dpojobs", {**job, "status": running}))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0)))
    world.store.put_pod(world.kube.put("pods", pod_object(0)))
    world.reconcile()
    assert world.status["phase"] == "Running"
    return world


def said(step: int, second: int, **fields: Any) -> dict[str, Any]:
    time = f"2026-11-21T11:30:{second:02d}.000000Z"
    return {"step": step, "totalSteps": 40, "lastUpdateTime": time, **fields}


def record(outcome: str, **fields: Any) -> dict[str, Any]:
    return {"outcome": outcome, "time": "2026-11-21T11:30:00Z", **fields}


def stored(step: int, second: int) -> dict[str, Any]:
    """A report as the receiver writes it into the status."""
    shown = {
        "attempt": 0,
        "activity": "exporting",
        "display": f"{step}/40",
        "percentage": 99,
        "eta": "9s",
        "etaSeconds": 9,
    }
    return {**shown, **said(step, second)}


@pytest.mark.parametrize("reported_at", [None, 1, 5, 9], ids=["never", "before", "with", "after"])
def test_a_job_that_succeeds_ends_at_100_percent_whenever_its_last_report_came(
    world: World, child_object: Objects, pod_object: Objects, reported_at: int | None
) -> None:
    if reported_at is not None:
        world.progress(**stored(40, reported_at))
    pod = pod_object(0, "Succeeded", exit_code=0, record=record("Succeeded", progress=said(40, 5)))
    world.store.put_pod(world.kube.put("pods", pod))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Succeeded")))
    world.reconcile()
    progress = world.status["progress"]
    assert world.status["phase"] == "Succeeded"
    assert (progress["display"], progress["percentage"]) == ("40/40", 100)
    assert not progress.keys() & {"eta", "etaSeconds"}


def test_the_last_words_are_not_lost_when_the_pytorchjobs_event_overtakes_the_pods(
    world: World, child_object: Objects, pod_object: Objects
) -> None:
    words = record("Succeeded", progress=said(40, 5, evaluation={"after": [{"name": "accuracy", "value": "0.97"}]}))
    world.kube.put("pods", pod_object(0, "Succeeded", exit_code=0, record=words))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Succeeded")))
    world.reconcile()
    assert world.status["phase"] == "Succeeded"
    assert world.status["progress"]["percentage"] == 100
    assert world.status["evaluation"]["after"] == [{"name": "accuracy", "value": "0.97"}]


def test_the_newest_checkpoint_counts_though_only_the_record_of_a_pod_not_yet_seen_names_it(
    world: World, child_object: Objects, pod_object: Objects
) -> None:
    checkpoint = {"step": 30, "path": "u/checkpoint-30", "time": "2026-11-21T11:29:00Z"}
    words = record("Preempted", reason="Preempted", progress=said(30, 5, checkpoints=[checkpoint]))
    world.kube.put("pods", pod_object(0, "Failed", exit_code=143, record=words))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Failed")))
    world.reconcile()
    assert [reason for reason in world.told() if reason != "Running"] == ["FirstCheckpoint", "AttemptFailed"]
    assert world.status["attempt"] == 1
    assert world.status["retry"]["checkpointStep"] == 30
    assert world.status["checkpoints"] == [checkpoint]


def test_words_that_the_api_server_refuses_do_not_keep_a_job_from_ending(
    world: World, child_object: Objects, pod_object: Objects
) -> None:
    pod = pod_object(0, "Succeeded", exit_code=0, record=record("Succeeded", progress=said(40, 5)))
    world.store.put_pod(world.kube.put("pods", pod))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Succeeded")))
    code = 503

    def refuse(status: dict[str, Any]) -> None:
        if "progress" in status:
            raise ApiError(code, "no")

    world.kube.refuse = refuse
    with pytest.raises(ApiError):
        world.reconcile()
    assert world.status["phase"] == "Running", "what can be written later is waited for"
    code = 422
    world.reconcile()
    assert world.status["phase"] == "Succeeded"
    assert 'trl_operator_last_words_total{result="refused"} 1' in world.metrics.render()


def broken(world: World) -> None:
    """The stored spec is one that a newer rule refuses."""
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.store.put_job(world.kube.put("dpojobs", {**job, "spec": {**job["spec"], "numNodes": 0}}))


def newer(world: World) -> None:
    """The CRD has a field, with a default, that this operator does not know."""
    job = world.kube.objects["dpojobs", "team", "tune"]
    training = {**job["spec"].get("training", {}), "surprise": 1}
    spec = {**job["spec"], "training": training, "another": {"a": 1}}
    world.store.put_job(world.kube.put("dpojobs", {**job, "spec": spec}))


def test_a_job_that_is_told_for_the_first_time_is_not_read_once_more(
    job_object: Objects, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}}
    world = World(job_object(dataset=rows), now)
    read: list[str] = []
    get = world.kube.get

    async def noted(resource: Any, namespace: str, name: str) -> dict[str, Any] | None:
        read.append(resource.plural)
        return await get(resource, namespace, name)

    monkeypatch.setattr(world.kube, "get", noted)
    world.reconcile()
    assert (world.status["attempt"], read) == (0, [])
    world.reconcile()
    assert "dpojobs" in read, "what it looks at is live from then on"


def test_a_job_that_has_changed_since_it_was_told_is_read(job_object: Objects, now: datetime) -> None:
    world = World(job_object(), now)
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.kube.put("dpojobs", {**job, "spec": {**job["spec"], "runPolicy": {"cancel": True}}})
    with pytest.raises(ApiError, match="modified"):
        world.reconcile()
    assert not world.kube.writes
    world.reconcile()
    assert world.status["phase"] == "Cancelled"


def test_a_job_that_is_changed_just_before_its_ttl_is_over_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.kube.objects["dpojobs", "team", "tune"]
    ended = {**job["status"], "phase": "Succeeded", "completionTime": "2026-11-20T11:40:00Z", "conditions": []}
    short = {**job["spec"], "runPolicy": {"ttlSecondsAfterFinished": 60}}
    world.store.put_job(world.kube.put("dpojobs", {**job, "spec": short, "status": ended}))
    delete = world.kube.delete

    async def changed_first(*args: Any) -> bool:
        longer = {**short, "runPolicy": {"ttlSecondsAfterFinished": 10_000_000}}
        world.kube.put("dpojobs", {**world.kube.objects["dpojobs", "team", "tune"], "spec": longer})
        return await delete(*args)

    monkeypatch.setattr(world.kube, "delete", changed_first)
    with pytest.raises(ApiError, match="modified"):
        world.reconcile()
    world.reconcile()
    assert ("dpojobs", "team", "tune") in world.kube.objects


def test_a_spec_that_cannot_be_read_is_told_and_leaves_phase_and_end_of_what_has_begun(
    world: World, child_object: Objects, pod_object: Objects
) -> None:
    broken(world)
    world.reconcile()
    accepted = next(c for c in world.status["conditions"] if c["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"], world.status["phase"]) == ("False", "InvalidSpec", "Running")
    world.reconcile()
    assert world.told().count("InvalidSpec") == 1
    job = world.kube.objects["dpojobs", "team", "tune"]
    ended = {**job["status"], "phase": "Succeeded", "completionTime": "2026-11-21T11:40:00Z", "conditions": []}
    world.kube.put("dpojobs", {**job, "status": ended})
    world.reconcile()
    assert world.status == ended


def test_a_spec_that_cannot_be_read_waits_as_pending(job_object: Objects, now: datetime) -> None:
    world = World(job_object(), now)
    broken(world)
    world.reconcile()
    assert world.status["phase"] == "Pending"


def test_fields_of_a_newer_crd_do_not_disturb_a_job_that_has_an_attempt(
    world: World, child_object: Objects, pod_object: Objects
) -> None:
    newer(world)
    before = world.status
    world.reconcile()
    assert world.status == before
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.kube.put("dpojobs", {**job, "spec": {**job["spec"], "runPolicy": {"cancel": True}}})
    world.reconcile()
    assert ("pytorchjobs", "team", "tune-dpo-0") not in world.kube.objects, "it obeys"


def test_a_job_of_a_newer_crd_waits_for_a_newer_operator_and_then_goes_on(job_object: Objects, now: datetime) -> None:
    known = job_object(dataset={"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}})
    world = World(known, now)
    newer(world)
    world.reconcile()
    [accepted] = [c for c in world.status["conditions"] if c["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("Unknown", "NewerOperatorNeeded")
    assert "training.surprise" in accepted["message"] or "another" in accepted["message"]
    assert "attempt" not in world.status
    again = world.status
    world.reconcile()
    assert world.status == again
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.kube.put("dpojobs", {**job, "spec": known["spec"]})
    world.reconcile()
    assert next(c for c in world.status["conditions"] if c["type"] == "Accepted")["status"] == "True"
    assert world.status["attempt"] == 0


def test_an_attempt_that_an_older_operator_did_not_accept_is_accepted_again(world: World) -> None:
    job = world.kube.objects["dpojobs", "team", "tune"]
    kept = [c for c in job["status"]["conditions"] if c["type"] != "Accepted"]
    refused = {**job["status"]["conditions"][0], "type": "Accepted", "status": "False", "reason": "InvalidSpec"}
    world.kube.put("dpojobs", {**job, "status": {**job["status"], "conditions": [refused, *kept]}})
    world.reconcile()
    assert next(c for c in world.status["conditions"] if c["type"] == "Accepted")["status"] == "True"


def test_a_pytorchjob_that_turns_up_after_its_job_was_cancelled_is_deleted(
    job_object: Objects, child_object: Objects, now: datetime
) -> None:
    world = World(job_object(runPolicy={"cancel": True}), now)
    world.reconcile()
    assert world.status["phase"] == "Cancelled"
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.store.put_job(world.kube.put("dpojobs", {**job, "status": {**job["status"], "attempt": 0}}))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0)))
    world.reconcile()
    assert ("pytorchjobs", "team", "tune-dpo-0") not in world.kube.objects


def test_a_retained_claim_that_several_nodes_cannot_share_blocks_the_job(job_object: Objects, now: datetime) -> None:
    storage = {"size": "10Gi", "accessModes": ["ReadWriteMany"]}
    rows = {"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}}
    world = World(job_object(numNodes=2, storage=storage, dataset=rows), now)
    metadata = {"name": "tune-dpo", "labels": {"trl-operator.io/job-uid": "an earlier one"}}
    size = {"resources": {"requests": {"storage": "10Gi"}}}
    left = {"metadata": metadata, "spec": {"accessModes": ["ReadWriteOnce"], **size}}
    world.kube.put("persistentvolumeclaims", left)
    world.reconcile()
    accepted = next(c for c in world.status["conditions"] if c["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "AccessModeNotShared")
    assert "tune-dpo of an earlier job has access modes ReadWriteOnce" in accepted["message"]
    world.kube.put("persistentvolumeclaims", {**left, "spec": {"accessModes": ["ReadWriteMany"], **size}})
    world.reconcile()
    assert ("create", "pytorchjobs") in world.kube.writes


def test_what_the_operator_writes_leaves_the_status_below_12_kib(job_object: Objects, now: datetime) -> None:
    world = World(job_object(), now)
    job = world.kube.objects["dpojobs", "team", "tune"]
    long = {"status": "True", "reason": "Foreign", "message": "m" * 2048, "lastTransitionTime": "2026-11-21T11:00:00Z"}
    status = {"conditions": [{"type": f"Foreign{number}", **long} for number in range(7)]}
    world.store.put_job(world.kube.put("dpojobs", {**job, "status": status}))
    world.reconcile()
    assert world.status["phase"]
    assert len(json.dumps(world.status, separators=(",", ":"))) <= 12 * 1024


def ask(world: World, **policy: Any) -> None:
    """Somebody edits runPolicy, and everything that was started is gone without the watches' telling."""
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.store.put_job(world.kube.put("dpojobs", {**job, "spec": {**job["spec"], "runPolicy": policy}}))
    for place in [place for place in world.kube.objects if place[0] in ("pytorchjobs", "pods")]:
        del world.kube.objects[place]


@pytest.mark.parametrize(("wish", "phase"), [("cancel", "Cancelled"), ("suspend", "Suspended")])
def test_a_job_stops_though_no_watch_has_told_that_its_attempt_is_gone(world: World, wish: str, phase: str) -> None:
    ask(world, **{wish: True})
    changed: list[Any] = []
    world.store.follow(changed.append)
    changed.clear()
    world.reconcile()
    assert changed == [KEY], "it is looked at again at once"
    world.reconcile()
    assert world.status["phase"] == phase


def test_a_job_restarts_though_no_watch_has_told_that_its_attempt_is_gone(
    world: World, child_object: Objects, pod_object: Objects
) -> None:
    ask(world)
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Failed")))
    world.kube.put("pods", pod_object(0, "Failed", attempt=1))
    world.reconcile()
    assert (world.status["attempt"], world.status["phase"], running(world)[0]) == (1, "Restarting", "ChildDeleted")
    counted = 'trl_operator_restarts_total{kind="DPOJob",reason="ChildDeleted"} 1.0'
    assert counted in world.metrics.render()
    world.reconcile()
    assert counted in world.metrics.render()


def test_a_pod_that_is_newer_than_the_list_is_not_taken_for_gone(world: World, pod_object: Objects) -> None:
    newer = pod_object(0)
    newer["metadata"]["resourceVersion"] = "9999"
    world.store.put_pod(newer)
    ask(world, cancel=True)
    world.reconcile()
    world.reconcile()
    assert "completionTime" not in world.status


def counting(world: World, verb: str) -> list[Any]:
    """What is asked of the API server from now on by get, or by list."""
    asked: list[Any] = []
    real = getattr(world.kube, verb)

    async def ask(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments[0].plural)
        return await real(*arguments, **options)

    setattr(world.kube, verb, ask)
    return asked


def test_a_gang_that_ends_is_listed_once_and_told_in_few_writes(
    job_object: Objects, child_object: Objects, pod_object: Objects, now: datetime
) -> None:
    world = World(job_object(numNodes=64, storage={"claimName": "shared"}), now)
    running = {"attempt": 0, "restarts": 0, "workload": WORKLOAD}
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.store.put_job(world.kube.put("dpojobs", {**job, "status": running}))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0)))
    for index in range(64):
        world.store.put_pod(world.kube.put("pods", pod_object(index)))
    world.reconcile()
    assert world.status["phase"] == "Running"
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Failed")))
    before, listed = len(world.kube.writes), counting(world, "list")
    for index in range(64):
        world.store.put_pod(world.kube.put("pods", pod_object(index, "Failed", exit_code=1)))
        world.reconcile()
    assert world.status["phase"] == "Restarting"
    assert world.status["attempt"] == 1
    writes = [plural for _, plural in world.kube.writes[before:]]
    assert writes.count("dpojobs") <= 6
    assert listed.count("pods") == 1


def test_the_pods_of_an_attempt_that_ends_are_listed_again_when_no_watch_tells_of_them(
    world: World, child_object: Objects, pod_object: Objects
) -> None:
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Failed")))
    world.reconcile()
    assert world.status["attempt"] == 0
    world.kube.put("pods", pod_object(0, "Failed", exit_code=1))
    world.now += timedelta(seconds=10)
    world.reconcile()
    assert world.status["attempt"] == 1


def test_a_job_that_is_over_costs_no_request(world: World, child_object: Objects, pod_object: Objects) -> None:
    world.store.put_pod(world.kube.put("pods", pod_object(0, "Succeeded", exit_code=0, record=record("Succeeded"))))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Succeeded")))
    world.reconcile()
    assert world.status["phase"] == "Succeeded"
    asked = counting(world, "get")
    world.reconcile()
    assert asked == []
    assert 'trl_operator_job_seconds_count{kind="DPOJob",phase="Succeeded"} 1.0' in world.metrics.render()


def test_what_the_reconciler_writes_and_creates_wakes_nobody(job_object: Objects, now: datetime) -> None:
    world = World(job_object(dataset=ROWS), now)
    changed: list[Any] = []
    world.store.follow(changed.append)
    changed.clear()
    world.reconcile()
    assert world.status["workload"]["name"] == "tune-dpo-0"
    for plural, put in (("dpojobs", world.store.put_job), ("pytorchjobs", world.store.put_child)):
        for (kind, *_), obj in list(world.kube.objects.items()):
            if kind == plural:
                put(obj)
    assert changed == []


ROWS = {"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}}


def running(world: World) -> tuple[str, str]:
    found = next(c for c in world.status["conditions"] if c["type"] == "Running")
    return found["reason"], found["message"]


@pytest.mark.parametrize(
    ("kind", "code", "words", "reason"),
    [
        ("PersistentVolumeClaim", 403, "exceeded quota: q, requested: requests.storage=10Gi", "QuotaExceeded"),
        ("NetworkPolicy", 403, "admission policy says no", "CreateRefused"),
        ("ConfigMap", 422, "Too long: may not be more than 1048576 bytes", "CreateRefused"),
        ("PyTorchJob", 403, "exceeded quota: q, requested: count/pytorchjobs.kubeflow.org=1", "QuotaExceeded"),
        ("PyTorchJob", 500, "failed calling webhook: connection refused " + "x" * 9000, "WebhookUnavailable"),
    ],
)
def test_what_cannot_be_created_is_told_until_it_can(
    job_object: Objects, now: datetime, kind: str, code: int, words: str, reason: str
) -> None:
    world = World(job_object(dataset=ROWS), now)

    def refuse(obj: dict[str, Any]) -> None:
        if obj["kind"] == kind:
            raise ApiError(code, words, request="POST /somewhere")

    world.kube.refuse_object = refuse
    with pytest.raises(ApiError):
        world.reconcile()
    name = "tune-dpo-0" if kind in ("PyTorchJob", "NetworkPolicy") else "tune-dpo"
    expected = f"attempt 0 has yet to start: {kind} {name} could not be created: {words}"[:2048]
    assert (running(world), world.status["phase"]) == ((reason, expected), "Starting")
    writes = list(world.kube.writes)
    with pytest.raises(ApiError):
        world.reconcile()
    assert running(world) == (reason, expected), "the next try does not hide it"
    assert ("trl-operator-status", "dpojobs") not in world.kube.writes[len(writes) :]
    world.kube.refuse_object = lambda _: None
    world.reconcile()
    assert running(world) == ("Starting", "attempt 0 starts")
    assert world.status["workload"]["name"] == "tune-dpo-0"


OWN = {"apiVersion": "trl-operator.io/v1alpha1", "kind": "DPOJob", "name": "tune", "controller": True}
OBJECTS = {"configmaps": "ConfigMap", "networkpolicies": "NetworkPolicy", "pytorchjobs": "PyTorchJob"}


def there(world: World, plural: str, **metadata: Any) -> dict[str, Any]:
    """An object has the name that attempt 0 needs."""
    labels = {"trl-operator.io/attempt": "0"}
    place = {"name": "tune-dpo-0", "uid": "theirs", "labels": labels, **metadata}
    return world.kube.put(plural, {"kind": OBJECTS[plural], "metadata": place, "data": {}, "spec": {}})


def accepted(world: World) -> tuple[str, str]:
    found = next(c for c in world.status["conditions"] if c["type"] == "Accepted")
    return found["status"], found["reason"]


@pytest.mark.parametrize("plural", OBJECTS)
def test_a_name_that_somebody_else_holds_is_told_once_and_left_alone(
    job_object: Objects, now: datetime, plural: str
) -> None:
    world = World(job_object(dataset=ROWS), now)
    there(world, plural)
    world.reconcile()
    assert (accepted(world), world.status["phase"]) == (("False", "NameConflict"), "Pending")
    writes = len(world.kube.writes)
    world.reconcile()
    assert len(world.kube.writes) == writes, "it does not flap"
    del world.kube.objects[plural, "team", "tune-dpo-0"]
    world.reconcile()
    assert (accepted(world)[0], world.status["workload"]["name"]) == ("True", "tune-dpo-0")


@pytest.mark.parametrize("plural", OBJECTS)
def test_what_an_earlier_job_of_this_name_has_left_is_deleted(job_object: Objects, now: datetime, plural: str) -> None:
    world = World(job_object(dataset=ROWS), now)
    there(world, plural, ownerReferences=[{**OWN, "uid": "an earlier one"}])
    world.reconcile()
    assert ("delete", plural) in world.kube.writes
    assert world.status["workload"]["name"] == "tune-dpo-0"
    assert world.kube.objects[plural, "team", "tune-dpo-0"]["metadata"]["uid"] != "theirs"


def test_what_an_earlier_job_has_left_and_is_being_deleted_is_waited_for(job_object: Objects, now: datetime) -> None:
    world = World(job_object(dataset=ROWS), now)
    owner = [{**OWN, "uid": "an earlier one"}]
    there(world, "pytorchjobs", ownerReferences=owner, deletionTimestamp="2026-11-21T11:59:00Z")
    world.reconcile()
    assert accepted(world) == ("False", "WaitingForDeletion")


@pytest.mark.parametrize("plural", ["configmaps", "networkpolicies"])
@pytest.mark.parametrize("code", [409, 403])
def test_what_this_job_has_made_already_is_kept_and_made_anew_if_it_says_something_else(
    job_object: Objects, now: datetime, plural: str, code: int
) -> None:
    world = World(job_object(dataset=ROWS), now)

    def refuse(obj: dict[str, Any]) -> None:
        if obj["kind"] == OBJECTS[plural] and (plural, "team", "tune-dpo-0") in world.kube.objects:
            raise ApiError(code, "exceeded quota: q, requested: count/configmaps=1")
        if obj["kind"] == "PyTorchJob" and not world.kube.objects.get(("pods", "team", "go")):
            raise ApiError(500, "not yet")

    world.kube.refuse_object = refuse
    with pytest.raises(ApiError):
        world.reconcile()
    made = world.kube.objects[plural, "team", "tune-dpo-0"]
    with pytest.raises(ApiError):
        world.reconcile()
    assert world.kube.objects[plural, "team", "tune-dpo-0"] == made
    other = {"data": {"job.json": "{}"}} if plural == "configmaps" else {"spec": {"podSelector": {}}}
    world.kube.put(plural, {**made, **other, "metadata": {**made["metadata"], "uid": "old"}})
    with pytest.raises(ApiError):
        world.reconcile()
    world.kube.put("pods", {"kind": "Pod", "metadata": {"name": "go"}})
    world.reconcile()
    part = "data" if plural == "configmaps" else "spec"
    assert world.kube.objects[plural, "team", "tune-dpo-0"][part] == made[part]
    assert world.status["workload"]["name"] == "tune-dpo-0"


def test_each_attempt_takes_away_what_the_one_before_the_last_has_left(
    job_object: Objects, child_object: Objects, pod_object: Objects, now: datetime
) -> None:
    world = World(job_object(dataset=ROWS, runPolicy={"maxRestarts": 10}), now)
    for attempt in range(5):
        world.reconcile()
        assert world.status["workload"]["name"] == f"tune-dpo-{attempt}"
        uid = world.status["workload"]["uid"]
        failed = child_object(attempt, "Failed")
        failed["metadata"]["uid"] = uid
        pod = pod_object(0, "Failed", attempt=attempt, exit_code=1)
        pod["metadata"]["ownerReferences"][0]["uid"] = uid
        world.store.put_pod(world.kube.put("pods", pod))
        world.store.put_child(world.kube.put("pytorchjobs", failed))
        world.reconcile()
        world.now += timedelta(seconds=301)
    for plural in ("configmaps", "networkpolicies"):
        names = [name for kind, _, name in world.kube.objects if kind == plural and name != "tune-dpo"]
        assert names == ["tune-dpo-3", "tune-dpo-4"]
    assert ("configmaps", "team", "tune-dpo") in world.kube.objects, "what all attempts share stays"


def test_what_a_suspended_attempt_has_left_goes_with_the_next_start(job_object: Objects, now: datetime) -> None:
    world = World(job_object(dataset=ROWS), now)
    for attempt in range(3):
        world.reconcile()
        assert world.status["workload"]["name"] == f"tune-dpo-{attempt}"
        ask(world, suspend=True)
        world.reconcile()
        world.reconcile()
        assert world.status["phase"] == "Suspended"
        ask(world, suspend=False)
    world.reconcile()
    assert [name for kind, _, name in world.kube.objects if kind == "configmaps"] == ["tune-dpo", "tune-dpo-3"]


def test_a_claim_that_is_deleted_under_a_job_is_told_with_what_is_lost_and_never_silently_made_anew(
    world: World, child_object: Objects, pod_object: Objects
) -> None:
    job = world.kube.objects["dpojobs", "team", "tune"]
    status = {**job["status"], "checkpoints": [{"step": 20}, {"step": 30}]}
    world.store.put_job(world.kube.put("dpojobs", {**job, "status": status, "spec": {**job["spec"], "dataset": ROWS}}))
    world.store.put_pod(world.kube.put("pods", pod_object(0, "Failed", exit_code=1)))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0, "Failed")))
    labels = {"trl-operator.io/job-uid": job["metadata"]["uid"]}
    leaving = {"name": "tune-dpo", "labels": labels, "deletionTimestamp": "2026-11-21T11:59:00Z"}
    world.kube.put("persistentvolumeclaims", {"metadata": leaving, "spec": {}})
    world.reconcile()
    world.now += timedelta(seconds=301)
    world.reconcile()
    told = next(c for c in world.status["conditions"] if c["type"] == "Accepted")
    assert told["reason"] == "StorageLost"
    assert "is being deleted while this job uses it, and with it the checkpoints up to step 30" in told["message"]
    del world.kube.objects["persistentvolumeclaims", "team", "tune-dpo"]
    world.reconcile()
    told = next(c for c in world.status["conditions"] if c["type"] == "Accepted")
    assert "was deleted, and with it the checkpoints up to step 30: restore it" in told["message"]
    assert ("create", "persistentvolumeclaims") not in world.kube.writes
    world.kube.put("persistentvolumeclaims", {"metadata": {"name": "tune-dpo", "labels": labels}, "spec": {}})
    world.reconcile()
    assert world.status["workload"]["name"] == "tune-dpo-1"


def test_a_busy_api_server_is_no_refusal(job_object: Objects, now: datetime) -> None:
    world = World(job_object(dataset=ROWS), now)

    def refuse(obj: dict[str, Any]) -> None:
        if obj["kind"] == "ConfigMap":
            raise ApiError(429, "too many requests", retry_after=1.0)

    world.kube.refuse_object = refuse
    with pytest.raises(ApiError):
        world.reconcile()
    assert running(world) == ("Starting", "attempt 0 starts")


def test_a_refused_job_can_still_be_cancelled(job_object: Objects, now: datetime) -> None:
    world = World(job_object(dataset=ROWS), now)

    def refuse(obj: dict[str, Any]) -> None:
        raise ApiError(403, "no")

    world.kube.refuse_object = refuse
    with pytest.raises(ApiError):
        world.reconcile()
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.kube.refuse_object = lambda _: None
    world.kube.put("dpojobs", {**job, "spec": {**job["spec"], "runPolicy": {"cancel": True}}})
    world.reconcile()
    assert (world.status["phase"], running(world)[0]) == ("Cancelled", "Cancelled")


@pytest.mark.parametrize("bug", [AttributeError, RuntimeError, KeyError, RecursionError, OSError])
def test_a_job_that_meets_a_bug_does_not_stop_the_others(bug: type[Exception]) -> None:
    done: list[str] = []

    class Reconciling:
        async def reconcile(self, key: Any) -> None:
            if key[2] == "bad":
                raise bug("boom")
            done.append(key[2])

    async def main() -> None:
        queue: WorkQueue[Any] = WorkQueue()
        metrics = ControllerMetrics()
        worker = asyncio.create_task(work(queue, Reconciling(), metrics))  # type: ignore[arg-type]
        for name in ("bad", "good"):
            queue.add(("DPOJob", "team", name))
        async with asyncio.timeout(5):
            while not done:
                await asyncio.sleep(0.005)
        assert 'status="bug"} 1' in metrics.render()
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker

    asyncio.run(main())


def test_a_worker_ends_when_the_lease_is_lost() -> None:
    class Reconciling:
        async def reconcile(self, key: Any) -> None:
            raise LeaseLost("gone")

    async def main() -> None:
        queue: WorkQueue[Any] = WorkQueue()
        queue.add(("DPOJob", "team", "tune"))
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(work(queue, Reconciling(), ControllerMetrics()), 5)  # type: ignore[arg-type]

    asyncio.run(main())


@pytest.mark.parametrize(("policy", "phase"), [({"cancel": True}, "Cancelled"), ({"suspend": True}, "Suspended")])
def test_a_job_that_stops_says_no_more_when_it_will_be_done(
    world: World, child_object: Objects, policy: dict[str, Any], phase: str
) -> None:
    world.progress(attempt=0, activity="training", display="7/40", percentage=17, eta="9m", etaSeconds=540,
                   step=7, totalSteps=40, lastUpdateTime="2026-11-21T11:30:00Z")  # fmt: skip
    job = world.kube.objects["dpojobs", "team", "tune"]
    world.kube.put("dpojobs", {**job, "spec": {**job["spec"], "runPolicy": policy}})
    world.reconcile()
    assert world.status["progress"]["eta"] == "9m", "its pods have yet to end"
    pod = world.kube.objects.pop(("pods", "team", "tune-dpo-0-worker-0"))
    world.store.drop_child(child_object(0))
    world.store.drop_pod(pod)
    world.reconcile()
    assert world.status["phase"] == phase
    assert not world.status["progress"].keys() & {"eta", "etaSeconds"}
    assert (world.status["progress"]["display"], world.status["progress"]["percentage"]) == ("7/40", 17)
    world.reconcile()
    assert world.kube.writes.count(("trl-operator-progress", "dpojobs")) == 1, "that is written once"


def test_the_leader_remembers_since_when_the_reports_of_an_attempt_say_the_same(world: World) -> None:
    for minutes in (0, 15, 30):
        at = (world.now + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
        world.progress(**{**stored(5, 0), "activity": "training", "lastUpdateTime": at})
        world.reconcile()
        assert (world.status["phase"] == "Running") == (minutes < 30)
    assert next(c for c in world.status["conditions"] if c["type"] == "Running")["reason"] == "Stalled"
    assert ("pytorchjobs", "team", "tune-dpo-0") not in world.kube.objects


def test_a_boost_that_is_refused_neither_keeps_a_job_from_being_looked_at_nor_is_forgotten(
    job_object: Objects, child_object: Objects, pod_object: Objects, now: datetime
) -> None:
    world = runs(World(job_object(), now, boosts=True), child_object, pod_object)
    owner = {"kind": "PyTorchJob", "name": "tune-dpo-0", "uid": "child-0", "controller": True}
    metadata = {"namespace": "team", "name": "w", "uid": "w-uid", "resourceVersion": "1", "ownerReferences": [owner]}
    admitted = {"type": "Admitted", "status": "True"}
    world.needs.admissions.put({"metadata": metadata, "status": {"conditions": [admitted]}})

    def refuse(obj: dict[str, Any]) -> None:
        if obj["kind"] == "Workload":
            raise ApiError(500, "failed calling webhook")

    world.kube.refuse_object = refuse
    assert [world.reconcile(), world.reconcile()] == [30, 30]
    assert 'trl_operator_reconcile_errors_total{status="500"} 2' in world.metrics.render()
    world.kube.refuse_object = lambda _: None
    left = world.reconcile()
    assert left is not None
    assert left > 30
    assert ("trl-operator-boost", "workloads") in world.kube.writes
    world.lease.held = False
    with pytest.raises(LeaseLost):
        world.reconcile()
