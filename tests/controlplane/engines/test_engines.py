"""JobSet, Trainer and Kueue beside a control plane alone do what the operator's tests take for granted."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.errors import DevClusterError
from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for
from trl_operator.backend.trainjob import is_early

Kubectl = Callable[..., str]
Obj = dict[str, Any]
CONTAINER = {"image": "localhost/trl-trainer:dev", "resources": {"requests": {"cpu": "1"}}}
QUEUE = {"kueue.x-k8s.io/queue-name": "team"}


def trainjob(name: str, nodes: int = 2, labels: dict[str, str] | None = None, **spec: Any) -> list[Obj]:
    """A TrainingRuntime and a TrainJob of its name that refers to it."""
    job = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": 0,
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "node", **CONTAINER}]}},
            },
        },
    }
    jobset = {"failurePolicy": {"maxRestarts": 0}, "replicatedJobs": [job]}
    runtime = {"mlPolicy": {"numNodes": nodes, "torch": {}}, "template": {"spec": jobset}}
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name}
    trainjob = {"runtimeRef": reference, "trainer": {"numProcPerNode": 1}, **spec}
    return [
        {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": kind, "metadata": metadata, "spec": body}
        for kind, metadata, body in (
            ("TrainingRuntime", {"name": name}, runtime),
            ("TrainJob", {"name": name, "labels": labels or {}}, trainjob),
        )
    ]


def pytorchjob(name: str, labels: dict[str, str], **run_policy: Any) -> Obj:
    template = {"spec": {"containers": [{"name": "pytorch", **CONTAINER}]}}
    worker = {"replicas": 2, "restartPolicy": "Never", "template": template}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "labels": labels},
        "spec": {"nprocPerNode": "1", "runPolicy": run_policy, "pytorchReplicaSpecs": {"Worker": worker}},
    }


def queue(namespace: str, cpus: str) -> list[Obj]:
    """A LocalQueue "team" of the namespace, with a ClusterQueue and ResourceFlavor that nobody else has."""
    quota = {"name": namespace, "resources": [{"name": "cpu", "nominalQuota": cpus}]}
    groups = [{"coveredResources": ["cpu"], "flavors": [quota]}]
    return [
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": metadata, "spec": spec}
        for kind, metadata, spec in (
            ("ResourceFlavor", {"name": namespace}, {}),
            ("ClusterQueue", {"name": namespace}, {"namespaceSelector": {}, "resourceGroups": groups}),
            ("LocalQueue", {"name": "team", "namespace": namespace}, {"clusterQueue": namespace}),
        )
    ]


def conditions(kubectl: Kubectl, *resource: str) -> dict[str, str]:
    """The reasons of the conditions that hold, by type."""
    found = json.loads(kubectl("get", *resource, "--output=json"))
    [found] = found.get("items", [found])
    found = found.get("status", {}).get("conditions", ())
    return {each["type"]: each.get("reason", "") for each in found if each["status"] == "True"}


@pytest.fixture
def create(kubectl: Kubectl) -> Callable[..., None]:
    def create(*objects: Obj) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": objects}
        kubectl("create", "--filename=-", stdin=json.dumps(items))

    return create


def test_a_trainjob_runs_as_jobset_job_and_pods(kubectl: Kubectl, create: Callable[..., None], node: FakeNode) -> None:
    create(*trainjob("good"))
    first, second = node.wait_for_pods(2, "good", "Pending")
    [owner] = first["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Job", "good-node-0")
    [owner] = json.loads(kubectl("get", "job", "good-node-0", "--output=json"))["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("JobSet", "good")
    [owner] = json.loads(kubectl("get", "jobset", "good", "--output=json"))["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("TrainJob", "good")
    env = {each["name"]: each.get("value") for each in first["spec"]["containers"][0]["env"]}
    assert (env["PET_NNODES"], env["PET_MASTER_ADDR"]) == ("2", "good-node-0-0.good")
    for pod in (first, second):
        node.run(pod)
        node.succeed(pod)
    wait_for("the TrainJob is Complete", lambda: "Complete" in conditions(kubectl, "trainjob", "good"), 60)


def test_a_trainjob_fails_with_its_pod(kubectl: Kubectl, create: Callable[..., None], node: FakeNode) -> None:
    create(*trainjob("bad"))
    for pod in node.wait_for_pods(2, "bad", "Pending"):
        node.run(pod)
    node.fail(node.wait_for_pods(2, "bad", "Running")[0], 65)
    wait_for("the TrainJob is Failed", lambda: "Failed" in conditions(kubectl, "trainjob", "bad"), 60)
    node.wait_for_pods(0, "bad", "Running")


def test_kueue_admits_what_has_quota_and_lets_the_rest_wait(
    control_plane: ControlPlane, kubectl: Kubectl, create: Callable[..., None], node: FakeNode, namespace: str
) -> None:
    control_plane.apply(*queue(namespace, "2"))
    create(pytorchjob("first", QUEUE, suspend=True))
    for pod in node.wait_for_pods(2, "first", "Pending"):
        node.run(pod)
    create(*trainjob("second", labels=QUEUE, suspend=True))

    def waits() -> bool:
        found = json.loads(kubectl("get", "workloads", "--output=json"))["items"]
        return {
            (each["metadata"]["ownerReferences"][0]["name"], condition["reason"])
            for each in found
            for condition in each.get("status", {}).get("conditions", ())
            if condition["type"] == "QuotaReserved"
        } == {("first", "QuotaReserved"), ("second", "Pending")}

    wait_for("the second job waits for quota", waits, 60)
    assert node.pods("second") == []
    for pod in node.pods("first"):
        node.succeed(pod)
    wait_for("the PyTorchJob is Succeeded", lambda: "Succeeded" in conditions(kubectl, "pytorchjob", "first"), 60)
    node.wait_for_pods(2, "second", "Pending")


def test_an_engine_may_run_with_other_settings_for_a_while(
    control_plane: ControlPlane, kubectl: Kubectl, create: Callable[..., None], node: FakeNode, namespace: str
) -> None:
    control_plane.apply(*queue(namespace, "2"))
    with control_plane.configured("kueue", waitForPodsReady={"timeout": "1s"}):
        create(pytorchjob("slow", QUEUE))
        node.wait_for_pods(2, "slow", "Pending")
        wait_for("Kueue evicts it", lambda: conditions(kubectl, "workloads").get("Evicted") == "PodsReadyTimeout", 30)
        node.wait_for_pods(0, "slow")


def test_kueues_webhook_suspends_a_job_that_names_a_queue(kubectl: Kubectl, create: Callable[..., None]) -> None:
    create(pytorchjob("eager", QUEUE))
    found = json.loads(kubectl("get", "pytorchjob", "eager", "--output=json"))
    assert found["spec"]["runPolicy"]["suspend"] is True


def test_the_webhooks_refuse_what_is_wrong(create: Callable[..., None], kubectl: Kubectl) -> None:
    [runtime, job] = trainjob("wrong")
    runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["replicas"] = 2
    with pytest.raises(DevClusterError, match=r"validator.trainingruntime.trainer.kubeflow.org.*denied"):
        create(runtime)
    # Trainer's or Kueue's, whichever is faster.
    with pytest.raises(DevClusterError, match=r"(validator.trainjob.trainer.kubeflow.org|vtrainjob.kb.io).*denied"):
        create(job)


@pytest.mark.parametrize("engine", ["trainer", "kueue"])
def test_a_trainjob_whose_runtime_is_not_there_yet_is_refused_in_words_that_the_operator_knows(
    control_plane: ControlPlane, kubectl: Kubectl, engine: str
) -> None:
    kinds = "validatingwebhookconfigurations"
    found = json.loads(control_plane.kubectl("get", kinds, "--output=json"))["items"]
    concerned = [each for each in found if "trainjobs" in str(each["webhooks"])]
    others = [each for each in concerned if engine not in each["metadata"]["name"]]
    assert (len(concerned), len(others)) == (2, 1), "each of the two looks at TrainJobs"
    early = json.dumps(trainjob("early")[1])

    def refusal() -> str:
        with pytest.raises(DevClusterError) as caught:
            kubectl("create", "--dry-run=server", "--filename=-", stdin=early)
        return str(caught.value)

    control_plane.kubectl("delete", kinds, others[0]["metadata"]["name"])
    try:
        hook = next(hook["name"] for each in concerned if each not in others for hook in each["webhooks"]
                    if "trainjobs" in str(hook["rules"]))  # fmt: skip
        wait_for(f"{hook} alone refuses", lambda: f'"{hook}" denied' in refusal(), 30)
        assert is_early(refusal()), refusal()
    finally:
        kept = {"metadata": {"name": others[0]["metadata"]["name"]}}
        control_plane.apply({**others[0], **kept})
