"""A job that uses the result of another one: when it may start, and what it then finds."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from shown import condition

from trl_operator.plan.upstream import check_upstream, upstreams, used, with_upstreams
from trl_operator.plan.view import View
from trl_operator.render.manifests import job_file
from trl_operator.status.lifecycle import decide
from trl_operator.store.store import Store

Make = Callable[..., Any]
MODEL = {"type": "model", "claimName": "judge-rm", "path": "uid-rm/final", "digest": "sha256:0"}
OLD = {"type": "model", "uri": "uid-rm/final", "digest": "sha256:0"}
"""As version 0.1 of the operator has written it."""


def rewards(**options: Any) -> dict[str, Any]:
    judge = {"name": "judge", "rewardModel": {"fromJob": {"name": "judge"}, **options}}
    return {"rewards": [{"name": "short", "length": {"target": 5}}, judge]}


@pytest.fixture
def judge(job_object: Make) -> Callable[..., dict[str, Any]]:
    """A RewardJob as it is stored."""

    def make(phase: str | None = "Succeeded", accuracy: str | None = "0.8", **status: Any) -> dict[str, Any]:
        obj = job_object("RewardJob")
        obj["metadata"]["name"] = "judge"
        ended = {"type": "Succeeded", "status": str(phase == "Succeeded"), "reason": str(phase), "message": ""}
        conditions = [{**ended, "lastTransitionTime": "2026-11-21T12:00:00Z"}] if phase != "Running" else []
        known = {"phase": phase, "conditions": conditions, "artifacts": [MODEL]}
        obj["status"] = {**known, **status} if phase else {}
        if accuracy is not None:
            obj["status"]["evaluation"] = {"after": [{"name": "accuracy", "value": accuracy}]}
        return dict(obj)

    return make


@pytest.mark.parametrize(
    ("phase", "accuracy", "options", "expected"),
    [
        ("Succeeded", "0.8", {}, None),
        ("Succeeded", "0.6", {}, None),
        ("Running", None, {}, ("UpstreamNotFinished", False, "judge, which is Running")),
        (None, None, {}, ("UpstreamNotFinished", False, "judge, which is Pending")),
        ("Failed", None, {}, ("UpstreamFailed", True, "has ended as Failed")),
        ("Cancelled", None, {}, ("UpstreamFailed", True, "has ended as Cancelled")),
        ("Succeeded", "0.59", {}, ("RewardModelNotValidated", True, "accuracy 0.59 on its held-out pairs, below 0.6")),
        ("Succeeded", "0.8", {"minAccuracy": 0.9}, ("RewardModelNotValidated", True, "below 0.9")),
        ("Succeeded", None, {}, ("RewardModelNotValidated", True, "was not evaluated")),
        ("Succeeded", None, {"acknowledgeUnvalidated": True}, None),
        ("Succeeded", "0.1", {"acknowledgeUnvalidated": True}, None),
    ],
)
def test_a_reward_model_must_be_there_and_be_good_enough(
    make_job: Make, judge: Make, phase: str, accuracy: str, options: dict[str, Any], expected: Any
) -> None:
    [upstream] = upstreams(make_job("GRPOJob", grpo=rewards(**options)))
    found = check_upstream(upstream, judge(phase, accuracy))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.reason, found.fails, found.condition) == (*expected[:2], "UpstreamReady")
        assert found.message.startswith("grpo.rewards[1].rewardModel.fromJob names RewardJob judge")
        assert expected[2] in found.message


def test_a_job_that_left_no_model_and_one_that_is_not_there(make_job: Make, judge: Make) -> None:
    [upstream] = upstreams(make_job("GRPOJob", grpo=rewards()))
    without = check_upstream(upstream, judge(artifacts=[]))
    assert without is not None
    assert (without.reason, without.fails) == ("UpstreamFailed", True)
    missing = check_upstream(upstream, None)
    assert missing is not None
    assert (missing.reason, missing.fails) == ("UpstreamNotFound", False)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({**MODEL, "path": "/etc/passwd"}, "path: String should match pattern"),
        ({**MODEL, "path": "../other/final"}, "path: String should match pattern"),
        ({**MODEL, "path": "u/" + "x" * 1030}, "path: String should have at most 1024 characters"),
        ({**OLD, "uri": "../other/final"}, "path: String should match pattern"),
    ],
)
def test_a_model_that_cannot_be_mounted_fails_the_job_that_waits_for_it(
    make_job: Make, judge: Make, now: datetime, model: dict[str, str], words: str
) -> None:
    stored = judge(artifacts=[model])
    job = make_job("GRPOJob", grpo=rewards())
    [upstream] = upstreams(job)
    blocker = check_upstream(upstream, stored)
    assert blocker is not None
    assert f"names RewardJob judge, whose model '{model.get('path', model.get('uri'))[:90]}" in blocker.message
    assert words in blocker.message
    failed = decide(job, {}, View(blocker=blocker), now).status
    assert (failed["phase"], failed["failure"]["reason"]) == ("Failed", "UpstreamFailed")
    cancelled = make_job("GRPOJob", grpo=rewards(), runPolicy={"cancel": True})
    assert decide(cancelled, {}, View(blocker=blocker), now).status["phase"] == "Cancelled"


def test_the_model_is_found_in_the_other_jobs_claim(make_job: Make, judge: Make) -> None:
    job = make_job("GRPOJob", grpo=rewards())
    file = job_file(with_upstreams(job, {"judge": judge()}))
    assert file.paths.rewards == {"judge": "/mnt/rewards/judge/uid-rm/final"}
    assert file.spec.grpo.rewards[1].reward_model.source.volume.claim_name == "judge-rm"


def test_the_model_of_a_job_that_an_older_operator_ended_is_found_by_its_spec(make_job: Make, judge: Make) -> None:
    job = make_job("GRPOJob", grpo=rewards())
    [upstream] = upstreams(job)
    shared = judge(artifacts=[OLD])
    shared["spec"] |= {"storage": {"claimName": "team-claim", "subPath": "judges/v1"}, "newer": {"field": 1}}
    assert check_upstream(upstream, shared) is None
    source = with_upstreams(job, {"judge": shared}).training.grpo.rewards[1].reward_model.source
    assert (source.volume.claim_name, source.volume.path) == ("team-claim", "judges/v1/uid-rm/final")


def test_a_job_without_upstreams_stays_what_it_is(make_job: Make) -> None:
    job = make_job()
    assert with_upstreams(job, {}) is job


def test_the_job_waits_as_blocked_and_fails_with_what_it_waits_for(make_job: Make, judge: Make, now: datetime) -> None:
    job = make_job("GRPOJob", grpo=rewards())
    [upstream] = upstreams(job)
    waiting = decide(job, {}, View(blocker=check_upstream(upstream, judge("Running", None))), now)
    assert (waiting.status["phase"], waiting.create) == ("Blocked", False)
    assert condition(waiting.status, "Accepted")["status"] == "True"
    assert condition(waiting.status, "UpstreamReady")["reason"] == "UpstreamNotFinished"
    assert waiting.requeue is None
    failed = decide(job, waiting.status, View(blocker=check_upstream(upstream, judge("Failed", None))), now)
    assert (failed.status["phase"], failed.status["failure"]["reason"]) == ("Failed", "UpstreamFailed")
    ready = decide(job, waiting.status, View(), now)
    assert ready.create
    assert condition(ready.status, "UpstreamReady")["status"] == "True"


def test_only_a_job_that_has_not_ended_awaits_its_upstream(job_object: Make) -> None:
    def stored(obj: dict[str, Any], version: int) -> dict[str, Any]:
        return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version)}}

    store, key, changed = Store(), ("RewardJob", "team", "judge"), []
    obj = job_object("GRPOJob", grpo=rewards())
    assert used(obj) == (key,)
    assert used(job_object("GRPOJob")) == used(job_object()) == ()
    store.put_job(stored(obj, 1))
    store.follow(changed.append)
    changed.clear()
    assert store.is_awaited(key)
    assert not store.is_awaited(("RewardJob", "elsewhere", "judge"))
    store.put_job(stored({**obj, "status": {"phase": "Succeeded", "completionTime": "2026-11-21T12:00:00Z"}}, 2))
    assert not store.is_awaited(key)
    assert key in changed, "its TTL may be over"
