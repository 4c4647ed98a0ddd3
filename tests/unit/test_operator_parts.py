"""The small parts of the operator: acceptance, cache, settings, metrics, events, health."""

import asyncio
import json
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from trl_operator.cache import Cache
from trl_operator.handlers import Backoffs
from trl_operator.health import Health
from trl_operator.metrics import Metrics
from trl_operator.plan.acceptance import check_reference, check_retained, check_spec, references
from trl_operator.plan.observation import Attempt, current_attempt
from trl_operator.plan.outcome import classify
from trl_operator.render.manifests import Installation, config_map
from trl_operator.settings import ReceiverSettings, Settings, from_environment
from trl_operator.status.events import events

Make = Callable[..., Any]

ENVIRONMENT = {
    "TRL_OPERATOR_NAMESPACE": "trl",
    "TRL_OPERATOR_IDENTITY": "pod-1",
    "TRL_OPERATOR_TRAINER_IMAGE": "trainer:1",
    "TRL_OPERATOR_RECEIVER_URL": "https://op.trl.svc:10443",
    "PATH": "/bin",
}

# -- acceptance


def test_every_object_that_a_spec_names_is_checked(make_job: Make) -> None:
    volume = {"volume": {"claimName": "data", "path": "x.jsonl"}}
    reference = {"mode": "explicit", "source": {"volume": {"claimName": "refs", "path": "m"}}}
    job = make_job(
        dataset={"train": volume, "eval": volume}, dpo={"referenceModel": reference}, storage={"claimName": "s"}
    )
    assert [(found.field, found.name) for found in references(job)] == [
        ("dataset.train.volume", "data"),
        ("dataset.eval.volume", "data"),
        ("dpo.referenceModel.source.volume", "refs"),
        ("storage.claimName", "s"),
    ]
    rewards = [{"name": "c", "python": {"configMap": {"name": "r", "key": "k.py"}, "function": "f"}}]
    grpo = make_job("GRPOJob", grpo={"rewards": rewards})
    assert [found.field for found in references(grpo)] == [
        "dataset.train.configMap",
        "grpo.rewards[0].python.configMap",
    ]


def test_a_config_map_must_have_the_key(make_job: Make) -> None:
    [reference] = references(make_job())
    assert check_reference(reference, None, 1).reason == "ConfigMapNotFound"
    assert check_reference(reference, {"metadata": {}, "data": {"a": ""}}, 1).reason == "ConfigMapKeyNotFound"
    assert check_reference(reference, {"metadata": {}, "data": {"train.jsonl": ""}}, 1) is None
    assert check_reference(reference, {"metadata": {}, "binaryData": {"train.jsonl": ""}}, 1) is None


@pytest.mark.parametrize(
    ("field", "modes", "nodes", "reason"),
    [
        ("storage", ["ReadWriteOnce"], 1, None),
        ("storage", ["ReadWriteOnce"], 2, "AccessModeNotShared"),
        ("storage", ["ReadOnlyMany"], 2, "AccessModeNotShared"),
        ("storage", ["ReadWriteOnce", "ReadWriteMany"], 2, None),
        ("model", ["ReadOnlyMany"], 2, None),
        ("model", ["ReadWriteOnce"], 2, "AccessModeNotShared"),
    ],
)
def test_several_nodes_need_a_claim_that_they_can_share(
    make_job: Make, field: str, modes: list[str], nodes: int, reason: str | None
) -> None:
    source = (
        {"model": {"volume": {"claimName": "c", "path": "m"}}} if field == "model" else {"storage": {"claimName": "c"}}
    )
    [reference] = [found for found in references(make_job(**source)) if found.name == "c"]
    blocker = check_reference(reference, {"metadata": {}, "spec": {"accessModes": modes}}, nodes)
    assert (blocker and blocker.reason) == reason


