"""The operator killed before and after each of its writes, and a network that loses answers: the end is the same."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode, Pod
from devcluster.faultproxy import FaultProxy, Request, Verdict
from devcluster.waiting import wait_for

START_WRITES = 9
"""Claim, NetworkPolicy, ConfigMap, PyTorchJob, three statuses and two events bring a job to Running."""
END_WRITES = 2
"""A status and an event say that it has succeeded."""


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Any:
    with FaultProxy(control_plane.url, control_plane.ca) as proxy:
        yield proxy


def through(operator: Any, proxy: FaultProxy) -> None:
    """Make the operator talk to the API server through the proxy."""
    config = json.loads(operator.kubeconfig.read_text())
    config["clusters"][0]["cluster"] = {"server": proxy.url}
    operator.kubeconfig = operator.kubeconfig.with_suffix(".proxy")
    operator.kubeconfig.write_text(json.dumps(config))


def is_about(request: Request, name: str) -> bool:
    """Whether a write concerns the job `name`; names are such that none is part of another."""
    return request.writes and (f"/{name}" in request.path or f'"{name}'.encode() in request.body)


def end(status: dict[str, Any]) -> dict[str, Any]:
    """What must be the same whatever happened on the way."""
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    kept = {name: status.get(name) for name in ("phase", "attempt", "restarts", "artifacts", "failure", "retry")}
    return {**kept, "conditions": conditions}


class Killer:
    """Kills the operator before or after the n-th write about a job."""

    def __init__(self, operator: Any, proxy: FaultProxy, moment: str, name: str, write: int) -> None:
        self.operator = operator
        self.name = name
        self.left = write
        self.killed = False
        proxy.before = proxy.after = lambda _: "pass"
        setattr(proxy, moment, self)

    def __call__(self, request: Request) -> Verdict:
        if self.killed or not is_about(request, self.name):
            return "pass"
        if self.left > 0:
            self.left -= 1
            return "pass"
        self.operator.kill()
        self.killed = True
        return "reset"

    def wait(self) -> None:
        wait_for(f"the operator is killed by {self.name}", lambda: self.killed, 90, 0.05)


def points(writes: int) -> list[tuple[str, int, str]]:
    """Every moment at which the operator is killed, with the name of the job that it is killed by."""
    return [(m, n, f"{m}{n:02d}x") for m in ("before", "after") for n in range(writes)]


def run_pods(node: FakeNode, pod: Pod) -> None:
    if pod["status"]["phase"] == "Pending":
        node.run(pod)


def test_killed_at_any_write_on_the_way_to_running_it_makes_one_pytorchjob(
    make_operator: Callable[..., Any], proxy: FaultProxy, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    node.policy = run_pods
    operator = make_operator()
    through(operator, proxy)
    names = [name for _, _, name in points(START_WRITES)]
    for moment, write, name in points(START_WRITES):
        killer = Killer(operator, proxy, moment, name, write)
        jobs.apply(dpo(name))
        operator.start(wait=False)
        killer.wait()
    jobs.apply(dpo("reference"))
    operator.start()
    statuses = [jobs.wait_for_phase(name, "Running", seconds=120) for name in ["reference", *names]]
    assert all(end(status) == end(statuses[0]) for status in statuses)
    children = sorted(child["metadata"]["name"] for child in jobs.list("pytorchjobs"))
    assert children == sorted(f"{name}-dpo-0" for name in ["reference", *names])
    assert created(jobs, operator, "pytorchjobs") == children
    assert writes_about(jobs, operator, "reference") == START_WRITES, "START_WRITES has changed"


def test_killed_at_any_write_at_the_end_of_a_job_it_ends_the_same(
    make_operator: Callable[..., Any],
    proxy: FaultProxy,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    node.policy = run_pods
    operator = make_operator()
    through(operator, proxy)
    operator.start()
    names = [name for _, _, name in points(END_WRITES)]
    jobs.apply(*(dpo(name) for name in ["reference", *names]))
    for name in ["reference", *names]:
        jobs.wait_for_phase(name, "Running")
    message = record(artifacts=[{"type": "model", "uri": "u", "digest": "sha256:0"}])
    for moment, write, name in points(END_WRITES):
        killer = Killer(operator, proxy, moment, name, write)
        node.succeed(node.pods(f"{name}-dpo-0")[0], message)
        killer.wait()
        operator.start()
    before = writes_about(jobs, operator, "reference")
    node.succeed(node.pods("reference-dpo-0")[0], message)
    statuses = [jobs.wait_for_phase(name, "Succeeded", seconds=120) for name in ["reference", *names]]
    assert all(end(status) == end(statuses[0]) for status in statuses)
    assert len(jobs.list("pytorchjobs")) == 1 + len(names)
    wait_for(
        "the last event is written",
        lambda: writes_about(jobs, operator, "reference") == before + END_WRITES,
        20,
    )


def created(jobs: Any, operator: Any, resource: str) -> list[str]:
    """Names of what the operator has created, once for each time."""
    entries = jobs.plane.audit(operator.user)
    found = [e for e in entries if e["verb"] == "create" and e["objectRef"]["resource"] == resource]
    return sorted(e["objectRef"]["name"] for e in found if e["responseStatus"]["code"] == 201)


def writes_about(jobs: Any, operator: Any, name: str) -> int:
    """How many writes of the operator about a job the API server has accepted."""
    verbs = ("create", "patch", "update", "delete")
    entries = [e for e in jobs.plane.audit(operator.user) if e["verb"] in verbs and e["responseStatus"]["code"] < 300]
    return sum((e["objectRef"].get("name") or "").startswith(name) for e in entries)


def finish_everything(message: str) -> Callable[[FakeNode, Pod], None]:
    def policy(node: FakeNode, pod: Pod) -> None:
        if pod["status"]["phase"] == "Pending":
            node.run(pod)
        else:
            node.succeed(pod, message)

    return policy


@pytest.mark.parametrize("fault", ["reset", 503, 429])
def test_answers_that_get_lost_or_refused_change_nothing(
    fault: Verdict,
    make_operator: Callable[..., Any],
    proxy: FaultProxy,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    """Every first write of a kind takes effect but its answer is lost, or is refused."""
    node.policy = finish_everything(record())
    operator = make_operator()
    through(operator, proxy)
    hit: set[tuple[str, str]] = set()

    def once(request: Request) -> Verdict:
        resource = "/".join(part for part in request.path.split("/") if "tune" not in part)
        key = (request.method, resource)
        if not is_about(request, "tune") or key in hit:
            return "pass"
        hit.add(key)
        return fault

    if fault == "reset":
        proxy.after = once
    else:
        proxy.before = once
    operator.start()
    jobs.apply(dpo())
    status = jobs.wait_for_phase("tune", "Succeeded", seconds=90)
    assert status["attempt"] == 0
    assert [child["metadata"]["name"] for child in jobs.list("pytorchjobs")] == ["tune-dpo-0"]
    assert len(hit) >= 6, hit
