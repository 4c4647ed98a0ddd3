"""The store of what the watches saw: what is kept, what is forgotten, and what is news."""

from collections.abc import Callable
from typing import Any

import pytest

from trl_operator.plan.observation import Attempt, current_attempt
from trl_operator.plan.outcome import classify
from trl_operator.store.held import Held
from trl_operator.store.needs import Needs
from trl_operator.store.store import Store

Make = Callable[..., Any]


def stored(kind: str, name: str, version: int, **metadata: Any) -> dict[str, Any]:
    place = {"namespace": "team", "name": name, "uid": f"{name}-uid", "resourceVersion": str(version)}
    return {"kind": kind, "metadata": {**place, **metadata}}


def pod(version: int, phase: str = "Running") -> dict[str, Any]:
    labels = {
        "trl-operator.io/job-uid": "tune-uid",
        "trl-operator.io/job-kind": "DPOJob",
        "trl-operator.io/job-name": "tune",
        "trl-operator.io/attempt": "0",
    }
    owner = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "name": "tune-dpo-0",
        "uid": "c",
        "controller": True,
    }
    found = stored("Pod", "tune-dpo-0-worker-0", version, labels=labels, ownerReferences=[owner])
    return {**found, "status": {"phase": phase}}


ATTEMPT = Attempt(("DPOJob", "team", "tune"), "tune-uid", 0, "tune-dpo-0")


def test_an_older_state_never_replaces_a_newer_one() -> None:
    changed: list[Any] = []
    store = Store()
    store.follow(changed.append)
    store.put_job(stored("DPOJob", "tune", 5, managedFields=[1]))
    store.put_job(stored("DPOJob", "tune", 4))
    store.put_pod(pod(7, "Failed"))
    store.put_pod(pod(6))
    key = ("DPOJob", "team", "tune")
    assert store.jobs[key].version == 5
    assert [found.phase for found in store.pods(ATTEMPT)] == ["Failed"]
    assert changed == [key, key]


def job(version: int, attempt: int = 0, **metadata: Any) -> dict[str, Any]:
    return {**stored("DPOJob", "tune", version, **metadata), "status": {"attempt": attempt}}


def test_a_job_without_an_attempt_is_held_until_it_is_taken_or_something_is_told_of_it() -> None:
    store, key = Store(), ("DPOJob", "team", "tune")
    first = stored("DPOJob", "tune", 5)
    store.put_job(first)
    store.put_job(stored("DPOJob", "tune", 4))
    assert (store.unseen.take(key), store.unseen.take(key)) == (first, None)
    store.put_job(stored("DPOJob", "tune", 6))
    assert store.unseen.take(key) is None, "somebody has looked at it"
    anew = stored("DPOJob", "tune", 7, uid="another")
    store.put_job(anew)
    assert store.unseen.take(key) == anew
    store.put_job(stored("DPOJob", "tune", 8, uid="third"))
    store.put_job({**job(9), "metadata": {**job(9)["metadata"], "uid": "third"}})
    assert store.unseen.take(key) is None, "it has an attempt"
    store.put_job(stored("DPOJob", "tune", 10, uid="fourth"))
    store.drop_job(stored("DPOJob", "tune", 11, uid="fourth"))
    assert store.unseen.take(key) is None, "it is gone"


def test_only_as_many_whole_jobs_are_held_as_fit() -> None:
    obj = {"spec": "x" * 90}
    held = Held(capacity=250)
    for number in range(3):
        held.put(("DPOJob", "team", f"j{number}"), obj)
    assert [held.take(("DPOJob", "team", f"j{number}")) for number in range(3)] == [obj, obj, None]
    held.put(("DPOJob", "team", "j2"), obj)
    assert held.take(("DPOJob", "team", "j2")) == obj, "there is room again"


def test_a_pod_that_is_gone_is_remembered_in_its_last_state_until_its_attempt_is_over() -> None:
    store = Store()
    store.put_job(job(1))
    store.put_pod(pod(1))
    store.drop_pod(pod(2, "Failed"))
    [found] = store.pods(ATTEMPT)
    assert (found.gone, found.phase) == (True, "Failed")
    store.put_pod(pod(3))
    assert store.pods(ATTEMPT) == [found], "a late event does not bring it back"
    store.put_job(job(4, attempt=1))
    assert store.pods(ATTEMPT) == []