@pytest.mark.parametrize(
    ("modes", "nodes", "reason"),
    [
        (["ReadWriteOnce"], 1, None),
        (["ReadWriteOnce"], 2, "AccessModeNotShared"),
        (["ReadOnlyMany"], 2, "AccessModeNotShared"),
        (["ReadWriteMany"], 2, None),
    ],
)
def test_a_claim_that_an_earlier_job_has_left_must_fit_too(modes: list[str], nodes: int, reason: str | None) -> None:
    labels = {"trl-operator.io/job-uid": "an earlier one"}
    left = {**stored("PersistentVolumeClaim", "tune-dpo", 1, labels=labels), "spec": {"accessModes": modes}}
    blocker = check_retained(left, nodes)
    assert (blocker and blocker.reason) == reason
    if blocker:
        assert "delete the claim, or rename the job" in blocker.message


def test_rows_in_the_spec_are_counted_in_bytes(make_job: Make) -> None:
    rows = [{"prompt": "é" * 1000}]
    assert check_spec(make_job(dataset={"train": {"inline": rows * 64}})) is None
    assert check_spec(make_job(dataset={"train": {"inline": rows * 66}})).reason == "InlineTooLarge"


def test_what_is_accepted_fits_into_a_config_map_whatever_its_shape(make_job: Make) -> None:
    full = [{"prompt": [[[1]]] * 400, "chosen": "c", "rejected": "r"}] * 35
    dataset = {"train": {"inline": full}, "eval": {"inline": full}}
    schema = json.dumps({"type": "string", "description": '"' * 4000})
    rewards = [{"name": f"r{number}", "jsonSchema": {"schema": schema}} for number in range(16)]
    taken, refused = make_job(dataset=dataset), make_job("GRPOJob", dataset=dataset, grpo={"rewards": rewards})
    assert check_spec(taken) is None
    installation = Installation("trainer:1", "https://op:10443", "CA" * 4096)
    data = config_map(taken, 0, installation)["data"]
    assert 600_000 < sum(len(text.encode()) for text in data.values()) < 2**20
    blocker = check_spec(refused)
    assert (blocker.reason, blocker.final) == ("SpecTooLarge", True)
    assert "at most 983040: shorten its texts" in blocker.message
    assert check_spec(make_job("GRPOJob", grpo={"rewards": rewards})) is None


def test_one_job_has_one_hub_token(make_job: Make) -> None:
    def source(secret: str) -> dict[str, Any]:
        return {"hub": {"repo": "a/b", "tokenSecretRef": {"name": secret}}}

    assert check_spec(make_job(model=source("a"), dataset={"train": source("a")})) is None
    assert check_spec(make_job(model=source("a"), dataset={"train": source("b")})).reason == "InvalidSpec"


# -- cache


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
    cache = Cache()
    cache.follow(changed.append)
    cache.put_job(stored("DPOJob", "tune", 5, managedFields=[1]))
    cache.put_job(stored("DPOJob", "tune", 4))
    cache.put_pod(pod(7, "Failed"))
    cache.put_pod(pod(6))
    key = ("DPOJob", "team", "tune")
    assert cache.jobs[key]["metadata"]["resourceVersion"] == "5"
    assert cache.jobs[key].keys() == {"kind", "metadata", "status"}
    assert "managedFields" not in cache.jobs[key]["metadata"]
    assert [found.phase for found in cache.pods(ATTEMPT)] == ["Failed"]
    assert changed == [key, key]


def job(version: int, attempt: int = 0, **metadata: Any) -> dict[str, Any]:
    return {**stored("DPOJob", "tune", version, **metadata), "status": {"attempt": attempt}}


def test_a_pod_that_is_gone_is_remembered_in_its_last_state_until_its_attempt_is_over() -> None:
    cache = Cache()
    cache.put_job(job(1))
    cache.put_pod(pod(1))
    cache.drop_pod(pod(2, "Failed"))
    [found] = cache.pods(ATTEMPT)
    assert (found.gone, found.phase) == (True, "Failed")
    cache.put_pod(pod(3))
    assert cache.pods(ATTEMPT) == [found], "a late event does not bring it back"
    cache.put_job(job(4, attempt=1))
    assert cache.pods(ATTEMPT) == []


