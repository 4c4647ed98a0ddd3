"""What is only so of a job that runs as a TrainJob."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from reporting import Trainer, report
from rights import granted, used

from devcluster.controlplane import ControlPlane
from devcluster.fakenode import Exit, FakeNode
from devcluster.waiting import wait_for
from trl_operator.backend import BACKENDS
from trl_operator.backend.trainjob import LABEL_INDEX

SHARED = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
GROUPS = {backend.RESOURCE.group for backend in BACKENDS.values()}
BELOW = "trainjobs,trainingruntimes,jobsets,jobs.batch,services,pods,configmaps,networkpolicies"


@pytest.fixture
def own_operator(make_operator: Callable[..., Any], control_plane: ControlPlane, jobs: Any, install_chart: Any) -> Any:
    """Of the test's namespace alone, with the rights that it has there."""
    install_chart(control_plane, jobs.namespace, f"scope.namespaces={{{jobs.namespace}}}", "backend=trainjob")
    return make_operator(BACKEND="trainjob")


def test_the_pods_of_a_trainjob_find_each_other_and_all_that_it_made_goes_with_the_job(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    jobs.apply(dpo(numNodes=2, storage=SHARED))
    pods = node.wait_for_pods(2, "tune-dpo-0")
    job = jobs.get("dpojob", "tune")
    for kind in ("trainjob", "trainingruntime"):
        made = jobs.get(kind, "tune-dpo-0")
        [owner] = made["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (job["metadata"]["uid"], True), kind
        assert "finalizers" not in made["metadata"], "the next one would wait for somebody else"
    for index, pod in enumerate(pods):
        [container] = pod["spec"]["containers"]
        env = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"]) == ("2", "1")
        assert env["PET_MASTER_ADDR"] == f"{pods[0]['spec']['hostname']}.{pods[0]['spec']['subdomain']}"
        assert pod["metadata"]["labels"][LABEL_INDEX] == str(index)
        assert jobs.get("service", pod["spec"]["subdomain"])["spec"]["publishNotReadyAddresses"]
        assert not pod["spec"].get("initContainers")
        assert json.loads(node.files(pod, "/etc/trl")["attempt.json"])["attempt"] == 0
        node.run(pod)
    status = jobs.wait_for_phase("tune", "Running")
    assert (status["workload"]["kind"], status["run"]["backend"]) == ("TrainJob", "trainjob")
    assert status["workload"]["uid"] == jobs.get("trainjob", "tune-dpo-0")["metadata"]["uid"]
    jobs.delete("dpojob", "tune")

    def left() -> set[str]:
        return {obj["metadata"]["name"] for obj in jobs.list(BELOW)} - {"kube-root-ca.crt"}

    wait_for("all of it is gone", lambda: not left(), 60)


def test_a_drained_pod_gets_no_other_one_beside_it_and_its_attempt_is_free(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any], record: Callable[..., str]
) -> None:
    node.sigterm = Exit(143, record("Preempted", reason="Preempted", message="SIGTERM", rank=0))
    jobs.apply(dpo(numNodes=2, storage=SHARED, runPolicy={"maxRestarts": 0}))
    pods = node.wait_for_pods(2, "tune-dpo-0")
    for pod in pods:
        node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    node.drain(pods[1])
    status = jobs.wait("dpojob", "tune", "restarts", lambda s: s.get("restarts") == 1)
    assert status["retry"]["counted"] == 0
    node.wait_for_pods(2, "tune-dpo-1")
    first = {pod["metadata"]["uid"] for pod in [*node.pods("tune-dpo-0"), *node.gone("tune-dpo-0")]}
    assert first == {pod["metadata"]["uid"] for pod in pods}


def test_a_pod_that_only_says_that_it_is_ours_is_none(
    operator: Any, jobs: Any, node: FakeNode, dpo: Callable[..., Any]
) -> None:
    """Whoever may make Jobs may write labels into their templates."""
    jobs.apply(dpo())
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    forged = jobs.get("job.batch", "tune-dpo-0-n-0")["spec"]["template"]
    forged["metadata"]["labels"] = {
        name: value for name, value in forged["metadata"]["labels"].items() if name.startswith("trl-operator.io/")
    }
    other = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "forged"}}
    jobs.apply({**other, "spec": {"backoffLimit": 0, "completionMode": "Indexed", "completions": 1, "parallelism": 1,
                                  "template": forged}})  # fmt: skip
    wait_for("both pods are there", lambda: len(node.pods()) == 2, 30)
    [stranger] = [found for found in node.pods() if found["metadata"]["uid"] != pod["metadata"]["uid"]]
    assert stranger["metadata"]["labels"]["trl-operator.io/attempt"] == "0"
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    assert Trainer(node, stranger).post(report(1))[0] == 403
    node.fail(stranger, 1)
    node.succeed(pod)
    status = jobs.wait_for_phase("tune", "Succeeded")
    assert status["restarts"] == 0