def drop(kept: Any, plural: str, obj: dict[str, Any]) -> None:
    """A watch tells that an object is gone."""
    [watched] = [each for each in kept.watched() if each.resource.plural == plural]
    watched.drop(obj)


def relist(keeper: Any, plural: str, listed: list[Any], version: int, namespaces: list[str] | None = None) -> None:
    """Hand over a fresh list, as Relist does."""
    for watched in keeper.watched():
        if watched.resource.plural == plural:
            for obj in listed:
                watched.put(obj)
            watched.sweep(namespaces or [], {obj["metadata"]["uid"] for obj in listed}, version)


def forgotten(store: Store) -> bool:
    return not store._pods and not store._pods_of


def test_nothing_is_left_of_a_job_whose_pods_go_after_it() -> None:
    changed: list[Any] = []
    store = Store()
    store.put_job(job(1))
    store.put_child(child(2))
    store.put_pod(pod(2))
    store.follow(changed.append)
    store.drop_job(job(2))
    store.drop_child(child(3))
    store.put_pod(pod(3, "Failed"))
    store.drop_pod(pod(4, "Failed"))
    assert forgotten(store)
    store.drop_pod(pod(4, "Failed"))
    store.put_pod(pod(5))
    relist(store, "pods", [], 6)
    assert forgotten(store), "a relist finds out too"
    assert changed == [ATTEMPT.job] * 2, "its first look and its end: what goes after it is no news"


def test_nothing_is_left_of_a_job_that_another_one_of_its_name_has_replaced_unseen() -> None:
    store = Store()
    store.put_job(job(1))
    store.put_pod(pod(2))
    store.drop_pod(pod(3))
    store.put_job(job(4, uid="another"))
    assert forgotten(store)


def test_pods_of_an_attempt_that_is_over_are_not_kept_though_they_stay_for_their_logs() -> None:
    store = Store()
    store.put_job(job(1))
    store.put_pod(pod(2, "Failed"))
    store.put_job(job(3, attempt=1))
    assert forgotten(store)
    relist(store, "pods", [pod(2, "Failed")], 4)
    assert forgotten(store)


def test_pods_that_are_gone_are_forgotten_with_the_end_of_their_job() -> None:
    store = Store()
    store.put_job(job(1))
    store.put_pod(pod(2, "Succeeded"))
    ended = job(3)
    ended["status"]["completionTime"] = "2026-11-21T12:00:00Z"
    store.put_job(ended)
    assert len(store.pods(ATTEMPT)) == 1, "it may still report"
    store.drop_pod(pod(4, "Succeeded"))
    assert forgotten(store)
    store.put_job(job(5))
    store.put_pod(pod(6))
    store.drop_pod(pod(7))
    assert not forgotten(store)
    store.put_job({**ended, "metadata": job(8)["metadata"]})
    assert forgotten(store)


def test_only_the_next_attempts_pods_are_known_before_their_job_tells_of_it() -> None:
    store = Store()
    store.put_job(job(1, attempt=3))
    for attempt in (2, 3, 4, 5, 999):
        found = pod(2)
        found["metadata"]["uid"] = f"pod-{attempt}"
        found["metadata"]["labels"]["trl-operator.io/attempt"] = str(attempt)
        store.put_pod(found)
    assert sorted(store._pods) == ["pod-3", "pod-4"]


def test_a_pod_that_is_known_before_its_job_is_kept() -> None:
    store = Store()
    store.put_pod(pod(2))
    store.put_job(job(1))
    assert [found.version for found in store.pods(ATTEMPT)] == [2]


