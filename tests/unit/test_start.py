"""policy/start.py: gangs of which some pods have a node and others find none."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from shown import condition

from trl_operator.backend import pod_from
from trl_operator.plan.observation import format_time
from trl_operator.plan.view import View
from trl_operator.policy.start import half_since, release_time
from trl_operator.status.lifecycle import decide
from trl_operator.store.store import Store

Make = Callable[..., Any]
STORAGE = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: no GPU"}


def placed(at: datetime) -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": format_time(at)}]}


@pytest.fixture
def gang(pod_object: Make, now: datetime) -> Callable[[], list[dict[str, Any]]]:
    """Two pods: one got its node at `now`, the other finds none."""

    def make(**labels: str) -> list[dict[str, Any]]:
        first, second = pod_object(0, "Pending", **placed(now)), pod_object(1, "Pending", conditions=[NO_NODE])
        second["spec"] = {}
        for pod in (first, second):
            pod["metadata"]["labels"] |= labels
            pod["metadata"]["uid"] += labels.get("trl-operator.io/job-uid", "")
        return [first, second]

    return make


@pytest.fixture
def pods(gang: Make, make_pod: Make, now: datetime) -> tuple[Any, ...]:
    return tuple(pod_from(pod) for pod in gang())


def test_only_a_gang_with_nodes_for_some_of_its_pods_is_counted(make_pod: Make, pods: Any, now: datetime) -> None:
    assert half_since(pods, 2) == now
    assert half_since(pods[:1], 2) == now, "the other pod has yet to be made"
    assert half_since(pods[1:], 2) is None
    ended = make_pod(1, "Succeeded", exit_code=0, **placed(now))
    assert half_since([pods[0], ended], 2) is None, "one that has ended had its node"
    assert half_since([make_pod(0, "Pending", **placed(now)), make_pod(1, "Pending", **placed(now))], 2) is None


def test_the_younger_gives_way_first(now: datetime) -> None:
    assert release_time(now, 900, older_waits=True) == now + timedelta(seconds=900)
    assert release_time(now, 900, older_waits=False) == now + timedelta(seconds=1800)


@pytest.mark.parametrize(("older_waits", "seconds"), [(True, 900), (False, 1800)])
def test_a_half_gang_gives_its_nodes_back_and_starts_again_at_no_cost(
    make_job: Make, make_child: Make, pods: Any, now: datetime, older_waits: bool, seconds: int
) -> None:
    job = make_job(numNodes=2, storage=STORAGE, runPolicy={"maxRestarts": 0})
    status = decide(job, decide(job, {}, View(), now).status, View(make_child(0)), now).status
    view = View(make_child(0), pods=pods, older_waits=older_waits)
    waits = decide(job, status, view, now + timedelta(seconds=seconds - 1))
    assert (waits.delete, waits.requeue) == ([], 1)
    now += timedelta(seconds=seconds)
    release = decide(job, waits.status, view, now)
    assert [child.uid for child in release.delete] == ["child-0"]
    assert condition(release.status, "Running")["reason"] == "StartTimeout"
    assert "0/1 nodes: no GPU" in condition(release.status, "Running")["message"]
    alone = decide(job, release.status, View(make_child(0, deleting=True), pods=pods[:1]), now)
    assert alone.status["attempt"] == 0, "its pods have yet to go"
    gone = View(pods=tuple(pod.vanished() for pod in pods))
    for attempt in range(9):
        again = decide(job, release.status, gone, now)
        assert (again.status["attempt"], again.status["retry"]["counted"]) == (attempt + 1, 0)
        assert again.status["phase"] == "Restarting"
        release.status = {**release.status, "attempt": attempt + 1, "retry": again.status["retry"]}


def test_an_attempt_that_has_run_gives_nothing_back_whatever_is_left_of_its_pods(
    make_job: Make, make_child: Make, make_pod: Make, now: datetime
) -> None:
    job = make_job(numNodes=2, storage=STORAGE)
    status = decide(job, decide(job, {}, View(), now).status, View(make_child(0)), now).status
    both = tuple(make_pod(index, **placed(now)) for index in (0, 1))
    status = decide(job, status, View(make_child(0), pods=both), now).status
    assert status["phase"] == "Running"
    later = decide(job, status, View(make_child(0), pods=both[:1]), now + timedelta(days=1))
    assert not later.delete


def test_an_older_job_in_the_same_state_is_found(gang: Make, pod_object: Make, job_object: Make, now: datetime) -> None:
    store = Store()
    job = job_object()
    for name, uid, created in (("old", "u-old", "2026-11-01T00:00:00Z"), ("young", "u-young", "2026-11-02T00:00:00Z")):
        metadata = {**job["metadata"], "name": name, "uid": uid, "creationTimestamp": created, "resourceVersion": "1"}
        store.put_job({**job, "metadata": metadata})
    young = {"trl-operator.io/job-uid": "u-young", "trl-operator.io/job-name": "young"}
    old = {"trl-operator.io/job-uid": "u-old", "trl-operator.io/job-name": "old"}
    for pod in gang(**young):
        store.put_pod(pod)
    assert not store.an_older_job_waits("u-young")
    first, second = gang(**old)
    store.put_pod(first)
    assert not store.an_older_job_waits("u-young"), "all pods of the older one have a node"
    store.put_pod(second)
    assert store.an_older_job_waits("u-young")
    assert not store.an_older_job_waits("u-old")
