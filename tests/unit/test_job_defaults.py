"""What jobs have where their specs say nothing: whom a set is for, how sets and job come together, that it stays."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError
from test_run import Mid, accepted

from trl_contract.cluster import ClusterSpec
from trl_operator.api.job import Job, parse_job
from trl_operator.api.schema import structural_schema
from trl_operator.host import read_settings
from trl_operator.jobdefaults import FIELDS, JobDefaults, filled, items, offered, part, place_of, unsaid
from trl_operator.render.environment import environment
from trl_operator.render.manifests import Installation, claim
from trl_operator.render.run import pin
from trl_operator.runs import find_again
from trl_operator.settings import Settings, from_environment

Make = Callable[..., Any]
Obj = dict[str, Any]

GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
POOL_A = {"key": "pool", "operator": "Equal", "value": "a", "effect": "NoSchedule"}
POOL_B = {**POOL_A, "value": "b"}
HUB, PROXY = {"name": "HF_ENDPOINT", "value": "https://hub"}, {"name": "HTTPS_PROXY", "value": "http://proxy"}
CLAIM, REGISTRY = {"size": "1Gi"}, {"name": "registry"}


def sets(*found: tuple[str, Obj]) -> tuple[JobDefaults, ...]:
    return tuple(JobDefaults.model_validate({"name": name, **said}) for name, said in found)


MERGES: dict[str, tuple[Obj, list[tuple[str, Obj]], Obj, dict[str, str]]] = {
    "a later set wins over an earlier one, by the keys of maps": (
        {},
        [("all", {"nodeSelector": {"pool": "a", "zone": "1"}}), ("team", {"nodeSelector": {"pool": "b"}})],
        {"nodeSelector": {"pool": "b", "zone": "1"}},
        {"nodeSelector[pool]": "team", "nodeSelector[zone]": "all"},
    ),
    "the job wins over all of them": (
        {"nodeSelector": {"pool": "mine"}, "priorityClassName": "low", "backend": "trainjob"},
        [("all", {"nodeSelector": {"pool": "a", "zone": "1"}, "priorityClassName": "high", "backend": "pytorchjob"})],
        {"nodeSelector": {"pool": "mine", "zone": "1"}, "priorityClassName": "low", "backend": "trainjob"},
        {"nodeSelector[zone]": "all"},
    ),
    "lists by name, the job's first": (
        {"env": [PROXY], "imagePullSecrets": [{"name": "mine"}]},
        [("all", {"env": [HUB, {**PROXY, "value": "x"}], "imagePullSecrets": [{"name": "mine"}, REGISTRY]})],
        {"env": [PROXY, HUB], "imagePullSecrets": [{"name": "mine"}, REGISTRY]},
        {"env[HF_ENDPOINT]": "all", "imagePullSecrets[registry]": "all"},
    ),
    "tolerations by key and effect, all of one key and effect together": (
        {},
        [("all", {"tolerations": [GPU, {**POOL_A, "value": "c"}]}), ("team", {"tolerations": [POOL_A, POOL_B]})],
        {"tolerations": [GPU, POOL_A, POOL_B]},
        {"tolerations[nvidia.com/gpu/NoSchedule]": "all", "tolerations[pool/NoSchedule]": "team"},
    ),
    "an empty list or map wants none": (
        {"tolerations": [], "nodeSelector": {}, "pod": {"labels": {}}},
        [("all", {"tolerations": [GPU], "nodeSelector": {"a": "b"}, "pod": {"labels": {"a": "b"}}, "env": [HUB]})],
        {"tolerations": [], "nodeSelector": {}, "pod": {"labels": {}}, "env": [HUB]},
        {"env[HF_ENDPOINT]": "all"},
    ),
    "queue and caBundle as a whole": (
        {"queue": {"name": "mine"}},
        [("all", {"queue": {"name": "gold", "priorityClass": "high"}, "pod": {"caBundle": {"name": "ca"}}}),
         ("team", {"pod": {"caBundle": {"name": "other", "key": "pem"}}})],
        {"queue": {"name": "mine"}, "pod": {"caBundle": {"name": "other", "key": "pem"}}},
        {"pod.caBundle": "team"},
    ),
    "inside of sections": (
        {"storage": {**CLAIM, "retain": True}, "pod": {"labels": {"a": "mine"}}, "runPolicy": {"maxRestarts": 1}},
        [("all", {"storage": {"storageClassName": "fast", "accessModes": ["ReadWriteMany"], "retain": False},
                  "pod": {"labels": {"a": "x", "b": "y"}, "annotations": {"c": "d"}},
                  "runPolicy": {"ttlSecondsAfterFinished": 60}})],
        {"storage": {**CLAIM, "retain": True, "storageClassName": "fast", "accessModes": ["ReadWriteMany"]},
         "pod": {"labels": {"a": "mine", "b": "y"}, "annotations": {"c": "d"}},
         "runPolicy": {"maxRestarts": 1, "ttlSecondsAfterFinished": 60}},
        {"storage.storageClassName": "all", "storage.accessModes": "all", "pod.labels[b]": "all",
         "pod.annotations[c]": "all", "runPolicy.ttlSecondsAfterFinished": "all"},
    ),
    "nothing for a claim that is there already": (
        {"storage": {"claimName": "c"}},
        [("all", {"storage": {"storageClassName": "fast", "accessModes": ["ReadWriteMany"], "retain": False}})],
        {"storage": {"claimName": "c"}},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("own", "said", "wanted", "origins"), MERGES.values(), ids=MERGES)
def test_sets_and_job_come_together(
    own: Obj, said: list[tuple[str, Obj]], wanted: Obj, origins: dict[str, str]
) -> None:
    own = {"storage": CLAIM, **own}
    values = offered(sets(*((name, {"spec": spec}) for name, spec in said)), "team", "DPOJob", {})
    left = unsaid(own, values)
    found = filled(own, left)
    assert found == {"storage": CLAIM, **wanted}
    assert {place_of(item): default.origin for item, default in left.items()} == origins
    assert items(part(left)) == {item: default.value for item, default in left.items()}, "it can be read again"
    assert unsaid(found, values) == {} or not origins
    ClusterSpec.model_validate(found)


@pytest.mark.parametrize(
    ("whom", "fits"),
    [
        ({}, True),
        ({"namespaces": ["team", "other"]}, True),
        ({"namespaces": ["other"]}, False),
        ({"kinds": ["DPOJob"]}, True),
        ({"kinds": ["GRPOJob"], "namespaces": ["team"]}, False),
        ({"selector": {"matchLabels": {"tier": "gold"}}}, True),
        ({"selector": {"matchLabels": {"tier": "gold", "a": "b"}}}, False),
        ({"selector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["gold", "x"]}]}}, True),
        ({"selector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["gold"]}]}}, False),
        ({"selector": {"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["gold"]}]}}, True),
        ({"selector": {"matchExpressions": [{"key": "none", "operator": "Exists"}]}}, False),
        ({"selector": {"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}}, True),
        ({"selector": {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}}, False),
        ({"namespaces": ["team"], "selector": {"matchLabels": {"tier": "silver"}}}, False),
    ],
)
def test_a_set_is_for_the_jobs_that_all_of_it_fits(whom: Obj, fits: bool) -> None:
    found = offered(sets(("a", {**whom, "spec": {"priorityClassName": "p"}})), "team", "DPOJob", {"tier": "gold"})
    assert bool(found) == fits


ENVIRONMENT = {
    "TRL_OPERATOR_NAMESPACE": "trl", "TRL_OPERATOR_IDENTITY": "pod", "TRL_OPERATOR_TRAINER_IMAGE": "trainer:1",
    "TRL_OPERATOR_RECEIVER_URL": "https://op:10443",
}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([{"name": "a", "spec": {"tolerations": [{"operator": "Exists", "value": "x"}]}}],
         ("[0].spec: tolerations.0: value has no meaning with operator Exists",)),
        ([{"name": "a", "spec": {}}, {"name": "b", "spec": {"nodeSelectr": {"a": "b"}}}],
         ("[1].spec: nodeSelectr cannot be said here: remove it", "nodeSelector, tolerations")),
        ([{"name": "a", "spec": {"storage": {"size": "1Gi"}}}], ("storage.size cannot be said here",)),
        ([{"name": "a", "spec": {"pod": {"serviceAccountName": "root"}}}], ("pod.serviceAccountName cannot",)),
        ([{"name": "a", "spec": {"pod": ["labels"]}}], ("[0].spec: pod cannot be said here",)),
        ([{"name": "a", "spec": {"pod": {"labels": {"trl-operator.io/job-uid": "x"}}}}], ("pod: ", "remove it")),
        ([{"name": "a", "spec": {"env": [{"name": "HF_TOKEN", "value": "x"}]}}], ("env.0: ", "secretKeyRef")),
        ([{"name": "a", "spec": {"env": [{"name": "PATH", "value": "x"}]}}], ("env.0: ", "remove it")),
        ([{"name": "a", "spec": {"nodeSelector": {"a": 1}}}], ("nodeSelector.a: ", "string")),
        ([{"name": "a", "spec": {"runPolicy": {"ttlSecondsAfterFinished": -1}}}], ("ttlSecondsAfterFinished: ",)),
        ([{"name": "a", "kinds": ["Job"], "spec": {}}], ("[0].kinds[0]: ", "'DPOJob'")),
        ([{"name": "a", "spec": {}}, {"name": "a", "spec": {}}], ("two sets have the name a: choose another",)),
        ([{"name": "a", "spec": {"backend": "trainjob"}}], ("a: spec.backend: trainjob is not installed", "otherB")),
        ([{"name": "a", "spec": {"env": [{"name": f"E{i}", "value": "x" * 4000} for i in range(4)]}},
          {"name": "b", "namespaces": ["n"], "spec": {"pod": {"annotations": {"a": "x" * 999}}}}],
         ("jobs in n may get 17", "at most 16384")),
    ],
)  # fmt: skip
def test_a_wrong_set_ends_the_operator_at_its_start_with_field_and_remedy(
    found: Any, says: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**ENVIRONMENT, "TRL_OPERATOR_JOB_DEFAULTS": json.dumps(found)}.items():
        monkeypatch.setenv(name, value)
    assert read_settings(Settings) is None
    told = capsys.readouterr().err
    assert told.startswith("TRL_OPERATOR_JOB_DEFAULTS")
    for part_of_it in says:
        assert part_of_it in told


def test_sets_of_different_namespaces_do_not_count_together() -> None:
    large = {"env": [{"name": f"E{i}", "value": "x" * 4000} for i in range(3)]}
    found = [{"name": f"n{i}", "namespaces": [f"n{i}"], "spec": large} for i in range(4)]
    given = {**ENVIRONMENT, "TRL_OPERATOR_JOB_DEFAULTS": json.dumps(found)}
    assert len(from_environment(Settings, given).job_defaults) == 4
    found[1]["namespaces"] = ["n0"]
    with pytest.raises(ValidationError, match="jobs in n0"):
        from_environment(Settings, {**given, "TRL_OPERATOR_JOB_DEFAULTS": json.dumps(found)})


# -- in the loop


ALL = ("all", {"spec": {"nodeSelector": {"pool": "a"}, "env": [HUB], "runPolicy": {"ttlSecondsAfterFinished": 60}}})
TEAM = ("team-a", {"namespaces": ["team"], "spec": {"queue": {"name": "gold", "priorityClass": "high"}}})


class Defaulted(Mid):
    def have(self, *found: tuple[str, Obj]) -> None:
        """The admin installs these sets."""
        self.installation = Installation("trainer:1", "https://op:10443", "CA", job_defaults=sets(*found))

    def job(self) -> Job:
        """The job as the operator now reads it."""
        obj = self.kube.objects["dpojobs", "team", "tune"]
        return self.installation.of(parse_job(obj), obj)

    def queue(self) -> dict[str, str]:
        metadata = self.kube.objects["pytorchjobs", "team", self.status["workload"]["name"]]["metadata"]
        return {name: value for name, value in metadata["labels"].items() if name.startswith("kueue")}


GOLD = {"kueue.x-k8s.io/queue-name": "gold", "kueue.x-k8s.io/priority-class": "high"}
TOLD = {
    "sets": [
        {"name": "all", "fields": ["env", "nodeSelector", "runPolicy.ttlSecondsAfterFinished"]},
        {"name": "team-a", "fields": ["queue"]},
    ],
    "queue": {"name": "gold", "priorityClass": "high"},
    "ttlSecondsAfterFinished": 60,
}


def test_a_run_keeps_its_defaults_when_the_admin_edits_them(job_object: Make, now: datetime) -> None:
    world = Defaulted(job_object(), now)
    world.kube.put("configmaps", {"metadata": {"name": "rows"}, "data": {"train.jsonl": ""}})
    world.have(ALL, TEAM)
    world.reconcile()
    assert world.status["defaults"] == TOLD
    assert json.loads(world.run_map["data"]["resolved.json"]) == {
        "spec": {**ALL[1]["spec"], **TEAM[1]["spec"]},
        "origins": {
            "nodeSelector[pool]": "all", "env[HF_ENDPOINT]": "all", "runPolicy.ttlSecondsAfterFinished": "all",
            "queue": "team-a",
        },
    }  # fmt: skip
    assert world.template["nodeSelector"] == {"pool": "a"}
    assert HUB in world.template["containers"][0]["env"]
    assert world.queue() == GOLD
    before, made = world.status, world.run_map
    world.have(("all", {"spec": {"nodeSelector": {"pool": "b"}, "tolerations": [GPU], "queue": {"name": "other"}}}))
    world.reconcile()
    assert world.status == before, "a running job is not disturbed"
    world.lose_attempt()
    world.reconcile()
    assert (world.status["workload"]["name"], world.status["defaults"], world.run_map) == ("tune-dpo-1", TOLD, made)
    assert (world.template["nodeSelector"], world.queue()) == ({"pool": "a"}, GOLD)
    assert "tolerations" not in world.template
    # Lost, it is made anew from what the admin says, if that is as it was.
    world.have(ALL, TEAM)
    world.lose_attempt()
    del world.kube.objects["configmaps", "team", "tune-dpo"]
    world.reconcile()
    assert (world.run_map["data"], world.template["nodeSelector"]) == (made["data"], {"pool": "a"})
    world.lose_attempt()
    del world.kube.objects["configmaps", "team", "tune-dpo"]
    world.have(TEAM)
    world.reconcile()
    assert accepted(world)[0] == "RunNotFound"


def test_whoever_begins_a_run_decides_which_defaults_it_has(job_object: Make, now: datetime) -> None:
    """The status is written before the ConfigMap: an operator that is killed between the two has begun nothing."""
    world = Defaulted(job_object(), now)
    world.kube.put("configmaps", {"metadata": {"name": "rows"}, "data": {"train.jsonl": ""}})
    job = world.kube.objects["dpojobs", "team", "tune"]
    run = {"image": "trainer:1", "backend": "pytorchjob", "digest": "sha256:with others", "upstreams": []}
    killed = {"attempt": 0, "restarts": 0, "run": run, "defaults": {"queue": {"name": "old"}}}
    world.store.put_job(world.kube.put("dpojobs", {**job, "status": killed}))
    world.have(ALL, TEAM)
    world.reconcile()
    assert (world.status["defaults"], world.queue()) == (TOLD, GOLD)
    assert world.template["nodeSelector"] == {"pool": "a"}


@pytest.mark.parametrize("upgraded", [False, True], ids=["its ConfigMap is lost", "an operator of 0.1 has begun it"])
def test_a_run_that_began_without_defaults_gets_none_in_mid_life(
    upgraded: bool, job_object: Make, now: datetime
) -> None:
    world = Defaulted(job_object(), now)
    world.kube.put("configmaps", {"metadata": {"name": "rows"}, "data": {"train.jsonl": ""}})
    world.reconcile()
    run, made = world.status["run"], world.run_map
    world.have(ALL, TEAM)
    world.lose_attempt()
    del world.kube.objects["configmaps", "team", "tune-dpo"]
    if upgraded:
        job = world.kube.objects["dpojobs", "team", "tune"]
        status = {name: value for name, value in job["status"].items() if name != "run"}
        world.store.put_job(world.kube.put("dpojobs", {**job, "status": status}))
    world.reconcile()
    assert (world.status["run"], world.run_map["data"]) == (run, made["data"])
    assert ("nodeSelector" in world.template, "defaults" in world.status, world.queue()) == (False, False, {})
    # Nor do pods that have yet to start wait in vain for what they mount.
    del world.kube.objects["configmaps", "team", "tune-dpo"]
    found = asyncio.run(find_again(world.kube, world.job(), world.status))  # type: ignore[arg-type]
    assert found is not None
    assert (found[0].run.to_wire(), (found[0].manifest or {})["data"]) == (run, made["data"])


SECRET = {"name": "mine", "key": "token"}


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("HF_TOKEN", {"model": {"hub": {"repo": "org/base", "tokenSecretRef": SECRET}}}),
        ("WANDB_API_KEY", {"tracking": {"wandb": {"project": "p", "secretRef": SECRET}}}),
    ],
)
def test_a_secret_that_a_job_names_wins_over_a_variable_of_the_sets(variable: str, said: Obj, make_job: Make) -> None:
    shared = {"name": variable, "valueFrom": {"secretKeyRef": {"name": "of-all", "key": "token"}}}
    installation = Installation("t", "u", "CA", job_defaults=sets(("all", {"spec": {"env": [shared]}})))
    job = installation.of(make_job(**said), {"metadata": {}})
    own = {"name": variable, "valueFrom": {"secretKeyRef": SECRET}}
    assert [each for each in environment(job, "https://op") if each["name"] == variable] == [own]
    assert job.defaults is None
    without = installation.of(make_job(), {"metadata": {}})
    assert [each for each in environment(without, "https://op") if each["name"] == variable] == [shared]


def test_the_label_of_a_queue_is_the_jobs_own_word(job_object: Make, now: datetime) -> None:
    obj = job_object()
    obj["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "mine"}
    world = Defaulted(obj, now)
    world.kube.put("configmaps", {"metadata": {"name": "rows"}, "data": {"train.jsonl": ""}})
    world.have(TEAM)
    world.reconcile()
    assert world.queue() == {"kueue.x-k8s.io/queue-name": "mine"}
    assert "defaults" not in world.status


def test_a_default_that_stands_against_a_job_is_named_with_its_set(job_object: Make, now: datetime) -> None:
    world = Defaulted(job_object(numNodes=2), now)
    world.kube.put("configmaps", {"metadata": {"name": "rows"}, "data": {"train.jsonl": ""}})
    world.have()
    world.reconcile()
    shared = "spec.storage: several nodes need storage.accessModes with ReadWriteMany"
    assert accepted(world) == ("InvalidSpec", shared)
    world.have(("once", {"spec": {"storage": {"accessModes": ["ReadWriteOnce"]}}}))
    world.reconcile()
    assert accepted(world) == ("InvalidSpec", f"{shared} (of jobDefaults once)")
    many = ("many", {"spec": {"storage": {"accessModes": ["ReadWriteMany"], "storageClassName": "fast"}}})
    world.have(many, ("corp", {"spec": {"pod": {"caBundle": {"name": "corp-ca"}}}}))
    world.reconcile()
    missing = "pod.caBundle (of jobDefaults corp) names ConfigMap corp-ca, which does not exist: create it"
    assert accepted(world) == ("ConfigMapNotFound", missing)
    assert [each["name"] for each in world.status["defaults"]["sets"]] == ["corp", "many"]
    full = ("full", {"spec": {"tolerations": [{**POOL_A, "key": f"k{i}"} for i in range(16)]}})
    world.have(full, ("more", {"spec": {"tolerations": [GPU]}}))
    world.reconcile()
    assert accepted(world)[0] == "InvalidSpec"
    assert accepted(world)[1].startswith("spec.tolerations: ")
    assert "with what jobDefaults add: the admin has to shorten these" in accepted(world)[1]
    world.have(many)
    world.reconcile()
    made = world.kube.objects["persistentvolumeclaims", "team", "tune-dpo"]["spec"]
    assert (made["accessModes"], made["storageClassName"]) == (["ReadWriteMany"], "fast")


def test_a_job_that_jobdefaults_overfill_can_be_cancelled(job_object: Make, now: datetime) -> None:
    many = [{**POOL_A, "key": f"k{i}"} for i in range(16)]
    world = Defaulted(job_object(tolerations=many, runPolicy={"cancel": True}), now)
    world.have(("more", {"spec": {"tolerations": [GPU]}}))
    world.reconcile()
    assert world.status["phase"] == "Cancelled"


def test_what_a_job_says_itself_since_it_began_is_no_longer_told_of_the_sets(job_object: Make, now: datetime) -> None:
    world = Defaulted(job_object(), now)
    world.kube.put("configmaps", {"metadata": {"name": "rows"}, "data": {"train.jsonl": ""}})
    world.have(ALL, TEAM)
    world.reconcile()
    assert world.status["defaults"] == TOLD
    job = world.kube.objects["dpojobs", "team", "tune"]
    spec = {**job["spec"], "runPolicy": {"ttlSecondsAfterFinished": 5}}
    metadata = {**job["metadata"], "generation": 2, "labels": {"kueue.x-k8s.io/queue-name": "mine"}}
    world.store.put_job(world.kube.put("dpojobs", {**job, "spec": spec, "metadata": metadata}))
    world.reconcile()
    assert world.status["defaults"] == {"sets": [{"name": "all", "fields": ["env", "nodeSelector"]}]}


def test_a_job_that_never_began_goes_after_the_time_that_was_said_when_it_ended(
    job_object: Make, now: datetime
) -> None:
    world = Defaulted(job_object(runPolicy={"cancel": True}), now)
    world.have(ALL)
    assert world.reconcile() == 60
    assert (world.status["phase"], world.status["defaults"]["ttlSecondsAfterFinished"]) == ("Cancelled", 60)
    world.have()
    assert world.reconcile() == 60


def test_what_a_job_says_itself_makes_no_part_of_its_run(make_job: Make) -> None:
    installation = Installation("t", "u", "CA", job_defaults=sets(ALL))
    said = {"nodeSelector": {"pool": "x"}, "env": [HUB], "runPolicy": {"ttlSecondsAfterFinished": 1}}
    job = installation.of(make_job(**said), {"metadata": {}})
    assert job.defaults is None
    made = pin(job, {}, "t").manifest
    assert made is not None
    assert "resolved.json" not in made["data"]
    assert claim(job)["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_api_server_leaves_open_what_defaults_may_say() -> None:
    schema = structural_schema(ClusterSpec)
    for field in FIELDS:
        found = schema
        for name in field.split("."):
            found = found["properties"][name]
        assert "default" not in found, f"{field}: nobody could know whether the job says it"


def test_every_field_has_a_merge_that_is_tested() -> None:
    said = {item[0] for _, found, _, _ in MERGES.values() for _, spec in found for item in items(spec)}
    assert said == set(FIELDS)
