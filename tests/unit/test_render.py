"""Manifests: the pod contract, Pod Security, secrets by reference only, and one complete example."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_contract.cluster import EnvVar
from trl_contract.jobfile import AttemptFile, JobFile
from trl_contract.resolve import resolve
from trl_operator.api.kinds import KINDS
from trl_operator.backend.pytorchjob import manifest
from trl_operator.render.environment import _user, report_path
from trl_operator.render.manifests import (
    Installation,
    claim,
    config_map,
    job_file,
    network_policy,
)
from trl_operator.render.run import pin
from trl_operator.render.volumes import mounts
from trl_operator.settings import PodSecurity

Make = Callable[..., Any]

INSTALLATION = Installation("example.com/trainer@sha256:0", "https://op.trl.svc:10443", "-----CA-----")
HUB = {"hub": {"repo": "org/base", "tokenSecretRef": {"name": "hf", "key": "token"}}}


def pod(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = manifest(job, 0, INSTALLATION)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return found


def container(job: Any) -> dict[str, Any]:
    [found] = pod(job)["spec"]["containers"]
    return dict(found)


def env(job: Any) -> dict[str, Any]:
    return {variable["name"]: variable for variable in container(job)["env"]}


def test_the_containers_command_is_the_images_own(make_job: Make) -> None:
    assert not container(make_job()).keys() & {"command", "args"}


def test_pods_know_only_the_operator_and_only_by_their_own_token(make_job: Make) -> None:
    job = make_job()
    spec = pod(job)["spec"]
    assert spec["automountServiceAccountToken"] is False
    [token] = [v["projected"]["sources"] for v in spec["volumes"] if v["name"] == "token"]
    assert token[0]["serviceAccountToken"]["audience"] == job.audience
    assert job.uid in job.audience
    url = env(job)["KUBEFLOW_TRAINER_SERVER_URL"]["value"]
    assert url == f"https://op.trl.svc:10443{report_path(job)}"


def test_the_hub_is_off_unless_the_spec_names_it(make_job: Make) -> None:
    local = {"volume": {"claimName": "models", "path": "base"}}
    assert env(make_job(model=local))["HF_HUB_OFFLINE"]["value"] == "1"
    assert "HF_HUB_OFFLINE" not in env(make_job())
    reference = {"mode": "explicit", "source": {"hub": {"repo": "a/b"}}}
    assert "HF_HUB_OFFLINE" not in env(make_job(model=local, dpo={"referenceModel": reference}))


def test_pods_are_of_the_installations_user_or_of_the_clusters_and_never_root(make_job: Make) -> None:
    def security(**said: Any) -> dict[str, Any]:
        job = replace(make_job(), security=PodSecurity(**said))
        return dict(pod(job)["spec"]["securityContext"])

    always = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert security() == always
    given = security(run_as_user=7, run_as_group=0, fs_group=8, se_linux_options={"level": "s0:c1,c2"})
    numbers = {"runAsUser": 7, "runAsGroup": 0, "fsGroup": 8, "fsGroupChangePolicy": "OnRootMismatch"}
    assert given == always | numbers | {"seLinuxOptions": {"level": "s0:c1,c2"}}


def test_a_field_of_the_pod_is_told_and_is_no_secret(make_job: Make) -> None:
    source = {"fieldRef": {"fieldPath": "metadata.labels['example.com/team']"}}
    found = env(make_job(env=[{"name": "TEAM", "valueFrom": source}]))
    assert found["TEAM"]["valueFrom"] == source
    assert "TRL_SECRET_VARIABLES" not in found


def test_secrets_are_references(make_job: Make) -> None:
    rewards = [{"name": "is-good", "http": {"url": "https://x.example/", "secretRef": {"name": "score"}}}]
    tracking = {"wandb": {"project": "p", "secretRef": {"name": "wandb", "key": "api"}}}
    job = make_job("GRPOJob", model=HUB, grpo={"rewards": rewards}, tracking=tracking)
    found = {name: variable["valueFrom"]["secretKeyRef"] for name, variable in env(job).items()
             if "secretKeyRef" in variable.get("valueFrom", {})}  # fmt: skip
    assert found == {
        "HF_TOKEN": {"name": "hf", "key": "token"},
        "WANDB_API_KEY": {"name": "wandb", "key": "api"},
        "TRL_REWARD_IS_GOOD_TOKEN": {"name": "score", "key": "token"},
    }
    named = env(job)["TRL_SECRET_VARIABLES"]["value"].split()
    assert named == list(found), "the trainer tells no value of these"


def test_each_repository_has_its_own_token_and_the_models_is_the_libraries_own(make_job: Make) -> None:
    def private(secret: str) -> dict[str, Any]:
        return {"hub": {"repo": "org/x", "tokenSecretRef": {"name": secret}}}

    rewards = [{"name": "judge", "rewardModel": {"source": private("judge")}}]
    dataset = {"train": private("rows"), "eval": private("rows")}
    found = env(make_job("GRPOJob", model=private("model"), dataset=dataset, grpo={"rewards": rewards}))
    names = ["HF_TOKEN", "TRL_HUB_1_TOKEN", "TRL_HUB_2_TOKEN"]
    refs = [found[name]["valueFrom"]["secretKeyRef"]["name"] for name in names]
    assert refs == ["model", "rows", "judge"]
    assert found["TRL_SECRET_VARIABLES"]["value"].split() == names
    assert "TRL_HUB_3_TOKEN" not in found
    # A reward model alone is enough to ask the hub, and a token of another source is no reason to send none.
    volume = {"volume": {"claimName": "models", "path": "base"}}
    alone = env(make_job("GRPOJob", model=volume, grpo={"rewards": rewards}))
    assert "HF_HUB_OFFLINE" not in alone
    assert alone["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "judge"


def test_the_trainer_is_told_which_of_the_users_variables_are_secret(make_job: Make) -> None:
    reference = {"secretKeyRef": {"name": "score", "key": "url"}}
    job = make_job(env=[{"name": "SCORE_URL", "valueFrom": reference}, {"name": "A", "value": "b"}])
    assert env(job)["TRL_SECRET_VARIABLES"]["value"].split()[-1] == "SCORE_URL"
    assert "A" not in env(job)["TRL_SECRET_VARIABLES"]["value"].split()


@settings(deadline=None)  # how long one example takes says nothing on a busy machine
@given(st.text(max_size=200))
def test_a_users_value_arrives_as_it_was_written(text: str) -> None:
    value = _user(EnvVar(name="A", value=text))["value"]
    # What Kubernetes does: $$ stands for $, and $(NAME) for a variable unless its dollar is such a pair.
    assert "$(" not in value.replace("$$", "")
    assert value.replace("$$", "$") == text


def test_each_source_of_a_mixture_is_mounted_and_pinned(make_job: Make) -> None:
    sources = [
        {"hub": {"repo": "a/b"}, "weight": 2},
        {"volume": {"claimName": "data", "path": "a/train.jsonl"}},
        {"configMap": {"name": "rows", "key": "x.jsonl"}},
        {"inline": [{"prompt": "é"}], "weight": 0.5},
    ]
    job = make_job(dataset={"mixture": sources})
    written = pin(job, {}, "trainer:1").manifest
    assert written is not None
    file = JobFile.model_validate_json(written["data"]["job.json"])
    assert file.paths.train is None
    assert file.paths.mixture == {
        "1": "/mnt/mixture/1/a/train.jsonl", "2": "/mnt/mixture/2/x.jsonl", "3": "/etc/trl/mixture-3.jsonl",
    }  # fmt: skip
    assert json.loads(written["data"]["mixture-3.jsonl"]) == {"prompt": "é"}
    found, _ = mounts(job, 0)
    places = {mount["mountPath"]: mount["name"] for mount in found.mounts}
    names = {volume["name"]: volume for volume in found.volumes}
    assert names[places["/mnt/mixture/1"]]["persistentVolumeClaim"] == {"claimName": "data"}
    assert names[places["/mnt/mixture/2"]]["configMap"]["name"] == "rows"
    again = make_job(dataset={"mixture": [*sources[:3], {"inline": [{"prompt": "other"}]}]})
    assert pin(again, {}, "trainer:1").run.digest != pin(job, {}, "trainer:1").run.digest


def test_the_job_file_says_where_everything_is_mounted(make_job: Make) -> None:
    rows = {"train": {"volume": {"claimName": "data", "path": "a/train.jsonl"}}, "eval": {"inline": [{"prompt": "é"}]}}
    model = {"volume": {"claimName": "data", "path": "models/base"}}
    reference = {"mode": "explicit", "source": {"volume": {"claimName": "data", "path": "ref"}}}
    job = make_job(dataset=rows, model=model, dpo={"referenceModel": reference}, storage={"claimName": "data"})
    written = pin(job, {}, "trainer:1").manifest
    assert written is not None
    file = JobFile.model_validate_json(written["data"]["job.json"])
    assert file == resolve(job_file(job))
    assert (file.contract_version, file.uid, file.name) == (2, job.uid, "tune")
    assert file.paths.to_wire() == {
        "storage": "/mnt/storage",
        "model": "/mnt/model/models/base",
        "referenceModel": "/mnt/reference-model/ref",
        "train": "/mnt/train/a/train.jsonl",
        "eval": "/etc/trl/eval.jsonl",
        "rewards": {},
        "mixture": {},
    }
    assert written["data"]["eval.jsonl"] == '{"prompt": "é"}\n'
    assert file.spec.training.learning_rate == 1e-5, "what the spec left open is said"
    own = config_map(job, AttemptFile(attempt=2), INSTALLATION)
    assert own["data"] == {"attempt.json": '{"attempt": 2}', "ca.crt": "-----CA-----"}
    [told] = [volume["projected"]["sources"] for volume in pod(job)["spec"]["volumes"] if volume["name"] == "attempt"]
    assert [source["configMap"]["name"] for source in told] == ["tune-dpo", "tune-dpo-0"]
    mounted = {mount["mountPath"]: mount for mount in container(job)["volumeMounts"]}
    assert [mounted[f"/mnt/{name}"].get("readOnly", False) for name in ("storage", "model", "train")] == [
        False,
        True,
        True,
    ]
    claims = [
        volume["persistentVolumeClaim"] for volume in pod(job)["spec"]["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claims == [{"claimName": "data"}], "a claim used four times is one volume"


def test_rewards_find_their_code_and_their_model(make_job: Make) -> None:
    rewards = [
        {"name": "code", "python": {"configMap": {"name": "rewards", "key": "mine.py"}, "function": "score"}},
        {"name": "judge", "rewardModel": {"source": {"volume": {"claimName": "judges", "path": "v1/final"}}}},
        {"name": "short", "length": {"target": 5}},
    ]
    job = make_job("GRPOJob", grpo={"rewards": rewards})
    assert job_file(job).paths.rewards == {
        "code": "/mnt/rewards/code/mine.py",
        "judge": "/mnt/rewards/judge/v1/final",
    }
    mounted = {mount["mountPath"] for mount in container(job)["volumeMounts"]}
    assert {"/mnt/rewards/code", "/mnt/rewards/judge"} <= mounted


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_can_be_rendered_and_names_fit(make_job: Make, kind: str) -> None:
    job = make_job(kind)
    found = manifest(job, 12, INSTALLATION)
    assert found["metadata"]["name"] == f"tune-{job.info.suffix}-12"
    longest = f"{'x' * 40}-{job.info.suffix}-999-worker-1023"
    assert len(longest) <= 63
    json.dumps([config_map(job, AttemptFile(attempt=12), INSTALLATION), pin(job, {}, "trainer:1").manifest])


def test_a_retained_claim_belongs_to_nobody_and_another_to_the_job(make_job: Make) -> None:
    kept = claim(make_job())
    assert "ownerReferences" not in kept["metadata"]
    assert kept["metadata"]["labels"]["trl-operator.io/job-uid"]
    assert kept["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
    storage = {"size": "5Gi", "retain": False, "storageClassName": "fast", "accessModes": ["ReadWriteMany"]}
    job = make_job(storage=storage)
    brief = claim(job)
    assert brief["metadata"]["ownerReferences"] == [job.owner_reference]
    assert brief["spec"]["storageClassName"] == "fast"


def test_only_pods_of_the_same_job_get_in(make_job: Make) -> None:
    job = make_job()
    spec = network_policy(job, 0)["spec"]
    assert spec["podSelector"]["matchLabels"] == {"trl-operator.io/job-uid": job.uid}
    assert spec["ingress"] == [{"from": [{"podSelector": spec["podSelector"]}]}]
    assert pod(job)["metadata"]["labels"]["trl-operator.io/job-uid"] == job.uid
