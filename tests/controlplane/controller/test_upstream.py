"""Jobs that use what others leave, whatever the order in which they are applied."""

import json
from collections.abc import Callable
from typing import Any

from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for

PAIRS = [{"chosen": "I will look at once.", "rejected": "no idea"}] * 4


def reward_job(**spec: Any) -> dict[str, Any]:
    base = {
        "model": {"hub": {"repo": "org/base"}},
        "dataset": {"train": {"inline": PAIRS}},
        "storage": {"size": "1Gi"},
    }
    return {
        "apiVersion": "trl-operator.io/v1alpha1",
        "kind": "RewardJob",
        "metadata": {"name": "judge"},
        "spec": {**base, **spec},
    }


def sft_job(name: str = "base", **spec: Any) -> dict[str, Any]:
    rows = {"train": {"inline": [{"prompt": "Where is it?", "completion": "Here."}] * 4}}
    return {**reward_job(dataset=rows, **spec), "kind": "SFTJob", "metadata": {"name": name}}


def from_job(kind: str, name: str) -> dict[str, Any]:
    return {"fromJob": {"kind": kind, "name": name}}


def grpo_job(**spec: Any) -> dict[str, Any]:
    rewards = [{"name": "judge", "rewardModel": {"fromJob": {"name": "judge"}}}]
    rows = {"train": {"inline": [{"prompt": "Where is it?"}] * 8}}
    job = reward_job(dataset=rows, grpo={"rewards": rewards}, **spec)
    return {**job, "kind": "GRPOJob", "metadata": {"name": "talk"}}


def train(node: FakeNode, record: Callable[..., str], attempt: str, accuracy: str = "0.8") -> None:
    """Play the pod of an attempt to its end, with a model of this accuracy."""
    [pod] = node.wait_for_pods(1, attempt, timeout=30)
    node.run(pod)
    time = "2026-11-21T11:00:00Z"
    progress = {
        "attempt": 0, "step": 4, "totalSteps": 4, "lastUpdateTime": time, "activity": "exporting",
        "evaluation": {"before": [], "after": [{"name": "accuracy", "value": accuracy}]},
    }  # fmt: skip
    artifact = {"type": "model", "uri": f"uid-of-{attempt}/final", "digest": f"sha256:{attempt}"}
    node.succeed(pod, record(artifacts=[artifact], progress=progress))