def test_the_chart_grants_of_each_backend_what_it_uses_and_only_if_it_is_asked_for(
    own_operator: Any,
    control_plane: ControlPlane,
    render_chart: Callable[..., list[dict[str, Any]]],
    jobs: Any,
    node: FakeNode,
    dpo: Callable[..., Any],
) -> None:
    own_operator.start()
    elsewhere = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late-dpo-0"}}
    jobs.apply(elsewhere, dpo(), dpo("other", backend="pytorchjob"), dpo("late"))
    told = jobs.wait("dpojob", "other", "is told", lambda s: "BackendUnavailable" in str(s))
    assert "otherBackends" in str(told), "there are PyTorchJobs, but this operator may not use them"
    jobs.wait("dpojob", "late", "is told", lambda s: "NameConflict" in str(s))
    jobs.delete("configmap", "late-dpo-0")
    node.wait_for_pods(1, "late-dpo-0")
    [pod] = node.wait_for_pods(1, "tune-dpo-0")
    node.run(pod)
    jobs.wait_for_phase("tune", "Running")
    # The next attempt takes away what this one leaves.
    for suspend, phase in ((True, "Suspended"), (False, "Starting")):
        jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"suspend": suspend}}})
        jobs.wait_for_phase("tune", phase)
    node.wait_for_pods(1, "tune-dpo-1")
    jobs.patch("dpojob", "tune", {"spec": {"runPolicy": {"cancel": True}}})
    jobs.wait_for_phase("tune", "Cancelled")
    # Trainer's webhook says 403 too, of a TrainJob whose runtime it has yet to see.
    asked = control_plane.audit(own_operator.user)
    denied = [entry for entry in asked if entry["annotations"]["authorization.k8s.io/decision"] == "forbid"]
    assert not denied, [(entry["verb"], entry["requestURI"]) for entry in denied]
    rights = {
        values: {right for right in granted(render_chart("trl", *values), "trl-operator") if right[0] in GROUPS}
        for values in ((), ("backend=trainjob",), ("otherBackends={trainjob}",))
    }
    mine = {right for right in used(control_plane, own_operator.user) if right[0] in GROUPS}
    assert mine == rights["backend=trainjob",]
    assert not rights[()] & mine
    assert rights["otherBackends={trainjob}",] == rights[()] | mine


@pytest.mark.parametrize("group", ["coscheduling", "volcano"])
def test_a_pod_group_is_taken_by_the_api_server(operator: Any, jobs: Any, dpo: Callable[..., Any], group: str) -> None:
    """There is neither scheduler here: of what Trainer makes of it nothing is said."""
    jobs.apply(dpo(schedulerName="gang", podGroupPolicy=group))
    wait_for("it is there", lambda: jobs.get("trainingruntime", "tune-dpo-0"), 30)
    found = jobs.get("trainingruntime", "tune-dpo-0")["spec"]
    assert list(found["podGroupPolicy"]) == [group]