def relist(keeper: Any, plural: str, listed: list[Any], version: int, namespaces: list[str] | None = None) -> None:
    """Hand over a fresh list, as Relist does."""
    for watched in keeper.watched():
        if watched.resource.plural == plural:
            for obj in listed:
                watched.put(obj)
            watched.sweep(namespaces or [], {obj["metadata"]["uid"] for obj in listed}, version)


def forgotten(cache: Cache) -> bool:
    return not cache._pods and not cache._pods_of


def test_nothing_is_left_of_a_job_whose_pods_go_after_it() -> None:
    changed: list[Any] = []
    cache = Cache()
    cache.put_job(job(1))
    cache.put_pod(pod(2))
    cache.follow(changed.append)
    cache.drop_job(("DPOJob", "team", "tune"))
    cache.put_pod(pod(3, "Failed"))
    cache.drop_pod(pod(4, "Failed"))
    assert forgotten(cache)
    cache.drop_pod(pod(4, "Failed"))
    cache.put_pod(pod(5))
    relist(cache, "pods", [], 6)
    assert forgotten(cache), "a relist finds out too"


def test_nothing_is_left_of_a_job_that_another_one_of_its_name_has_replaced_unseen() -> None:
    cache = Cache()
    cache.put_job(job(1))
    cache.put_pod(pod(2))
    cache.drop_pod(pod(3))
    cache.put_job(job(4, uid="another"))
    assert forgotten(cache)


def test_pods_of_an_attempt_that_is_over_are_not_kept_though_they_stay_for_their_logs() -> None:
    cache = Cache()
    cache.put_job(job(1))
    cache.put_pod(pod(2, "Failed"))
    cache.put_job(job(3, attempt=1))
    assert forgotten(cache)
    relist(cache, "pods", [pod(2, "Failed")], 4)
    assert forgotten(cache)


def test_pods_that_are_gone_are_forgotten_with_the_end_of_their_job() -> None:
    cache = Cache()
    cache.put_job(job(1))
    cache.put_pod(pod(2, "Succeeded"))
    ended = job(3)
    ended["status"]["completionTime"] = "2026-11-21T12:00:00Z"
    cache.put_job(ended)
    assert len(cache.pods(ATTEMPT)) == 1, "it may still report"
    cache.drop_pod(pod(4, "Succeeded"))
    assert forgotten(cache)
    cache.put_job(job(5))
    cache.put_pod(pod(6))
    cache.drop_pod(pod(7))
    assert not forgotten(cache)
    cache.put_job({**ended, "metadata": job(8)["metadata"]})
    assert forgotten(cache)


def test_only_the_next_attempts_pods_are_known_before_their_job_tells_of_it() -> None:
    cache = Cache()
    cache.put_job(job(1, attempt=3))
    for attempt in (2, 3, 4, 5, 999):
        found = pod(2)
        found["metadata"]["uid"] = f"pod-{attempt}"
        found["metadata"]["labels"]["trl-operator.io/attempt"] = str(attempt)
        cache.put_pod(found)
    assert sorted(cache._pods) == ["pod-3", "pod-4"]


def test_a_pod_that_is_known_before_its_job_is_kept() -> None:
    cache = Cache()
    cache.put_pod(pod(2))
    cache.put_job(job(1))
    assert [found.version for found in cache.pods(ATTEMPT)] == [2]


def test_who_begins_to_follow_hears_of_all_jobs_that_are_there_and_of_none_that_is_gone() -> None:
    changed: list[Any] = []
    cache = Cache()
    for name in ("gone", "there"):
        cache.put_job(stored("DPOJob", name, 1))
    cache.drop_job(("DPOJob", "team", "gone"))
    cache.follow(changed.append)
    assert changed == [("DPOJob", "team", "there")]
    cache.put_pod(pod(2))
    assert changed == [("DPOJob", "team", "there"), ("DPOJob", "team", "tune")]