def test_who_begins_to_follow_hears_of_all_jobs_that_are_there_and_of_none_that_is_gone() -> None:
    changed: list[Any] = []
    store = Store()
    for name in ("gone", "there"):
        store.put_job(stored("DPOJob", name, 1))
    store.drop_job(stored("DPOJob", "gone", 2))
    store.follow(changed.append)
    assert changed == [("DPOJob", "team", "there")]
    store.put_job(job(2))
    assert changed == [("DPOJob", "team", "there"), ("DPOJob", "team", "tune")]


def test_a_relist_finds_what_was_deleted_unseen_and_spares_what_is_newer() -> None:
    changed: list[Any] = []
    store = Store()
    store.follow(changed.append)
    store.put_job(job(30))
    store.put_job(stored("DPOJob", "old", 5))
    store.put_job(stored("DPOJob", "new", 50))
    store.put_job(stored("SFTJob", "other", 5))
    store.put_pod(pod(5))
    relist(store, "dpojobs", [stored("DPOJob", "kept", 8)], 20)
    relist(store, "pods", [], 20)
    assert {key[2] for key in store.jobs} == {"new", "other", "kept", "tune"}
    assert [found.gone for found in store.pods(ATTEMPT)] == [True]
    relist(store, "dpojobs", [], 99, ["elsewhere"])
    assert {key[2] for key in store.jobs} == {"new", "other", "kept", "tune"}


def child(version: int, **owner: Any) -> dict[str, Any]:
    reference = {"apiVersion": "trl-operator.io/v1alpha1", "kind": "DPOJob", "name": "tune", "uid": "tune-uid"}
    labels = {"trl-operator.io/job-uid": "tune-uid", "trl-operator.io/attempt": "0"}
    owners = [{**reference, "controller": True, **owner}]
    return stored("PyTorchJob", "tune-dpo-0", version, labels=labels, ownerReferences=owners)


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": "b"}, {"attempt": "-1"}, {"attempt": "²"}, {"attempt": "99999999999"}, {"attempt": None},
        {"job-kind": "CronJob"}, {"job-kind": None}, {"job-name": ""}, {"job-name": None},
    ],
)  # fmt: skip
def test_a_pod_whose_labels_name_no_attempt_is_nobodys(change: dict[str, str | None]) -> None:
    changed: list[Any] = []
    store = Store()
    store.put_job(job(1))
    store.follow(changed.append)
    changed.clear()
    odd = pod(8)
    labels = odd["metadata"]["labels"]
    labels |= {f"trl-operator.io/{name}": value for name, value in change.items()}
    odd["metadata"]["labels"] = {name: value for name, value in labels.items() if value is not None}
    store.put_pod(odd)
    store.drop_pod(odd)
    relist(store, "pods", [odd], 9)
    assert forgotten(store)
    assert changed == [], "no key that the workers would stumble over"
    store.put_pod(pod(7))
    store.put_pod(odd)
    assert [found.gone for found in store.pods(ATTEMPT)] == [True], "it has left its attempt"


@pytest.mark.parametrize(
    ("owner", "metadata"),
    [
        ({}, {"namespace": "elsewhere"}),
        ({"name": "tune-dpo-1"}, {}),
        ({"uid": "another"}, {}),
        ({"kind": "ReplicaSet"}, {}),
        ({"apiVersion": "batch/v1"}, {}),
        ({"controller": False}, {}),
    ],
)
def test_labels_alone_make_no_pod_one_of_an_attempt(owner: dict[str, Any], metadata: dict[str, Any]) -> None:
    store = Store()
    known = {
        **stored("DPOJob", "tune", 1),
        "status": {"attempt": 0, "workload": {"kind": "PyTorchJob", "name": "tune-dpo-0", "uid": "c"}},
    }
    attempt = current_attempt(known)
    assert attempt is not None
    foreign = pod(1)
    foreign["metadata"] |= metadata
    foreign["metadata"]["ownerReferences"][0] |= owner
    store.put_pod(foreign)
    assert store.pods(attempt) == []
    store.put_pod({**pod(1), "metadata": {**pod(1)["metadata"], "uid": "ours"}})
    assert [found.uid for found in store.pods(attempt)] == ["ours"]


