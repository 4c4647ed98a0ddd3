"""A job that uses the result of another one: when it may start, and what it then finds."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from shown import checkpoint, condition

from trl_contract.jobfile import JobFile
from trl_contract.report import Progress
from trl_contract.upstreams import Upstream
from trl_operator.api.job import Job
from trl_operator.api.status import UpstreamRef
from trl_operator.plan.acceptance import Blocker, check_reference, references
from trl_operator.plan.upstream import (
    Result,
    as_pinned,
    check_cycle,
    look,
    refs,
    upstreams,
    used,
    with_results,
)
from trl_operator.plan.view import View
from trl_operator.render.manifests import job_file
from trl_operator.render.run import pin
from trl_operator.status.lifecycle import decide
from trl_operator.status.progress import progress_fields
from trl_operator.store.store import Store

Make = Callable[..., Any]
MODEL = {"type": "model", "claimName": "judge-rm", "path": "uid-rm/final", "digest": "sha256:0"}
OLD = {"type": "model", "uri": "uid-rm/final", "digest": "sha256:0"}
"""As version 0.1 of the operator has written it."""


def rewards(**options: Any) -> dict[str, Any]:
    judge = {"name": "judge", "rewardModel": {"fromJob": {"name": "judge"}, **options}}
    return {"rewards": [{"name": "short", "length": {"target": 5}}, judge]}


def found(job: Job, obj: dict[str, Any]) -> dict[Upstream, Result]:
    """What the job that `job` names has left."""
    results = {upstream: look(upstream, obj) for upstream in upstreams(job)}
    assert all(isinstance(result, Result) for result in results.values())
    return results  # type: ignore[return-value]


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
            after = {"after": [{"name": "accuracy", "value": accuracy}]}
            report = Progress.model_validate({"lastUpdateTime": "2026-11-21T12:00:00Z", "evaluation": after})
            obj["status"]["evaluation"] = progress_fields(report, None, {})["evaluation"]
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
        (
            "Succeeded",
            "0.59996",
            {},
            ("RewardModelNotValidated", True, "accuracy 0.59996 on its held-out pairs"),
        ),
        ("Succeeded", "0.65625", {"minAccuracy": 0.65625}, None),
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
    found = look(upstream, judge(phase, accuracy))
    if expected is None:
        assert isinstance(found, Result)
    else:
        assert isinstance(found, Blocker)
        assert (found.reason, found.fails, found.condition) == (*expected[:2], "UpstreamReady")
        assert found.message.startswith("grpo.rewards[1].rewardModel.fromJob names RewardJob judge")
        assert expected[2] in found.message


def test_a_job_that_left_no_model_and_one_that_is_not_there(make_job: Make, judge: Make) -> None:
    [upstream] = upstreams(make_job("GRPOJob", grpo=rewards()))
    without = look(upstream, judge(artifacts=[]))
    assert isinstance(without, Blocker)
    assert (without.reason, without.fails) == ("UpstreamFailed", True)
    missing = look(upstream, None)
    assert isinstance(missing, Blocker)
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
    blocker = look(upstream, stored)
    assert isinstance(blocker, Blocker)
    assert f"names RewardJob judge, whose model '{model.get('path', model.get('uri'))[:90]}" in blocker.message
    assert words in blocker.message
    failed = decide(job, {}, View(blocker=blocker), now).status
    assert (failed["phase"], failed["failure"]["reason"]) == ("Failed", "UpstreamFailed")
    cancelled = make_job("GRPOJob", grpo=rewards(), runPolicy={"cancel": True})
    assert decide(cancelled, {}, View(blocker=blocker), now).status["phase"] == "Cancelled"


def test_the_model_is_found_in_the_other_jobs_claim(make_job: Make, judge: Make) -> None:
    job = make_job("GRPOJob", grpo=rewards())
    file = job_file(with_results(job, found(job, judge())))
    assert file.paths.rewards == {"judge": "/mnt/rewards/judge/uid-rm/final"}
    assert file.spec.grpo.rewards[1].reward_model.source.volume.claim_name == "judge-rm"


def test_the_model_of_a_job_that_an_older_operator_ended_is_found_by_its_spec(make_job: Make, judge: Make) -> None:
    job = make_job("GRPOJob", grpo=rewards())
    shared = judge(artifacts=[OLD])
    shared["spec"] |= {"storage": {"claimName": "team-claim", "subPath": "judges/v1"}, "newer": {"field": 1}}
    source = with_results(job, found(job, shared)).training.grpo.rewards[1].reward_model.source
    assert (source.volume.claim_name, source.volume.path) == ("team-claim", "judges/v1/uid-rm/final")


def test_a_job_without_upstreams_stays_what_it_is(make_job: Make) -> None:
    job = make_job()
    assert with_results(job, {}) is job


def test_the_job_waits_as_blocked_and_fails_with_what_it_waits_for(make_job: Make, judge: Make, now: datetime) -> None:
    job = make_job("GRPOJob", grpo=rewards())
    [upstream] = upstreams(job)
    waits, fails = look(upstream, judge("Running", None)), look(upstream, judge("Failed", None))
    assert isinstance(waits, Blocker)
    assert isinstance(fails, Blocker)
    waiting = decide(job, {}, View(blocker=waits), now)
    assert (waiting.status["phase"], waiting.create) == ("Blocked", False)
    assert condition(waiting.status, "Accepted")["status"] == "True"
    assert condition(waiting.status, "UpstreamReady")["reason"] == "UpstreamNotFinished"
    assert waiting.requeue is None
    failed = decide(job, waiting.status, View(blocker=fails), now)
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
    assert store.dependants.has(key)
    assert not store.dependants.has(("RewardJob", "elsewhere", "judge"))
    store.put_job(stored({**obj, "status": {"phase": "Succeeded", "completionTime": "2026-11-21T12:00:00Z"}}, 2))
    assert not store.dependants.has(key)
    assert key in changed, "its TTL may be over"


SFT = {"fromJob": {"kind": "SFTJob", "name": "tuned"}}


@pytest.fixture
def sft(job_object: Make) -> dict[str, Any]:
    """An SFTJob that has succeeded."""
    obj = dict(job_object("SFTJob"))
    obj["metadata"] = {**obj["metadata"], "name": "tuned", "uid": "uid-sft"}
    ended = {"type": "Succeeded", "status": "True", "reason": "Succeeded", "message": ""}
    model = {"type": "model", "claimName": "tuned-sft", "path": "uid-sft/final", "digest": "sha256:7"}
    conditions = [{**ended, "lastTransitionTime": "2026-11-21T12:00:00Z"}]
    obj["status"] = {"phase": "Succeeded", "conditions": conditions, "artifacts": [model]}
    return obj


def test_a_model_and_a_reference_of_an_earlier_job_are_found_in_its_claim_and_pinned(
    make_job: Make, job_object: Make, sft: dict[str, Any]
) -> None:
    spec = {"model": {**SFT, "padToken": "<pad>"}, "dpo": {"referenceModel": {"mode": "explicit", "source": SFT}}}
    job = make_job(**spec)
    assert [upstream.field for upstream in upstreams(job)] == ["model.fromJob", "dpo.referenceModel.source.fromJob"]
    assert set(used(job_object(**spec))) == {("SFTJob", "team", "tuned")}
    results = found(job, sft)
    pinned = pin(job, results, "trainer:1")
    assert pinned.manifest is not None
    text = pinned.manifest["data"]["job.json"]
    file = JobFile.model_validate_json(text)
    assert (file.paths.model, file.paths.reference_model) == (
        "/mnt/model/uid-sft/final",
        "/mnt/reference-model/uid-sft/final",
    )
    assert file.digests == {file.paths.model: "sha256:7", file.paths.reference_model: "sha256:7"}
    assert file.spec.model.pad_token == "<pad>", "what else the source says stays"
    assert [ref.uid for ref in refs(results)] == ["uid-sft"], "each job once"
    assert as_pinned(job, text) == pinned.job
    assert upstreams(pinned.job) == []


def test_a_claim_of_an_earlier_job_is_named_by_the_job(make_job: Make, sft: dict[str, Any]) -> None:
    storage = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    job = make_job("RewardJob", model=SFT, numNodes=2, storage=storage)
    [claim] = [each for each in references(with_results(job, found(job, sft))) if each.name == "tuned-sft"]
    once = {"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"]}}
    blocker = check_reference(claim, once, job.cluster.num_nodes)
    assert blocker is not None
    assert blocker.message == (
        "model.fromJob (SFTJob tuned) names PersistentVolumeClaim tuned-sft with access modes ReadWriteOnce, but"
        " numNodes is 2: several nodes need ReadWriteMany"
    )


def test_a_job_that_waits_for_itself_is_refused_and_one_beside_the_cycle_waits() -> None:
    def key(name: str) -> tuple[str, str, str]:
        return "SFTJob", "team", name

    uses = {"a": "b", "b": "c", "c": "a", "beside": "a", "self": "self", "waits": "done"}

    def waits_for(of: tuple[str, str, str]) -> tuple[tuple[str, str, str], ...]:
        return (key(uses[of[2]]),) if of[2] in uses else ()

    blocker = check_cycle(key("a"), waits_for)
    assert blocker is not None
    assert (blocker.reason, blocker.condition, blocker.fails) == ("UpstreamCycle", "Accepted", False)
    assert blocker.message.startswith(
        "fromJob: SFTJob a waits for SFTJob b, which waits for SFTJob c, which waits for SFTJob a: delete one of them"
    )
    itself = check_cycle(key("self"), waits_for)
    assert itself is not None
    assert "SFTJob self waits for SFTJob self: delete" in itself.message
    assert check_cycle(key("beside"), waits_for) is check_cycle(key("waits"), waits_for) is None


def test_what_an_attempt_or_a_job_that_has_ended_uses_is_no_longer_waited_for(job_object: Make) -> None:
    store, key = Store(), ("DPOJob", "team", "tune")

    def put(version: int, **status: Any) -> tuple[Any, ...]:
        obj = job_object(model=SFT)
        store.put_job({**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version)}, "status": status})
        return store.dependants.waits_for(key)

    assert put(1) == (("SFTJob", "team", "tuned"),)
    assert put(2, attempt=0) == ()
    assert store.dependants.has(("SFTJob", "team", "tuned")), "its claim is mounted"
    assert put(3, completionTime="2026-11-21T12:00:00Z") == ()
    assert not store.dependants.has(("SFTJob", "team", "tuned"))
    assert store.dependants.waits_for(("DPOJob", "team", "unknown")) == ()


# -- checkpoint.resumeFrom


@pytest.fixture
def first(job_object: Make) -> Callable[..., dict[str, Any]]:
    """A DPOJob as it is stored, with a checkpoint."""

    def make(phase: str = "Failed", steps: tuple[int, ...] = (40,), **spec: Any) -> dict[str, Any]:
        obj = dict(job_object("DPOJob", **spec))
        obj["metadata"] = {**obj["metadata"], "name": "first", "uid": "uid-first"}
        ended = {"type": "Succeeded", "status": str(phase == "Succeeded"), "reason": phase, "message": ""}
        over = (
            [{**ended, "lastTransitionTime": "2026-11-21T12:00:00Z"}] if phase not in ("Running", "Suspended") else []
        )
        obj["status"] = {"phase": phase, "conditions": over, "checkpoints": [checkpoint(step) for step in steps]}
        return obj

    return make


RESUME = {"resumeFrom": {"job": "first", "step": 40}}


@pytest.mark.parametrize("phase", ["Failed", "Cancelled", "Succeeded"])
def test_a_job_goes_on_from_one_that_has_ended_however_it_has(make_job: Make, first: Make, phase: str) -> None:
    job = make_job(checkpoint=RESUME)
    results = found(job, first(phase))
    made = with_results(job, results)
    assert job_file(made).paths.resume_from == "/mnt/resume-from/uid-first"
    asked = made.training.checkpoint.resume_from
    assert (asked.job, asked.step, asked.volume.claim_name) == (None, 40, "first-dpo")
    assert refs(results) == [UpstreamRef(kind="DPOJob", name="first", uid="uid-first", digest="")]
    pinned = pin(job, results, "trainer:1")
    assert pinned.manifest is not None
    assert JobFile.model_validate_json(pinned.manifest["data"]["job.json"]).digests is None
    # A later attempt finds it in the run's file, and asks nobody.
    again = as_pinned(job, pinned.manifest["data"]["job.json"])
    assert (again, upstreams(again)) == (pinned.job, [])
    [reference] = [each for each in references(again) if each.name == "first-dpo"]
    assert (reference.field, reference.writes) == ("checkpoint.resumeFrom.job (DPOJob first)", False)


def test_its_folder_is_found_in_a_claim_that_jobs_share(make_job: Make, first: Make) -> None:
    job = make_job(checkpoint=RESUME)
    [result] = found(job, first(storage={"claimName": "team", "subPath": "runs"})).values()
    assert (result.volume.claim_name, result.volume.path) == ("team", "runs/uid-first")


@pytest.mark.parametrize(
    ("phase", "steps", "expected"),
    [
        ("Running", (40,), ("UpstreamNotFinished", False, "names DPOJob first, which is Running")),
        ("Suspended", (40,), ("UpstreamNotFinished", False, "names DPOJob first, which is Suspended")),
        (
            "Failed",
            (),
            ("UpstreamFailed", True, "names DPOJob first, which has left no checkpoint: if its folder holds"),
        ),
    ],
)
def test_a_job_waits_for_the_end_of_the_one_it_goes_on_from(
    make_job: Make, first: Make, phase: str, steps: tuple[int, ...], expected: tuple[str, bool, str]
) -> None:
    [upstream] = upstreams(make_job(checkpoint=RESUME))
    blocker = look(upstream, first(phase, steps))
    assert isinstance(blocker, Blocker)
    assert (blocker.reason, blocker.fails, blocker.condition) == (*expected[:2], "UpstreamReady")
    assert blocker.message.startswith(f"checkpoint.resumeFrom.job {expected[2]}")


def test_who_goes_on_from_a_job_is_told_of_its_end(job_object: Make) -> None:
    assert used(job_object("SFTJob", checkpoint=RESUME)) == (("SFTJob", "team", "first"),)
    assert used(job_object("SFTJob", checkpoint={"resumeFrom": {"volume": {"claimName": "c", "path": "p"}}})) == ()


def test_a_folder_may_be_named_itself(make_job: Make) -> None:
    job = make_job(checkpoint={"resumeFrom": {"volume": {"claimName": "old-dpo", "path": "uid-old"}}})
    assert upstreams(job) == []
    assert job_file(job).paths.resume_from == "/mnt/resume-from/uid-old"