def test_a_relist_finds_what_was_deleted_unseen_and_spares_what_is_newer() -> None:
    changed: list[Any] = []
    cache = Cache()
    cache.follow(changed.append)
    cache.put_job(job(30))
    cache.put_job(stored("DPOJob", "old", 5))
    cache.put_job(stored("DPOJob", "new", 50))
    cache.put_job(stored("SFTJob", "other", 5))
    cache.put_pod(pod(5))
    relist(cache, "dpojobs", [stored("DPOJob", "kept", 8)], 20)
    relist(cache, "pods", [], 20)
    assert {key[2] for key in cache.jobs} == {"new", "other", "kept", "tune"}
    assert [found.gone for found in cache.pods(ATTEMPT)] == [True]
    relist(cache, "dpojobs", [], 99, ["elsewhere"])
    assert {key[2] for key in cache.jobs} == {"new", "other", "kept", "tune"}


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
    cache = Cache()
    cache.put_job(job(1))
    cache.follow(changed.append)
    changed.clear()
    odd = pod(8)
    labels = odd["metadata"]["labels"]
    labels |= {f"trl-operator.io/{name}": value for name, value in change.items()}
    odd["metadata"]["labels"] = {name: value for name, value in labels.items() if value is not None}
    cache.put_pod(odd)
    cache.drop_pod(odd)
    relist(cache, "pods", [odd], 9)
    assert forgotten(cache)
    assert changed == [], "no key that the workers would stumble over"
    cache.put_pod(pod(7))
    cache.put_pod(odd)
    assert [found.gone for found in cache.pods(ATTEMPT)] == [True], "it has left its attempt"


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
    cache = Cache()
    known = {
        **stored("DPOJob", "tune", 1),
        "status": {"attempt": 0, "workload": {"kind": "PyTorchJob", "name": "tune-dpo-0", "uid": "c"}},
    }
    attempt = current_attempt(known)
    assert attempt is not None
    foreign = pod(1)
    foreign["metadata"] |= metadata
    foreign["metadata"]["ownerReferences"][0] |= owner
    cache.put_pod(foreign)
    assert cache.pods(attempt) == []
    cache.put_pod({**pod(1), "metadata": {**pod(1)["metadata"], "uid": "ours"}})
    assert [found.uid for found in cache.pods(attempt)] == ["ours"]


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
    cache = Cache()
    cache.follow(changed.append)
    cache.put_child(child(1, **owner))
    relist(cache, "pytorchjobs", [child(2, **owner)], 3)
    assert (cache.children("tune-uid", "team"), changed) == ([], [])
    cache.put_child(child(4))
    assert [found.job for found in cache.children("tune-uid", "team")] == [("DPOJob", "team", "tune")]
    cache.put_child(child(5, **owner))
    assert cache.children("tune-uid", "team") == []


def test_a_pytorchjob_with_an_odd_label_is_still_its_jobs() -> None:
    cache = Cache()
    odd = child(1)
    odd["metadata"]["labels"]["trl-operator.io/attempt"] = "b"
    cache.put_child(odd)
    assert [(found.attempt, found.name) for found in cache.children("tune-uid", "team")] == [(-1, "tune-dpo-0")]


# -- settings, metrics, events