def test_before_its_pytorchjob_is_known_by_uid_an_attempt_knows_its_pods_by_name() -> None:
    assert current_attempt(stored("DPOJob", "tune", 1)) is None
    assert current_attempt({**stored("DPOJob", "tune", 1), "status": {"attempt": 0}}) == ATTEMPT


def test_a_node_index_that_no_status_can_hold_is_no_index(make_pod: Make) -> None:
    for text in ("x", "-3", "99999"):
        odd = make_pod(text, "Failed", exit_code=1)
        assert odd.index == -1
        assert classify([odd], 1, 8).rank is None


@pytest.mark.parametrize(
    "owner", [{"kind": "CronJob"}, {"apiVersion": "batch/v1"}, {"controller": False}, {"apiVersion": "trl-operator.i"}]
)
def test_a_pytorchjob_that_no_job_controls_is_nobodys_whatever_its_labels_say(owner: dict[str, Any]) -> None:
    changed: list[Any] = []
    store = Store()
    store.follow(changed.append)
    store.put_child(child(1, **owner))
    relist(store, "pytorchjobs", [child(2, **owner)], 3)
    assert (store.children("tune-uid", "team"), changed) == ([], [])
    store.put_child(child(4))
    assert [found.job for found in store.children("tune-uid", "team")] == [("DPOJob", "team", "tune")]
    store.put_child(child(5, **owner))
    assert store.children("tune-uid", "team") == []


def test_a_pytorchjob_with_an_odd_label_is_still_its_jobs() -> None:
    store = Store()
    odd = child(1)
    odd["metadata"]["labels"]["trl-operator.io/attempt"] = "b"
    store.put_child(odd)
    assert [(found.attempt, found.name) for found in store.children("tune-uid", "team")] == [(-1, "tune-dpo-0")]


KEY = ("DPOJob", "team", "tune")


@pytest.fixture
def heard() -> tuple[Store, list[Any]]:
    """A store that knows attempt 0 of a job with its PyTorchJob and pod, and the keys that it tells from now on."""
    store, changed = Store(), []
    store.put_job(job(1))
    store.put_child(child(1))
    store.put_pod(pod(1))
    store.follow(changed.append)
    changed.clear()
    return store, changed


def with_status(version: int, **status: Any) -> dict[str, Any]:
    return {**job(version, generation=1), "status": {"attempt": 0, **status}}


def test_reports_are_no_news_and_neither_is_a_state_that_differs_in_its_version_only(heard: Any) -> None:
    store, changed = heard
    store.put_job(with_status(2))
    assert changed == [KEY], "another generation is news"
    store.put_job(with_status(3, progress={"step": 7}, checkpoints=[{"step": 5}], effective={"totalSteps": 40}))
    store.put_pod(pod(4))
    store.put_child(child(5))
    assert changed == [KEY]
    assert store.jobs[KEY].version == 3
    store.put_job(with_status(6, phase="Running"))
    store.put_pod(pod(7, "Succeeded"))
    store.put_child({**child(8), "status": {"conditions": [{"type": "Failed", "status": "True"}]}})
    assert changed == [KEY] * 4


def test_that_nothing_is_evaluated_is_news_once(heard: Any) -> None:
    store, changed = heard
    store.put_job(with_status(2))
    changed.clear()
    store.put_job(with_status(3, evaluation={"before": [{"name": "loss", "value": "1"}]}))
    assert changed == []
    skipped = {"skipped": {"reason": "NoHeldOutRows", "message": "none"}}
    store.put_job(with_status(4, evaluation=skipped))
    assert changed == [KEY], "it becomes a condition"
    store.expect_status(with_status(4, evaluation=skipped), {"attempt": 0, "phase": "Running"})
    store.put_job(with_status(5, evaluation=skipped, phase="Running"))
    assert changed == [KEY]


@pytest.mark.parametrize("first", ["event", "answer"])
def test_what_this_process_has_written_itself_is_no_news_whatever_comes_first(heard: Any, first: str) -> None:
    store, changed = heard
    known = with_status(2)
    store.put_job(known)
    changed.clear()
    store.expect_status(known, {"attempt": 0, "phase": "Starting"})
    written = with_status(3, phase="Starting", progress={"step": 1})
    for obj in (written, written) if first == "answer" else (written, with_status(4, phase="Starting")):
        store.put_job(obj)
    assert changed == []
    store.put_job(with_status(5))
    assert changed == [KEY], "somebody has changed it back"


