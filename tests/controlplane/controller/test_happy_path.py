"""A job from apply to Succeeded."""

import json
from collections.abc import Callable
from typing import Any

from devcluster.fakenode import FakeNode
from devcluster.waiting import wait_for

WRITES = [
    "patch dpojobs/status tune",  # the attempt is written ahead
    "create configmaps tune-dpo",  # these four at the same time
    "create configmaps tune-dpo-0",
    "create networkpolicies tune-dpo-0",
    "create persistentvolumeclaims tune-dpo",
    "create pytorchjobs tune-dpo-0",
    "patch dpojobs/status tune",
    "create events",
    "patch dpojobs/status tune",  # Running
    "create events",
    "patch dpojobs/status tune",  # Succeeded
    "create events",
]


def test_a_job_of_two_nodes_runs_and_succeeds(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    jobs.apply(dpo(numNodes=2, storage={"size": "1Gi", "accessModes": ["ReadWriteMany"]}))
    pods = node.wait_for_pods(2, "tune-dpo-0")
    jobs.wait_for_phase("tune", "Starting")
    for pod in pods:
        node.run(pod)
    status = jobs.wait_for_phase("tune", "Running")
    assert status["attempt"] == 0
    assert status["workload"]["name"] == "tune-dpo-0"
    assert status["effective"]["worldSize"] == 2
    artifact = {"type": "model", "uri": "u/final", "digest": "sha256:abc", "size": 7}
    node.succeed(pods[0], record(artifacts=[artifact]))
    node.succeed(pods[1], record())
    jobs.plane.kubectl(
        "wait", "--for=condition=Finished", "dpojob/tune", f"--namespace={jobs.namespace}", "--timeout=60s"
    )
    status = jobs.status("dpojob", "tune")
    assert status["phase"] == "Succeeded"
    place = {"claimName": "tune-dpo", "path": "u/final"}
    [found] = status["artifacts"]
    assert "/claim/u/final" in found.pop("fetchCommand")
    assert found == {"type": "model", **place, "digest": "sha256:abc", "size": 7}
    assert status.get("restarts") == 0
    assert status["completionTime"]
    assert [c["type"] for c in status["conditions"]] == ["Accepted", "Running", "Succeeded", "Failed", "Finished"]
    wait_for("the last event is written", lambda: len(requests(operator, jobs, "create", "patch")) == len(WRITES), 20)
    found = requests(operator, jobs, "create", "update", "patch", "delete")
    assert [*found[:1], *sorted(found[1:5]), *found[5:]] == WRITES
    before = requests(operator, jobs, "get", "list", "create")
    reads = [each for each in before[: before.index("create pytorchjobs tune-dpo-0")] if not each.startswith("create")]
    assert reads == []


def test_a_gang_of_64_pods_that_ends_is_at_most_six_status_writes(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    jobs.apply(dpo(numNodes=64, storage={"size": "1Gi", "accessModes": ["ReadWriteMany"]}))
    pods = node.wait_for_pods(64, "tune-dpo-0", timeout=90)
    for pod in pods:
        node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    before = requests(operator, jobs, "patch")
    for pod in pods:
        node.succeed(pod, record())
    jobs.wait_for_phase("tune", "Succeeded")
    written = len(requests(operator, jobs, "patch")) - len(before)
    assert 1 <= written <= 6


def requests(operator: Any, jobs: Any, *verbs: str) -> list[str]:
    """The operator's requests in the test's namespace, in order."""
    found = []
    for entry in jobs.plane.audit(operator.user):
        reference = entry.get("objectRef", {})
        if reference.get("namespace") == jobs.namespace and entry["verb"] in verbs:
            assert entry["responseStatus"]["code"] < 300, entry
            name = reference.get("name", "") if reference["resource"] != "events" else ""
            resource = "/".join(filter(None, [reference["resource"], reference.get("subresource")]))
            found.append(f"{entry['verb']} {resource} {name}".strip())
    return found


def test_the_objects_of_a_job_are_the_ones_that_are_promised(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(dpo(numNodes=2, storage={"size": "1Gi", "accessModes": ["ReadWriteMany"]}))
    pods = node.wait_for_pods(2, "tune-dpo-0")
    job = jobs.get("dpojob", "tune")
    owner = {
        "apiVersion": "trl-operator.io/v1alpha1",
        "kind": "DPOJob",
        "name": "tune",
        "uid": job["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    assert "finalizers" not in job["metadata"]
    run = jobs.get("configmap", "tune-dpo")
    assert run["immutable"]
    assert jobs.status("dpojob", "tune")["run"]["image"] == pods[0]["spec"]["containers"][0]["image"]
    ours = [("pytorchjob", "tune-dpo-0"), ("configmap", "tune-dpo"), ("configmap", "tune-dpo-0")]
    for kind, name in (*ours, ("networkpolicy", "tune-dpo-0")):
        child = jobs.get(kind, name)
        assert child["metadata"]["ownerReferences"] == [owner], kind
        assert child["metadata"]["labels"]["trl-operator.io/job-uid"] == job["metadata"]["uid"]
        assert "finalizers" not in child["metadata"]
    assert "ownerReferences" not in jobs.get("persistentvolumeclaim", "tune-dpo")["metadata"]
    for index, pod in enumerate(pods):
        env = {variable["name"]: variable.get("value") for variable in pod["spec"]["containers"][0]["env"]}
        assert env["PET_NNODES"] == "2"
        assert env["PET_NPROC_PER_NODE"] == "1"
        assert env["PET_MASTER_ADDR"] == "tune-dpo-0-worker-0"
        assert pod["metadata"]["labels"]["training.kubeflow.org/replica-index"] == str(index)
        assert not pod["spec"].get("initContainers")
        mounted = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
        assert "/var/run/secrets/kubernetes.io/serviceaccount" not in mounted
        files = node.files(pod, "/etc/trl")
        assert json.loads(files["attempt.json"]) == {"attempt": 0}
        file = json.loads(files["job.json"])
        assert (file["name"], file["uid"], file["numNodes"]) == ("tune", job["metadata"]["uid"], 2)
