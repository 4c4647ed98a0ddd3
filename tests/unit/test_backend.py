"""backend/: what runs an attempt."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_reconcile import World

from trl_operator.api.job import Job, parse_job
from trl_operator.api.status import Run, workload
from trl_operator.backend import backend_for, denials, pytorchjob, trainjob
from trl_operator.backend.pytorchjob import child_from, maker, manifest
from trl_operator.constants import MANAGER_STATUS
from trl_operator.errors import ApiError, Refused
from trl_operator.kube import JOBS
from trl_operator.plan.observation import Child, Owner, current_attempt
from trl_operator.plan.view import View
from trl_operator.render.environment import report_path
from trl_operator.render.manifests import Installation
from trl_operator.render.volumes import ATTEMPT, TOKEN
from trl_operator.status.lifecycle import decide

Make = Callable[..., Any]

CA = f"{ATTEMPT}/ca.crt"
INSTALLATION = Installation("example.com/trainer@sha256:0", "https://op.trl.svc:10443", "-----CA-----")
GOLDEN = Path(__file__).parent


@pytest.fixture
def whole_job(make_job: Make) -> Job:
    job: Job = make_job(
        numNodes=2,
        model={"volume": {"claimName": "models", "path": "org/base"}},
        storage={"claimName": "shared", "subPath": "team"},
        resources={"limits": {"nvidia.com/gpu": 4, "memory": "64Gi"}},
        sharedMemory="8Gi",
        nodeSelector={"gpu": "h100"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        imagePullSecrets=[{"name": "pull"}],
        env=[{"name": "NCCL_DEBUG", "value": "$(WARN)"}],
    )
    return job


def test_a_whole_pytorchjob_is_as_committed(whole_job: Job) -> None:
    found = manifest(whole_job, 3, INSTALLATION)
    golden = yaml.safe_load((GOLDEN / "golden_pytorchjob.yaml").read_text())
    assert found == golden, yaml.safe_dump(found, sort_keys=False)


def test_a_whole_trainjob_and_its_runtime_are_as_committed(whole_job: Job) -> None:
    [(resource, runtime)] = trainjob.beside(whole_job, 3, INSTALLATION)
    found = [runtime, trainjob.manifest(whole_job, 3, INSTALLATION)]
    golden = list(yaml.safe_load_all((GOLDEN / "golden_trainjob.yaml").read_text()))
    assert found == golden, yaml.safe_dump_all(found, sort_keys=False)
    assert (resource,) == trainjob.BESIDE


def test_both_backends_run_the_same_pod(whole_job: Job) -> None:
    """But for the names that each demands, and for what torchrun is told."""
    one = manifest(whole_job, 3, INSTALLATION)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    [(_, runtime)] = trainjob.beside(whole_job, 3, INSTALLATION)
    [nodes] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    other = nodes["template"]["spec"]["template"]
    assert other["spec"].pop("restartPolicy") == "Never"
    for template in (one, other):
        [container] = template["spec"]["containers"]
        del container["name"]
        container["env"] = [variable for variable in container["env"] if not variable["name"].startswith("PET_")]
    assert one == other


def test_nothing_below_a_trainjob_retries(whole_job: Job) -> None:
    [(_, runtime)] = trainjob.beside(whole_job, 3, INSTALLATION)
    jobset = runtime["spec"]["template"]["spec"]
    [nodes] = jobset["replicatedJobs"]
    assert jobset["failurePolicy"] == {"maxRestarts": 0}
    assert {name: nodes["template"]["spec"][name] for name in ("backoffLimit", "podReplacementPolicy")} == {
        "backoffLimit": 0, "podReplacementPolicy": "Failed",
    }  # fmt: skip


def test_the_longest_name_leaves_room_for_what_jobset_puts_after_it(job_object: Make) -> None:
    obj = job_object("GRPOJob", numNodes=1000, storage={"claimName": "shared"})
    obj["metadata"]["name"] = "x" * 40
    job = parse_job(obj)
    [(_, runtime)] = trainjob.beside(job, 999, INSTALLATION)
    [nodes] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = f"{job.child_name(999)}-{nodes['name']}-0-999-abcde"
    assert len(pod) <= 63


def test_our_reports_go_where_we_say_whatever_trainer_writes_into_the_runtimes_containers(whole_job: Job) -> None:
    """Trainer puts the TrainJob's own variables over its own, and these over the runtime's."""
    ours = {"_URL": f"https://op.trl.svc:10443{report_path(whole_job)}", "_CA_CERT": CA, "_TOKEN": TOKEN}
    said = trainjob.manifest(whole_job, 3, INSTALLATION)["spec"]["trainer"]["env"]
    assert said == [{"name": f"KUBEFLOW_TRAINER_SERVER{name}", "value": value} for name, value in ours.items()]


@pytest.mark.parametrize("group", ["coscheduling", "volcano"])
def test_a_pod_group_is_asked_for_as_each_backend_wants_it(make_job: Make, group: str) -> None:
    job = make_job(numNodes=2, storage={"claimName": "shared"}, schedulerName="gang", podGroupPolicy=group)
    made = manifest(job, 0, INSTALLATION)["spec"]
    assert made["runPolicy"] == {"cleanPodPolicy": "Running", "schedulingPolicy": {"minAvailable": 2}}
    assert made["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["schedulerName"] == "gang"
    [(_, runtime)] = trainjob.beside(job, 0, INSTALLATION)
    assert runtime["spec"]["podGroupPolicy"] == {group: {}}
    [nodes] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert nodes["template"]["spec"]["template"]["spec"]["schedulerName"] == "gang"


def test_only_workers_and_nothing_that_lets_the_training_operator_retry(make_job: Make) -> None:
    spec = manifest(make_job(), 0, INSTALLATION)["spec"]
    assert list(spec["pytorchReplicaSpecs"]) == ["Worker"]
    assert spec["runPolicy"] == {"cleanPodPolicy": "Running"}
    assert spec["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "Never"
    assert "elasticPolicy" not in spec


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "active"),
        ([("Running", "True")], "active"),
        ([("Running", "False"), ("Succeeded", "True")], "succeeded"),
        ([("Succeeded", "True"), ("Failed", "True")], "failed"),
        ([("Failed", "False")], "active"),
    ],
)
def test_a_pytorchjobs_conditions_become_one_verdict(
    child_object: Make, conditions: list[tuple[str, str]], state: str
) -> None:
    obj = child_object(0)
    obj["status"]["conditions"] = [{"type": kind, "status": value} for kind, value in conditions]
    child = child_from(obj)
    assert child is not None
    assert (child.state, child.deleting) == (state, False)
    obj["metadata"]["deletionTimestamp"] = "2026-11-21T11:59:00Z"
    assert child_from(obj) == Child(**{**vars(child), "deleting": True})


def test_a_pod_is_of_the_pytorchjob_that_controls_it(pod_object: Make) -> None:
    pod = pod_object(1)
    assert maker(pod) == Owner("tune-dpo-0", "child-0")
    for change in ({"kind": "Job"}, {"apiVersion": "batch/v1"}, {"controller": False}):
        foreign = pod_object(1)
        foreign["metadata"]["ownerReferences"][0] |= change
        assert maker(foreign) is None


def test_the_newest_refusal_of_a_pod_comes_first_and_other_events_are_none(make_child: Make) -> None:
    def event(message: str, time: str, reason: str = "FailedCreatePod") -> dict[str, str]:
        return {"reason": reason, "message": message, "lastTimestamp": time}

    events = [event(str(minute), f"2026-11-21T11:{minute}:00Z") for minute in (10, 30, 20)]
    events += [event("no time", ""), event("other", "2026-11-21T11:40:00Z", "ExitedWithCode")]
    assert denials(make_child(0), events) == ("30", "20", "10", "no time")


# -- TrainJob


@pytest.fixture
def train_job(child_object: Make) -> Make:
    """A TrainJob as the API server shows it."""

    def make(**spec: Any) -> dict[str, Any]:
        said = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "spec": spec, "status": {}}
        return {**child_object(0), **said}

    return make


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "active"),
        ([("Suspended", "True")], "active"),
        ([("Suspended", "False"), ("Complete", "True")], "succeeded"),
        ([("Failed", "True")], "failed"),
        ([("Failed", "False")], "active"),
    ],
)
def test_a_trainjobs_conditions_become_one_verdict(
    train_job: Make, conditions: list[tuple[str, str]], state: str
) -> None:
    obj = train_job()
    obj["status"] = {"conditions": [{"type": kind, "status": value} for kind, value in conditions]}
    child = trainjob.child_from(obj)
    assert child is not None
    assert (child.state, child.kind, child.api_version) == (state, "TrainJob", "trainer.kubeflow.org/v1alpha1")
    del obj["metadata"]["ownerReferences"]
    assert trainjob.child_from(obj) is None


def test_who_has_suspended_a_trainjob_is_told(train_job: Make) -> None:
    def suspender(**metadata: Any) -> str:
        obj = train_job(suspend=True)
        obj["metadata"] |= metadata
        child = trainjob.child_from(obj)
        assert child is not None
        return child.suspended_by

    fields = {"f:spec": {"f:suspend": {}}}
    others = {"f:spec": {"f:trainer": {}}}
    entries = [{"manager": "trl-operator", "fieldsV1": others}, {"manager": "kueue", "fieldsV1": fields}]
    assert suspender(managedFields=entries) == "kueue"
    assert suspender() == "somebody"


def test_a_pod_is_of_the_trainjob_by_whose_name_jobset_has_named_its_job(pod_object: Make) -> None:
    def made_by(**owner: Any) -> Owner | None:
        pod = pod_object(1)
        batch = {"apiVersion": "batch/v1", "kind": "Job", "name": "tune-dpo-0-n-0", "uid": "j", "controller": True}
        pod["metadata"]["ownerReferences"] = [batch | owner]
        return trainjob.maker(pod)

    assert made_by() == Owner("tune-dpo-0", "")
    for name in ("tune-dpo-0-n-1", "tune-dpo-0", "tune-dpo-0-n-29481120", "n-0"):
        assert made_by(name=name) is None
    for change in ({"kind": "ReplicaSet"}, {"apiVersion": "apps/v1"}, {"controller": False}):
        assert made_by(**change) is None


@pytest.mark.parametrize(
    ("about", "owner"),
    [
        ({"kind": "TrainJob", "name": "tune-dpo-0", "uid": "t"}, Owner("tune-dpo-0", "t")),
        ({"kind": "JobSet", "name": "tune-dpo-0", "uid": "s"}, Owner("tune-dpo-0", "")),
        ({"kind": "Job", "name": "tune-dpo-0-n-0", "uid": "j"}, Owner("tune-dpo-0", "")),
        ({"kind": "Job", "name": "backup", "uid": "j"}, None),
        ({"kind": "Pod", "name": "tune-dpo-0-n-0", "uid": "p"}, None),
        ({"namespace": "team"}, None),
        ({"kind": "Job"}, None),
    ],
)
def test_an_event_tells_of_the_trainjob_that_it_is_about_or_that_has_made_it(about: Any, owner: Owner | None) -> None:
    assert trainjob.concerned(about) == owner
    assert pytorchjob.concerned(about) is None


# -- an operator of version 0.1 has written status.pytorchJob


def test_a_job_whose_attempt_an_older_operator_began_goes_on_and_its_workload_is_said_anew(
    job_object: Make, child_object: Make, pod_object: Make, now: datetime
) -> None:
    world = World(job_object(), now)
    old = {"attempt": 0, "restarts": 0, "pytorchJob": {"name": "tune-dpo-0", "uid": "child-0"}}
    stored = world.kube.objects["dpojobs", "team", "tune"]
    body = {"metadata": stored["metadata"], "status": old}
    asyncio.run(world.kube.apply(JOBS["DPOJob"], "team", body, MANAGER_STATUS, "status"))
    world.store.put_job(world.kube.objects["dpojobs", "team", "tune"])
    world.store.put_child(world.kube.put("pytorchjobs", child_object(0)))
    world.store.put_pod(world.kube.put("pods", pod_object(0)))
    world.reconcile()
    assert (world.status["phase"], world.status["attempt"]) == ("Running", 0)
    name = {"name": "tune-dpo-0", "uid": "child-0"}
    assert world.status["workload"] == {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", **name}
    assert "pytorchJob" not in world.status
    assert ("create", "pytorchjobs") not in world.kube.writes


def test_an_older_operators_attempt_whose_pytorchjob_is_gone_has_failed(make_job: Make, now: datetime) -> None:
    old = {"attempt": 0, "pytorchJob": {"name": "tune-dpo-0", "uid": "child-0"}}
    after = decide(make_job(), old, View(), now)
    assert (after.status["attempt"], after.create) == (1, False)
    assert "PyTorchJob tune-dpo-0 was deleted" in after.status["conditions"][-1]["message"]
    stored = {"kind": "DPOJob", "metadata": {"namespace": "team", "name": "tune", "uid": "u"}, "status": old}
    attempt = current_attempt(stored)
    assert attempt is not None
    assert (attempt.child_uid, attempt.backend) == ("child-0", "pytorchjob")
    assert workload(after.status) == {}


# -- which backend


def test_a_run_stays_with_its_backend_and_a_spec_overrides_the_installation(make_job: Make) -> None:
    run = Run(image="i", digest="d")
    assert backend_for(make_job(), None, "trainjob") is trainjob
    assert backend_for(make_job(backend="pytorchjob"), None, "trainjob") is pytorchjob
    assert backend_for(make_job(), run, "trainjob") is pytorchjob, "an older operator has pinned it"
    assert backend_for(make_job(), Run(image="i", digest="d", backend="trainjob"), "pytorchjob") is trainjob


def test_a_new_default_runs_new_jobs_and_the_others_go_on(job_object: Make, pod_object: Make, now: datetime) -> None:
    rows = {"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}}
    world = World(job_object(dataset=rows), now)
    world.reconcile()
    assert (world.status["workload"]["kind"], world.status["run"]["backend"]) == ("PyTorchJob", "pytorchjob")
    fresh = World(job_object(dataset=rows), now)
    for each in (world, fresh):
        each.installation = Installation("trainer:1", "https://op:10443", "CA", "trainjob")
    uid = world.status["workload"]["uid"]
    running = pod_object(0)
    running["metadata"]["ownerReferences"][0]["uid"] = uid
    world.store.put_pod(world.kube.put("pods", running))
    world.reconcile()
    assert (world.status["phase"], world.status["workload"]["uid"]) == ("Running", uid)
    world.store.drop_child(world.kube.objects.pop(("pytorchjobs", "team", "tune-dpo-0")))
    world.store.drop_pod(world.kube.objects.pop(("pods", "team", "tune-dpo-0-worker-0")))
    world.reconcile()
    world.now += timedelta(minutes=6)
    world.reconcile()
    assert (world.status["attempt"], world.status["workload"]["kind"]) == (1, "PyTorchJob")
    fresh.reconcile()
    assert fresh.status["workload"] == {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "name": "tune-dpo-0",
        "uid": "tune-dpo-0-uid",
    }  # fmt: skip
    assert fresh.status["run"]["backend"] == "trainjob"
    created = [plural for verb, plural in fresh.kube.writes if verb == "create"]
    assert created.index("trainingruntimes") < created.index("trainjobs"), "the webhook wants to see it"
    assert "pytorchjobs" not in created


@pytest.mark.parametrize(
    "words",
    [
        "specified trainingRuntime must be created before the TrainJob is created",
        "admission webhook \"vtrainjob.kb.io\" denied the request: runtime 'tune-dpo-0' not found",
    ],
    ids=["trainer", "kueue"],
)
def test_a_refusal_that_only_comes_too_early_is_not_told(job_object: Make, now: datetime, words: str) -> None:
    rows = {"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}}
    world = World(job_object(dataset=rows, backend="trainjob"), now)

    def refuse(obj: dict[str, Any]) -> None:
        if obj["kind"] == "TrainJob":
            raise ApiError(403, words)

    world.kube.refuse_object = refuse
    with pytest.raises(ApiError) as caught:
        world.reconcile()
    assert (caught.value.status, isinstance(caught.value, Refused)) == (409, False)
    assert {c["reason"] for c in world.status["conditions"]} == {"Accepted", "Starting"}
    world.kube.refuse_object = lambda _: None
    world.reconcile()
    assert world.status["workload"]["kind"] == "TrainJob"


def test_a_runtime_that_says_something_else_than_it_should_is_made_anew(job_object: Make, now: datetime) -> None:
    """One that an operator has left that was killed, and what runPolicy says has changed since."""
    rows = {"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}}
    world = World(job_object(dataset=rows, backend="trainjob"), now)
    job = parse_job(job_object(dataset=rows, backend="trainjob"))
    [(_, same)] = trainjob.beside(job, 0, world.installation)
    # As the API server completes it.
    [nodes] = same["spec"]["template"]["spec"]["replicatedJobs"]
    nodes["groupName"] = "default"
    world.kube.put("trainingruntimes", {**same, "metadata": {**same["metadata"], "uid": "left"}})
    world.reconcile()
    assert world.kube.objects["trainingruntimes", "team", "tune-dpo-0"]["metadata"]["uid"] == "left"
    other = World(job_object(dataset=rows, backend="trainjob"), now)
    nodes["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 30
    other.kube.put("trainingruntimes", {**same, "metadata": {**same["metadata"], "uid": "left"}})
    other.reconcile()
    made = other.kube.objects["trainingruntimes", "team", "tune-dpo-0"]
    assert made["metadata"]["uid"] != "left"
    assert other.status["workload"]["kind"] == "TrainJob"


def test_what_an_attempt_has_beside_its_trainjob_goes_with_the_attempt(job_object: Make, now: datetime) -> None:
    rows = {"train": {"inline": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}}
    world = World(job_object(dataset=rows, backend="trainjob"), now)
    for attempt in range(2):
        world.reconcile()
        name = f"tune-dpo-{attempt}"
        assert ("trainingruntimes", "team", name) in world.kube.objects
        world.store.drop_child(world.kube.objects.pop(("trainjobs", "team", name)))
        world.reconcile()
        world.now += timedelta(minutes=6)
    world.reconcile()
    left = [name for plural, _, name in world.kube.objects if plural == "trainingruntimes"]
    assert left == ["tune-dpo-2"]