def test_a_pytorchjob_that_is_about_to_be_created_is_no_news_but_its_end_is(heard: Any) -> None:
    store, changed = heard
    store.drop_child(child(2))
    changed.clear()
    store.expect_child("team", "tune-dpo-0")
    made = child(3)
    made["metadata"]["uid"] = "another"
    store.put_child(made)
    store.put_child(made)
    assert changed == []
    store.drop_child(child(9))
    assert store.children("tune-uid", "team"), "that was an earlier one of this name"
    store.drop_child(made)
    assert (store.children("tune-uid", "team"), changed) == ([], [KEY])


def test_a_late_deletion_of_an_earlier_job_does_not_take_away_a_new_one_of_its_name(heard: Any) -> None:
    store, changed = heard
    store.put_job(job(5, uid="another"))
    changed.clear()
    store.drop_job(job(2))
    assert (store.jobs[KEY].uid, changed) == ("another", [])
    store.drop_job(job(6, uid="another"))
    assert (KEY in store.jobs, changed) == (False, [KEY])


WELL = [{"type": "Succeeded", "status": "True"}, {"type": "Finished", "status": "True"}]


@pytest.mark.parametrize(
    ("status", "spec", "over"),
    [
        ({}, {}, False),
        ({"completionTime": "t"}, {}, False),
        # Version 0.1 knew of no other condition at the end.
        ({"completionTime": "t", "conditions": WELL[:1]}, {}, False),
        ({"completionTime": "t", "conditions": WELL}, {}, True),
        ({"completionTime": "t", "attempt": 1, "conditions": WELL}, {}, False),
        (
            {"completionTime": "t", "conditions": WELL},
            {"runPolicy": {"ttlSecondsAfterFinished": 1}},
            False,
        ),
        (
            {"completionTime": "t", "observedGeneration": 0, "conditions": WELL},
            {},
            False,
        ),
    ],
)
def test_a_job_is_over_when_nothing_of_it_is_left_to_be_ended_or_said(
    heard: Any, status: Any, spec: Any, over: bool
) -> None:
    store, _ = heard
    store.put_job({**with_status(2, **{"observedGeneration": 1, **status}), "spec": spec})
    assert store.is_over(KEY) is over


# -- what jobs wait for


def claim(version: int, **fields: Any) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "volumeName": "pv-1"}
    return {**stored("PersistentVolumeClaim", "data", version, **fields), "spec": spec, "status": {"phase": "Bound"}}


def test_a_job_that_waits_for_something_is_woken_by_it_and_by_nothing_else(heard: Any) -> None:
    store, changed = heard
    needs = Needs(store)
    needs.put_claim(claim(2))
    assert changed == [], "nobody waits"
    store.waiting.wait(KEY, [("PersistentVolumeClaim", "team", "data"), ("RewardJob", "team", "judge")])
    needs.put_claim(claim(2))
    needs.put_claim(claim(3, namespace="elsewhere"))
    assert changed == []
    needs.put_claim(claim(4, deletionTimestamp="t"))
    drop(needs, "persistentvolumeclaims", claim(5, uid="an earlier one"))
    assert changed == [KEY]
    drop(needs, "persistentvolumeclaims", claim(5))
    assert (changed, needs.claim("team", "data")) == ([KEY] * 2, None)
    for version, phase in ((6, "Running"), (7, "Succeeded")):
        store.put_job({**stored("RewardJob", "judge", version), "status": {"phase": phase}})
    assert changed.count(KEY) == 4
    store.waiting.wait(KEY, [])
    needs.put_claim(claim(8))
    assert changed.count(KEY) == 4
    assert not store.waiting._jobs


