"""A network that loses answers, and an API server that refuses: the end is the same."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from chaos import about, through

from devcluster.fakenode import FakeNode, Pod
from devcluster.faultproxy import FaultProxy, Request, Verdict


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
    make_operator: Callable[..., Any],
    proxy: FaultProxy,
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
    record: Callable[..., str],
) -> None:
    """The first ones that kopf asks for, when everything has been listed once, and one of those that follow."""
    node.policy = finish_everything(record())
    operator = make_operator()
    through(operator, proxy)
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
