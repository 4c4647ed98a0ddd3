"""What a run is pinned to, and that it stays so."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from test_reconcile import World

from trl_contract.jobfile import AttemptFile, JobFile
from trl_operator.api.status import UpstreamRef
from trl_operator.plan.upstream import Result, as_pinned, look, refs, upstreams
from trl_operator.render.manifests import Installation, config_map
from trl_operator.render.run import digest, pin

Make = Callable[..., Any]

ROWS = {"train": {"inline": [{"prompt": "é", "chosen": "c", "rejected": "r"}]}}
JUDGE = {"rewards": [{"name": "judge", "rewardModel": {"fromJob": {"name": "judge"}}}]}


def judge(job_object: Make, path: str = "uid-rm/final") -> dict[str, Any]:
    obj = job_object("RewardJob")
    obj["metadata"] |= {"name": "judge", "uid": "uid-rm"}
    model = {"type": "model", "claimName": "judge-rm", "path": path, "digest": "sha256:1"}
    ended = {"type": "Succeeded", "status": "True", "reason": "Succeeded", "message": ""}
    obj["status"] = {
        "artifacts": [model],
        "conditions": [{**ended, "lastTransitionTime": "2026-11-21T12:00:00Z"}],
        "evaluation": {"after": [{"name": "accuracy", "value": "0.9"}]},
    }
    return dict(obj)


def test_one_config_map_holds_the_resolved_spec_and_its_rows_for_all_attempts(make_job: Make) -> None:
    job = make_job(dataset=ROWS)
    pinned = pin(job, {}, "trainer:1")
    made = pinned.manifest
    assert made is not None
    assert (made["metadata"]["name"], made["immutable"]) == ("tune-dpo", True)
    assert made["metadata"]["ownerReferences"] == [job.owner_reference]
    assert "trl-operator.io/attempt" not in made["metadata"]["labels"], "it belongs to no attempt"
    assert made["data"].keys() == {"job.json", "train.jsonl"}
    assert JobFile.model_validate_json(made["data"]["job.json"]).spec.training.learning_rate == 1e-5
    assert pinned.run.to_wire() == {
        "image": "trainer:1", "backend": "pytorchjob", "upstreams": [], "digest": digest(made["data"]),
    }  # fmt: skip
    assert pin(job, {}, "trainer:2").run.digest == pinned.run.digest, "the image is told apart"
    assert pin(make_job(dataset=ROWS, training={"seed": 7}), {}, "trainer:1").run.digest != pinned.run.digest
    assert pin(make_job(image="mine:1"), {}, "trainer:1").run.image == "mine:1"


def test_an_attempts_own_config_map_says_only_what_changes(make_job: Make) -> None:
    one, two = (
        config_map(make_job(dataset=ROWS), AttemptFile(attempt=number), Installation("t", "u", "CA"))["data"]
        for number in (1, 2)
    )
    assert {name for name in one if one[name] != two[name]} == {"attempt.json"}
    assert one.keys() == {"attempt.json", "ca.crt"}
    assert AttemptFile.model_validate_json(two["attempt.json"]).attempt == 2


def test_a_later_attempt_uses_the_model_that_the_first_one_has_used(make_job: Make, job_object: Make) -> None:
    job = make_job("GRPOJob", grpo=JUDGE)
    [upstream] = upstreams(job)
    result = look(upstream, judge(job_object))
    assert isinstance(result, Result)
    assert refs({upstream: result}) == [
        UpstreamRef(kind="RewardJob", name="judge", uid="uid-rm", digest="sha256:1"),
    ]
    pinned = pin(job, {upstream: result}, "trainer:1")
    assert pinned.manifest is not None
    told = JobFile.model_validate_json(pinned.manifest["data"]["job.json"])
    assert told.digests == {told.paths.rewards["judge"]: "sha256:1"}, "the trainer looks whether it still is that"
    file = pinned.manifest["data"]["job.json"].replace('"contractVersion": 2', '"contractVersion": 2, "newer": 1')
    again = as_pinned(job, file)
    assert again == pinned.job
    assert upstreams(again) == [], "nobody has to be asked for it"
    assert as_pinned(make_job(), "{}") == make_job()


# -- in the loop


class Mid(World):
    """A job of which nothing has begun, and an operator that a test may upgrade."""

    def __init__(self, job: dict[str, Any], now: datetime) -> None:
        super().__init__(job, now)
        self.upgrade("trainer:1")

    def upgrade(self, image: str) -> None:
        self.installation = Installation(image, "https://op:10443", "CA")

    def lose_attempt(self) -> None:
        """Somebody deletes the workload; the next attempt may start."""
        number = self.status["attempt"]
        self.store.drop_child(self.kube.objects.pop(("pytorchjobs", "team", self.status["workload"]["name"])))
        self.reconcile()
        assert self.status["attempt"] == number + 1
        self.now += timedelta(minutes=6)

    @property
    def run_map(self) -> dict[str, Any]:
        suffix = "grpo" if ("configmaps", "team", "tune-grpo") in self.kube.objects else "dpo"
        return self.kube.objects["configmaps", "team", f"tune-{suffix}"]

    @property
    def template(self) -> dict[str, Any]:
        """The pods of the current attempt."""
        child = self.kube.objects["pytorchjobs", "team", self.status["workload"]["name"]]
        return dict(child["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"])


def accepted(world: World) -> tuple[str, str]:
    found = next(c for c in world.status["conditions"] if c["type"] == "Accepted")
    return found["reason"], found["message"]


def test_a_run_keeps_its_image_and_its_spec_when_the_operator_is_upgraded(job_object: Make, now: datetime) -> None:
    world = Mid(job_object(dataset=ROWS), now)
    world.reconcile()
    pinned, made = world.status["run"], world.run_map
    assert (pinned["image"], pinned["digest"]) == ("trainer:1", digest(made["data"]))
    assert world.template["containers"][0]["image"] == "trainer:1"
    world.upgrade("trainer:2")
    world.lose_attempt()
    world.reconcile()
    assert world.status["workload"]["name"] == "tune-dpo-1"
    assert world.template["containers"][0]["image"] == "trainer:1"
    assert (world.status["run"], world.run_map) == (pinned, made)
    told = json.loads(world.kube.objects["configmaps", "team", "tune-dpo-1"]["data"]["attempt.json"])
    assert told == {"attempt": 1}


def test_a_reward_job_made_anew_does_not_swap_the_model_of_a_run(job_object: Make, now: datetime) -> None:
    world = Mid(job_object("GRPOJob", grpo=JUDGE, dataset=ROWS), now)
    first = judge(job_object)
    world.kube.put("rewardjobs", first)
    world.kube.put("persistentvolumeclaims", {"metadata": {"name": "judge-rm"}, "spec": {}})
    key = ("GRPOJob", "team", "tune")
    job = world.kube.objects.pop(("dpojobs", "team", "tune"))
    world.store.put_job(world.kube.put("grpojobs", job))

    def reconcile() -> dict[str, Any]:
        asyncio.run(world.reconciler.reconcile(key))
        return dict(world.kube.objects["grpojobs", "team", "tune"]["status"])

    status = reconcile()
    ref = {"kind": "RewardJob", "name": "judge", "uid": "uid-rm", "digest": "sha256:1"}
    assert status["run"]["upstreams"] == [ref]
    for after in (None, judge(job_object, "uid-new/final")):
        number = status["attempt"]
        if after is None:
            del world.kube.objects["rewardjobs", "team", "judge"]
        else:
            after["metadata"]["uid"] = "uid-new"
            world.kube.put("rewardjobs", {**after, "status": {**first["status"], **after["status"]}})
        world.store.drop_child(world.kube.objects.pop(("pytorchjobs", "team", status["workload"]["name"])))
        reconcile()
        world.now += timedelta(minutes=6)
        status = reconcile()
        assert (status["attempt"], status["run"]["upstreams"]) == (number + 1, [ref])
        workload = world.kube.objects["pytorchjobs", "team", f"tune-grpo-{number + 1}"]
        assert "uid-rm/final" in world.run_map["data"]["job.json"]
        claims = json.dumps(workload["spec"])
        assert "judge-rm" in claims


def test_a_run_whose_config_map_is_gone_is_made_anew_as_it_was_or_not_at_all(job_object: Make, now: datetime) -> None:
    world = Mid(job_object(dataset=ROWS), now)
    world.reconcile()
    made = world.run_map
    world.lose_attempt()
    del world.kube.objects["configmaps", "team", "tune-dpo"]
    world.reconcile()
    assert world.run_map["data"] == made["data"]
    assert world.status["workload"]["name"] == "tune-dpo-1"

    world.lose_attempt()
    job = world.kube.objects["dpojobs", "team", "tune"]
    other = {**world.status["run"], "digest": "sha256:of another version"}
    world.kube.put("dpojobs", {**job, "status": {**world.status, "run": other}})
    del world.kube.objects["configmaps", "team", "tune-dpo"]
    world.reconcile()
    reason, message = accepted(world)
    assert reason == "RunNotFound"
    assert "ConfigMap tune-dpo" in message
    assert "workload" not in world.status
    world.kube.put("configmaps", made)
    world.kube.put("dpojobs", {**job, "status": {**world.status, "run": {**other, "digest": digest(made["data"])}}})
    world.reconcile()
    assert world.status["workload"]["name"] == "tune-dpo-2", "it was restored"


def test_a_run_of_which_no_attempt_has_begun_is_pinned_by_whoever_begins_it(job_object: Make, now: datetime) -> None:
    world = Mid(job_object(dataset=ROWS), now)
    job = world.kube.objects["dpojobs", "team", "tune"]
    killed = {"attempt": 0, "restarts": 0, "run": {"image": "trainer:0", "digest": "sha256:of another version"}}
    world.store.put_job(world.kube.put("dpojobs", {**job, "status": killed}))
    world.reconcile()
    assert world.status["run"]["digest"] == digest(world.run_map["data"])
    assert world.template["containers"][0]["image"] == "trainer:1"


def test_a_job_of_an_older_operator_goes_on_and_is_pinned_at_its_next_attempt(
    job_object: Make, child_object: Make, pod_object: Make, now: datetime
) -> None:
    world = Mid(job_object(dataset=ROWS), now)
    job = world.kube.objects["dpojobs", "team", "tune"]
    old = {"attempt": 0, "restarts": 0, "pytorchJob": {"name": "tune-dpo-0", "uid": "child-0"}}
    world.store.put_job(world.kube.put("dpojobs", {**job, "status": old}))
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0)))
    world.store.put_pod(world.kube.put("pods", pod_object(0)))
    world.reconcile()
    assert world.status["phase"] == "Running"
    assert "run" not in world.status
    assert ("configmaps", "team", "tune-dpo") not in world.kube.objects
    pod = world.kube.objects.pop(("pods", "team", "tune-dpo-0-worker-0"))
    world.store.drop_pod(pod)
    world.lose_attempt()
    world.reconcile()
    assert world.status["workload"]["name"] == "tune-dpo-1"
    assert world.status["run"]["digest"] == digest(world.run_map["data"])
    file = JobFile.model_validate_json(world.run_map["data"]["job.json"])
    assert file.contract_version == 2