def test_of_a_claim_only_what_is_asked_about_is_kept_and_a_list_finds_what_is_gone(heard: Any) -> None:
    store, changed = heard
    needs = Needs(store)
    owner = {"kind": "DPOJob", "uid": "u", "controller": True}
    labels = {"trl-operator.io/job-uid": "tune-uid", "app": "x"}
    needs.put_claim(claim(2, labels=labels, ownerReferences=[owner], managedFields=[1], annotations={"a": "b"}))
    found = needs.claim("team", "data")
    assert found is not None
    assert found["spec"] == {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "volumeName": "pv-1"}
    assert found["metadata"].keys() == {"namespace", "name", "uid", "resourceVersion", "labels", "ownerReferences"}
    assert found["metadata"]["labels"] == {"trl-operator.io/job-uid": "tune-uid"}
    store.waiting.wait(KEY, [("PersistentVolumeClaim", "team", "data")])
    relist(needs, "persistentvolumeclaims", [], 1)
    relist(needs, "persistentvolumeclaims", [], 9, ["elsewhere"])
    assert changed == []
    relist(needs, "persistentvolumeclaims", [], 9)
    assert (changed, needs.claim("team", "data")) == ([KEY], None)


def event(version: int, message: str, uid: str = "tune-dpo-0-uid") -> dict[str, Any]:
    about = {"kind": "PyTorchJob", "namespace": "team", "name": "tune-dpo-0", "uid": uid}
    said = {"reason": "FailedCreatePod", "message": message, "lastTimestamp": "2026-11-21T11:00:00Z"}
    return {**stored("Event", "tune-dpo-0.1", version), "involvedObject": about, **said}


def test_a_warning_about_a_workload_is_news_once(heard: Any) -> None:
    store, changed = heard
    needs = Needs(store)
    [known] = store.children("tune-uid", "team")
    needs.put_event(event(2, "exceeded quota"))
    needs.put_event(event(3, "exceeded quota"))
    assert changed == [KEY]
    needs.put_event(event(4, "violates PodSecurity"))
    assert changed == [KEY] * 2
    assert [found["message"] for found in needs.warnings(known.uid)] == ["violates PodSecurity"]
    drop(needs, "events", event(5, "violates PodSecurity"))
    assert needs.warnings(known.uid) == []
    needs.put_event({**event(5, "elsewhere"), "involvedObject": {"kind": "Node", "name": "tune-dpo-0", "uid": "n"}})
    assert needs.warnings("n") == [], "that is about nothing that we know"
    needs.put_event(event(6, "of an earlier one", uid="another"))
    assert changed == [KEY] * 2
    relist(needs, "events", [], 9)
    assert needs.warnings("another") == []


def test_a_warning_about_what_a_trainjob_has_made_tells_of_it_but_not_one_of_an_earlier_trainjob() -> None:
    """The uid of the Job says nothing of the TrainJob; an event outlives what it is about by an hour."""
    made = {**child(3), "kind": "TrainJob", "apiVersion": "trainer.kubeflow.org/v1alpha1"}
    made["metadata"]["creationTimestamp"] = "2026-11-21T11:00:00Z"
    store = Store()
    store.put_job(job(1))
    store.put_child(made)
    needs, changed = Needs(store), []
    store.follow(changed.append)
    changed.clear()
    [known] = store.children("tune-uid", "team")
    denied = event(4, "exceeded quota", uid="of the Job")
    denied["involvedObject"] |= {"kind": "Job", "name": "tune-dpo-0-n-0"}
    for number, times in enumerate(
        (
            {"lastTimestamp": "2026-11-21T10:59:59Z"},
            {"lastTimestamp": None, "eventTime": "2026-11-21T10:59:59.900000Z"},
        )
    ):
        needs.put_event({**denied, **times, "metadata": {**denied["metadata"], "uid": f"earlier-{number}"}})
    assert needs.about(known) == []
    needs.put_event({**denied, "lastTimestamp": None, "eventTime": "2026-11-21T11:00:00.100000Z"})
    [told] = needs.about(known)
    assert (told["message"], told["lastTimestamp"]) == ("exceeded quota", "2026-11-21T11:00:00Z")
    assert KEY in changed