def test_settings_come_from_the_environment() -> None:
    settings = from_environment(
        Settings, {**ENVIRONMENT, "TRL_OPERATOR_WATCH_NAMESPACES": "a,b", "TRL_OPERATOR_WORKERS": "3"}
    )
    assert (settings.namespaces, settings.workers, settings.identity) == (["a", "b"], 3, "pod-1")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"TRL_OPERATOR_IDENTITY": None}, "identity"),
        ({"TRL_OPERATOR_WORKERS": "many"}, "workers"),
        ({"TRL_OPERATOR_RECEIVER_URL": "http://op"}, "receiver_url"),
        ({"TRL_OPERATOR_WROKERS": "3"}, "wrokers"),
    ],
)
def test_a_missing_wrong_or_unknown_setting_is_named(change: dict[str, str | None], names: str) -> None:
    environment = {name: value for name, value in {**ENVIRONMENT, **change}.items() if value is not None}
    with pytest.raises(ValidationError, match=names):
        from_environment(Settings, environment)


def test_the_receiver_needs_no_setting_and_takes_none_of_the_controllers() -> None:
    assert from_environment(ReceiverSettings, {}).writes_per_second == 25
    for name, value in {"LEASE_NAME": "x", "WRITES_PER_SECOND": "0"}.items():
        with pytest.raises(ValidationError, match=name.lower()):
            from_environment(ReceiverSettings, {f"TRL_OPERATOR_{name}": value})


def test_metrics_are_in_prometheus_form() -> None:
    metrics = Metrics()
    metrics.count("reports_total", result="accepted")
    metrics.count("reports_total", result="accepted")
    metrics.count("reports_total", result='a"b\n')
    metrics.gauge("leader", lambda: 1.0)
    assert metrics.render().splitlines() == [
        "# TYPE reports_total counter",
        'reports_total{result="a\\"b\\n"} 1',
        'reports_total{result="accepted"} 2',
        "# TYPE leader gauge",
        "leader 1",
    ]


def test_each_transition_is_told_once() -> None:
    def status(*conditions: tuple[str, str, str], **fields: Any) -> dict[str, Any]:
        found = [{"type": t, "status": s, "reason": r, "message": "m"} for t, s, r in conditions]
        return {"conditions": found, **fields}

    accepted = ("Accepted", "True", "Accepted")
    refused = status(("Accepted", "False", "ConfigMapNotFound"))
    started = status(
        accepted, ("Running", "False", "Starting"), attempt=0, workload={"kind": "PyTorchJob", "name": "x", "uid": "u"}
    )
    runs = status(
        accepted,
        ("Running", "True", "AllPodsRunning"),
        attempt=0,
        workload={"kind": "PyTorchJob", "name": "x", "uid": "u"},
    )
    again = status(accepted, ("Running", "False", "PeerLost"), attempt=1, restarts=1)
    ended = status(accepted, ("Succeeded", "True", "Succeeded"), completionTime="t", restarts=1, attempt=1)
    story = [{}, refused, refused, started, runs, runs, again, ended, ended]
    told = [[event.reason for event in events(a, b)] for a, b in pairwise(story)]
    assert told == [
        ["ConfigMapNotFound"],
        [],
        ["AttemptStarted"],
        ["Running"],
        [],
        ["AttemptFailed"],
        ["Succeeded"],
        [],
    ]
    failed = status(("Succeeded", "False", "StorageFull"), completionTime="t")
    [event] = events(runs, failed)
    assert (event.type, event.reason, event.message) == ("Warning", "Failed", "StorageFull: m")


def test_a_watch_is_tried_again_without_end_and_at_least_every_ten_seconds() -> None:
    for _ in range(2):
        pauses = list(islice(Backoffs(), 100))
        assert pauses[:5] == [1, 2, 4, 8, 10]
        assert max(pauses) == 10


# -- health


def test_a_process_that_is_stuck_is_not_healthy() -> None:
    async def main() -> None:
        ages = {"queue": 0.0, "relist": 0.0}
        health = Health(lambda: ages["relist"], 600, lambda: ages["queue"])
        beat = asyncio.create_task(health.beat())
        await asyncio.sleep(0)
        assert health.problems() == []
        ages.update(queue=301, relist=1801)
        assert len(health.problems()) == 2
        beat.cancel()
        health._beat -= 20
        assert any("lags" in problem for problem in health.problems())

    asyncio.run(main())
