"""A GRPOJob that rewards with the model of a RewardJob, whatever the order in which they are applied."""

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


def grpo_job() -> dict[str, Any]:
    rewards = [{"name": "judge", "rewardModel": {"fromJob": {"name": "judge"}}}]
    job = reward_job(dataset={"train": {"inline": [{"prompt": "Where is it?"}] * 8}}, grpo={"rewards": rewards})
    return {**job, "kind": "GRPOJob", "metadata": {"name": "talk"}}


def train_judge(node: FakeNode, record: Callable[..., str], accuracy: str) -> None:
    """Play the RewardJob's pod to its end, with a model of this accuracy."""
    [pod] = node.wait_for_pods(1, "judge-rm-0", timeout=30)
    node.run(pod)
    time = "2026-11-21T11:00:00Z"
    progress = {
        "attempt": 0, "step": 4, "totalSteps": 4, "lastUpdateTime": time, "activity": "exporting",
        "evaluation": {"before": [], "after": [{"name": "accuracy", "value": accuracy}]},
    }  # fmt: skip
    artifact = {"type": "model", "uri": "the-uid/final", "digest": "sha256:abc"}
    node.succeed(pod, record(artifacts=[artifact], progress=progress))


def test_it_waits_for_the_reward_model_and_finds_it(
    operator: Any, jobs: Any, node: FakeNode, record: Callable[..., str]
) -> None:
    jobs.apply(grpo_job())
    status = jobs.wait_for_phase("talk", "Blocked", "grpojob", 10)
    said = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert said == {"Accepted": ("True", "Accepted"), "UpstreamReady": ("False", "UpstreamNotFound")}

    jobs.apply(reward_job(runPolicy={"ttlSecondsAfterFinished": 0}))
    train_judge(node, record, "0.8")
    jobs.wait_for_phase("judge", "Succeeded", "rewardjob")
    [pod] = node.wait_for_pods(1, "talk-grpo-0", timeout=30)
    node.run(pod)
    jobs.wait_for_phase("talk", "Running", "grpojob")
    assert '"judge":"/mnt/rewards/judge/the-uid/final"' in node.files(pod, "/etc/trl")["job.json"].replace(" ", "")
    child = jobs.get("pytorchjob", "talk-grpo-0")
    volumes = child["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["volumes"]
    claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
    assert claims == {"talk-grpo", "judge-rm"}

    # Its time is over, and it stays for as long as its model is needed.
    assert jobs.get("rewardjob", "judge") is not None
    node.succeed(pod, record())
    jobs.wait_for_phase("talk", "Succeeded", "grpojob")
    wait_for("the RewardJob's TTL takes it away", lambda: jobs.get("rewardjob", "judge") is None, 60)


def test_a_reward_model_that_is_not_good_enough_fails_the_job(
    operator: Any, jobs: Any, node: FakeNode, record: Callable[..., str]
) -> None:
    jobs.apply(reward_job(), grpo_job())
    train_judge(node, record, "0.55")
    status = jobs.wait_for_phase("talk", "Failed", "grpojob")
    assert status["failure"]["reason"] == "RewardModelNotValidated"
    assert "accuracy 0.55 on its held-out pairs, below 0.6" in status["failure"]["message"]
    assert not [child for child in jobs.list("pytorchjobs") if child["metadata"]["name"].startswith("talk")]


def test_a_reward_job_that_failed_fails_the_job(operator: Any, jobs: Any, node: FakeNode) -> None:
    jobs.apply(reward_job(runPolicy={"cancel": True}), grpo_job())
    status = jobs.wait_for_phase("talk", "Failed", "grpojob")
    assert status["failure"]["reason"] == "UpstreamFailed"
    assert "judge, which has ended as Cancelled" in status["failure"]["message"]