def said(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", ())}


def waits_for(status: dict[str, Any]) -> str:
    return str(next(c for c in status.get("conditions", ()) if c["type"] == "UpstreamReady")["message"])


def claims_of(child: dict[str, Any]) -> set[str]:
    volumes = child["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["volumes"]
    return {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}


WAKES_WITHIN_SECONDS = 5
"""From the end of a job to the pod of the one that waits for it; nothing looks so often by itself."""


def test_a_chain_that_is_applied_last_job_first_runs_in_order_and_each_stays_for_its_dependants(
    operator: Any, jobs: Any, node: FakeNode, record: Callable[..., str]
) -> None:
    base = from_job("SFTJob", "base")
    jobs.apply(grpo_job(model=base))
    status = jobs.wait_for_phase("talk", "Blocked", "grpojob", 10)
    waits = {"UpstreamReady": ("False", "UpstreamNotFound"), "Reconciling": ("True", "UpstreamNotFound")}
    assert said(status) == {"Accepted": ("True", "Accepted"), **waits}
    assert waits_for(status) == "model.fromJob names SFTJob base, which does not exist: create it"
    assert status["effective"]["model"] == "sftjob/base"

    now = {"runPolicy": {"ttlSecondsAfterFinished": 0}}
    jobs.apply(reward_job(model=base, **now))
    jobs.apply(sft_job(**now))
    jobs.wait("grpojob", "talk", "waits for the base", lambda s: "SFTJob base, which is Starting" in waits_for(s), 10)
    train(node, record, "base-sft-0")
    jobs.wait_for_phase("base", "Succeeded", "sftjob")
    [pod] = node.wait_for_pods(1, "judge-rm-0", timeout=WAKES_WITHIN_SECONDS)
    assert claims_of(jobs.get("pytorchjob", "judge-rm-0")) == {"judge-rm", "base-sft"}
    status = jobs.wait_for_phase("talk", "Blocked", "grpojob")
    assert waits_for(status).startswith("grpo.rewards[0].rewardModel.fromJob names RewardJob judge, which is ")
    train(node, record, "judge-rm-0")
    jobs.wait_for_phase("judge", "Succeeded", "rewardjob")

    [pod] = node.wait_for_pods(1, "talk-grpo-0", timeout=WAKES_WITHIN_SECONDS)
    node.run(pod)
    status = jobs.wait_for_phase("talk", "Running", "grpojob")
    file = json.loads(node.files(pod, "/etc/trl")["job.json"])
    assert file["paths"]["model"] == "/mnt/model/uid-of-base-sft-0/final"
    assert file["paths"]["rewards"] == {"judge": "/mnt/rewards/judge/uid-of-judge-rm-0/final"}
    assert file["digests"] == {
        file["paths"]["model"]: "sha256:base-sft-0",
        file["paths"]["rewards"]["judge"]: "sha256:judge-rm-0",
    }
    pinned = {(ref["kind"], ref["name"], ref["digest"]) for ref in status["run"]["upstreams"]}
    assert pinned == {("SFTJob", "base", "sha256:base-sft-0"), ("RewardJob", "judge", "sha256:judge-rm-0")}
    child = jobs.get("pytorchjob", "talk-grpo-0")
    assert claims_of(child) == {"talk-grpo", "base-sft", "judge-rm"}
    [container] = child["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    read_only = {m["mountPath"] for m in container["volumeMounts"] if m.get("readOnly")}
    assert {"/mnt/model", "/mnt/rewards/judge"} <= read_only

    # Their time is over, and they stay for as long as their models are needed.
    assert jobs.get("rewardjob", "judge") is not None
    assert jobs.get("sftjob", "base") is not None
    node.succeed(pod, record())
    jobs.wait_for_phase("talk", "Succeeded", "grpojob")
    for kind, name in (("rewardjob", "judge"), ("sftjob", "base")):
        wait_for(f"the TTL of {name} takes it away", lambda k=kind, n=name: jobs.get(k, n) is None, 30)


def test_a_job_goes_on_from_one_that_has_failed(
    operator: Any, jobs: Any, node: FakeNode, record: Callable[..., str]
) -> None:
    jobs.apply(sft_job("again", checkpoint={"resumeFrom": {"job": "base"}}))
    status = jobs.wait_for_phase("again", "Blocked", "sftjob", 10)
    assert waits_for(status) == "checkpoint.resumeFrom.job names SFTJob base, which does not exist: create it"
    jobs.apply(sft_job())
    [pod] = node.wait_for_pods(1, "base-sft-0", timeout=30)
    node.run(pod)
    jobs.wait("sftjob", "again", "waits", lambda s: "names SFTJob base, which is Running" in waits_for(s), 10)
    time = "2026-11-21T11:00:00Z"
    saved = [{"step": 40, "path": "u/checkpoint-40", "time": time}]
    progress = {"attempt": 0, "step": 41, "totalSteps": 90, "lastUpdateTime": time, "checkpoints": saved}
    node.fail(pod, 12, message=record("Failed", reason="NonFiniteLoss", message="nan", rank=0, progress=progress))
    jobs.wait_for_phase("base", "Failed", "sftjob")
    [pod] = node.wait_for_pods(1, "again-sft-0", timeout=WAKES_WITHIN_SECONDS)
    child = jobs.get("pytorchjob", "again-sft-0")
    assert claims_of(child) == {"again-sft", "base-sft"}
    [container] = child["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert (mounted["/mnt/resume-from"], mounted["/mnt/storage"]) == (True, False)
    uid = jobs.get("sftjob", "base")["metadata"]["uid"]
    node.run(pod)
    file = json.loads(node.files(pod, "/etc/trl")["job.json"])
    assert file["paths"]["resumeFrom"] == f"/mnt/resume-from/{uid}"
    status = jobs.wait_for_phase("again", "Running", "sftjob")
    assert status["run"]["upstreams"] == [{"kind": "SFTJob", "name": "base", "uid": uid, "digest": ""}]
    went_on = {"attempt": 0, "step": 90, "totalSteps": 90, "lastUpdateTime": time, "resumedFromStep": 40}
    node.succeed(pod, record(progress=went_on))
    assert jobs.wait_for_phase("again", "Succeeded", "sftjob")["resumedFromStep"] == 40


def test_jobs_that_wait_for_each_other_are_refused_until_one_is_gone(operator: Any, jobs: Any) -> None:
    jobs.apply(
        sft_job("one", model=from_job("SFTJob", "two")),
        sft_job("two", model=from_job("SFTJob", "one")),
        sft_job("self", model=from_job("SFTJob", "self")),
    )

    def refused(status: dict[str, Any]) -> bool:
        return said(status).get("Accepted") == ("False", "UpstreamCycle")

    for name in ("one", "two", "self"):
        status = jobs.wait("sftjob", name, "is refused", refused, 5)
        assert status["phase"] == "Pending"
    [accepted] = [c for c in jobs.status("sftjob", "one")["conditions"] if c["type"] == "Accepted"]
    assert accepted["message"].startswith(
        "fromJob: SFTJob one waits for SFTJob two, which waits for SFTJob one: delete"
    )
    jobs.delete("sftjob", "two")
    status = jobs.wait_for_phase("one", "Blocked", "sftjob", 5)
    waits = {"UpstreamReady": ("False", "UpstreamNotFound"), "Reconciling": ("True", "UpstreamNotFound")}
    assert said(status) == {"Accepted": ("True", "Accepted"), **waits}


def test_a_reward_model_that_is_not_good_enough_fails_the_job(
    operator: Any, jobs: Any, node: FakeNode, record: Callable[..., str]
) -> None:
    jobs.apply(reward_job(), grpo_job())
    train(node, record, "judge-rm-0", "0.55")
    status = jobs.wait_for_phase("talk", "Failed", "grpojob")
    assert status["failure"]["reason"] == "RewardModelNotValidated"
    assert "accuracy 0.55 on its held-out pairs, below 0.6" in status["failure"]["message"]
    assert not [child for child in jobs.list("pytorchjobs") if child["metadata"]["name"].startswith("talk")]


def test_a_reward_job_that_failed_fails_the_job(operator: Any, jobs: Any, node: FakeNode) -> None:
    jobs.apply(reward_job(runPolicy={"cancel": True}), grpo_job())
    status = jobs.wait_for_phase("talk", "Failed", "grpojob")
    assert status["failure"]["reason"] == "UpstreamFailed"
    assert "judge, which has ended as Cancelled" in status["failure"]["message"]
