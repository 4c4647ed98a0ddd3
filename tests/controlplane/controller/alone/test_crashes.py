"""A network that loses answers, and an API server that refuses: the end is the same."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from chaos import about
from reporting import Trainer, report

from devcluster.fakenode import FakeNode, Pod
from devcluster.faultproxy import FaultProxy, Request, Verdict
from devcluster.waiting import wait_for


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
    quick_operator: Any,
    proxy: FaultProxy,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    """Every first write of a kind takes effect but its answer is lost, or is refused."""
    node.policy = finish_everything(record())
    operator = quick_operator
    hit: set[tuple[str, str]] = set()

    def once(request: Request) -> Verdict:
        key = (request.method, request.resource)
        if not request.writes or about(request, {}) != "j0001" or key in hit:
            return "pass"
        hit.add(key)
        return fault

    if fault == "reset":
        proxy.after = once
    else:
        proxy.before = once
    operator.start()
    jobs.apply(dpo("j0001"))
    status = jobs.wait_for_phase("j0001", "Succeeded", seconds=90)
    assert status["attempt"] == 0
    assert [child["metadata"]["name"] for child in jobs.list("pytorchjobs")] == ["j0001-dpo-0"]
    assert len(hit) >= 6, hit


def test_lists_that_are_cut_short_end_no_leader(
    quick_operator: Any,
    proxy: FaultProxy,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    """The first ones that kopf asks for, when everything has been listed once, and one of those that follow."""
    node.policy = finish_everything(record())
    operator = quick_operator
    lists: Counter[str] = Counter()
    spoilt: list[str] = []

    def cut(request: Request) -> Verdict:
        if not request.lists:
            return "pass"
        place = f"{request.path}?{request.query}"
        lists[place] += 1
        if lists[place] < 2 or len(spoilt) == 6:
            return "pass"
        spoilt.append(place)
        return "truncate"

    proxy.after = cut
    operator.start()
    jobs.apply(dpo("j0001"))
    jobs.wait_for_phase("j0001", "Succeeded", seconds=90)
    assert len(spoilt) == 6
    assert "everything is listed and watched anew" in operator.log.read_text()
    assert operator.process.poll() is None
    assert operator.leads()
    lease = jobs.get("lease", "trl-operator")["spec"]
    assert (lease["holderIdentity"], lease["leaseTransitions"]) == ("operator-0", 1)


def test_a_success_whose_pods_went_while_nobody_looked_has_the_artifacts_of_its_last_report(
    quick_operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    operator = quick_operator
    operator.start()
    operator.receiver.start()
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    artifact = {"type": "model", "uri": "uid/final", "digest": "sha256:0"}
    told = report(40, artifacts=[artifact])
    assert Trainer(node, pod).post({**told, "trainerStatus": {**told["trainerStatus"], "progressPercentage": 100}})[0]
    jobs.wait("dpojob", "tune", "shows the report", lambda status: status.get("progress", {}).get("artifacts"))
    operator.kill()
    node.succeed(pod, record(artifacts=[artifact]))

    def has_succeeded() -> bool:
        conditions = jobs.get("pytorchjob", "tune-dpo-0").get("status", {}).get("conditions", ())
        return any(found["type"] == "Succeeded" and found["status"] == "True" for found in conditions)

    wait_for("the PyTorchJob has succeeded", has_succeeded, 30)
    jobs.delete("pod", pod["metadata"]["name"])
    wait_for("the pod is gone", lambda: jobs.get("pod", pod["metadata"]["name"]) is None, 30)
    operator.start()
    status = jobs.wait_for_phase("tune", "Succeeded")
    place = {"claimName": "tune-dpo", "path": "uid/final"}
    [found] = status["artifacts"]
    assert "/claim/uid/final" in found.pop("fetchCommand")
    assert found == {"type": "model", "digest": "sha256:0", **place}
    [ended] = [found for found in status["conditions"] if found["type"] == "Succeeded"]
    assert ended["reason"] == "NoExitRecord"
    assert ended["message"].endswith("artifacts are those of its last report")
