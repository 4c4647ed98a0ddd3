"""The control plane and the fake node that the operator's tests stand on do what those tests take for granted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kubernetes import client, config

from devcluster import controlplane_commands
from devcluster.controlplane import ControlPlane
from devcluster.errors import DevClusterError
from devcluster.fakenode import Exit, FakeNode, Pod
from devcluster.paths import REPOSITORY
from devcluster.waiting import wait_for

Kubectl = Callable[..., str]
HOLDER = """
import time
from devcluster.controlplane import ControlPlane
with ControlPlane() as plane:
    print(plane.folder, flush=True)
    time.sleep(600)
"""


def pytorchjob(name: str, workers: int = 2, **template: Any) -> dict[str, Any]:
    container = {"name": "pytorch", "image": "localhost/trl-trainer:dev"}
    pod = {"metadata": {}, "spec": {"containers": [container], **template}}
    worker = {"replicas": workers, "restartPolicy": "Never", "template": pod}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {
            "nprocPerNode": "1",
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": {"Worker": worker},
        },
    }


@pytest.fixture
def create(kubectl: Kubectl) -> Callable[[dict[str, Any]], str]:
    return lambda body: kubectl("create", "--filename=-", stdin=json.dumps(body))


def condition(kubectl: Kubectl, job: str, kind: str) -> bool:
    found = json.loads(kubectl("get", "pytorchjob", job, "--output=json")).get("status", {}).get("conditions") or ()
    return any(c["type"] == kind and c["status"] == "True" for c in found)


def wait_for_condition(kubectl: Kubectl, job: str, kind: str) -> None:
    wait_for(f"PyTorchJob {job} is {kind}", lambda: condition(kubectl, job, kind), 60, 0.2)


def get_pod(kubectl: Kubectl, name: str) -> Pod:
    pod: Pod = json.loads(kubectl("get", "pod", name, "--output=json"))
    return pod


def processes_of(folder: str) -> list[str]:
    """The processes whose command line names the folder of a control plane."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and folder.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_two_control_planes_side_by_side_know_nothing_of_each_other(
    control_plane: ControlPlane, second_control_plane: ControlPlane, namespace: str
) -> None:
    assert namespace in control_plane.kubectl("get", "namespaces")
    assert namespace not in second_control_plane.kubectl("get", "namespaces")
    assert set(control_plane.pids.values()).isdisjoint(second_control_plane.pids.values())
    with pytest.raises(DevClusterError, match="certificate signed by unknown authority"):
        control_plane.kubectl("get", "namespaces", f"--server={second_control_plane.url}")


def test_a_pytorchjob_whose_pods_succeed_succeeds(kubectl: Kubectl, create: Callable[..., str], node: FakeNode) -> None:
    create(pytorchjob("good"))
    first, second = node.wait_for_pods(2, "good", "Pending")
    assert [first["metadata"]["name"], second["metadata"]["name"]] == ["good-worker-0", "good-worker-1"]
    env = {e["name"]: e.get("value") for e in first["spec"]["containers"][0]["env"]}
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"]) == ("2", "1")
    node.run(first)
    node.run(second)
    wait_for_condition(kubectl, "good", "Running")
    node.succeed(first)
    node.wait_for_pods(1, "good", "Succeeded")
    assert not condition(kubectl, "good", "Succeeded"), "a job of Workers alone has to wait for all of them"
    node.succeed(second, message='{"outcome": "SUCCEEDED"}')
    wait_for_condition(kubectl, "good", "Succeeded")
    [status] = get_pod(kubectl, "good-worker-1")["status"]["containerStatuses"]
    assert status["state"]["terminated"]["message"] == '{"outcome": "SUCCEEDED"}'


def test_a_policy_plays_the_pods_by_itself(control_plane: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    def run_then_succeed(node: FakeNode, pod: Pod) -> None:
        if pod["status"]["phase"] == "Pending":
            node.run(pod)
        else:
            node.succeed(pod)

    with FakeNode(control_plane.kubeconfig, f"node-{namespace}", namespace, run_then_succeed) as node:
        kubectl("create", "--filename=-", stdin=json.dumps(pytorchjob("auto")))
        node.wait_for_pods(2, "auto", "Succeeded")
    wait_for_condition(kubectl, "auto", "Succeeded")


def test_what_goes_wrong_in_a_policy_reaches_the_test(
    control_plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    def broken(node: FakeNode, pod: Pod) -> None:
        raise ZeroDivisionError(pod["metadata"]["name"])

    kubectl("create", "--filename=-", stdin=json.dumps(pytorchjob("bad", workers=1)))
    node = FakeNode(control_plane.kubeconfig, f"node-{namespace}", namespace, broken)
    with node, pytest.raises(ZeroDivisionError, match="bad-worker-0"):
        node.wait_for_pods(1, "bad", "Running")


@pytest.mark.parametrize("kind", ["exit code", "out of memory", "evicted", "evicted for its own disk use"])
def test_a_pytorchjob_fails_with_its_pod(
    kind: str, kubectl: Kubectl, create: Callable[..., str], node: FakeNode
) -> None:
    create(pytorchjob("bad"))
    first, second = node.wait_for_pods(2, "bad", "Pending")
    node.run(first)
    node.run(second)
    if kind == "exit code":
        node.fail(first, 65, "Error", "DataFormatError")
        wanted = {"exitCode": 65, "reason": "Error", "message": "DataFormatError"}
    elif kind == "out of memory":
        node.oom_kill(first)
        wanted = {"exitCode": 137, "reason": "OOMKilled"}
    else:
        node.evict(first, "The node was low on resource: memory.", own_fault="own" in kind)
        wanted = {"exitCode": 137}
    wait_for_condition(kubectl, "bad", "Failed")
    status = get_pod(kubectl, "bad-worker-0")["status"]
    assert wanted.items() <= status["containerStatuses"][0]["state"]["terminated"].items()
    disruptions = [c["reason"] for c in status["conditions"] if c["type"] == "DisruptionTarget"]
    assert status.get("reason") == ("Evicted" if "evicted" in kind else None)
    assert disruptions == (["TerminationByKubelet"] if kind == "evicted" else [])
    node.wait_for_pods(1, "bad")  # cleanPodPolicy Running: the failed one stays, the other one has ended and gone


def test_a_pod_that_cannot_start_or_be_scheduled_says_why(
    kubectl: Kubectl, create: Callable[..., str], node: FakeNode
) -> None:
    node.cordon("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    create(pytorchjob("stuck", workers=1))

    def is_unschedulable() -> bool:
        pods = json.loads(kubectl("get", "pods", "--output=json"))["items"]
        conditions = [c for pod in pods for c in pod["status"].get("conditions", ())]
        return any(c["reason"] == "Unschedulable" and "nvidia.com/gpu" in c["message"] for c in conditions)

    wait_for("the pod is unschedulable", is_unschedulable, 30, 0.1)
    node.uncordon()
    [pod] = node.wait_for_pods(1, "stuck")
    node.wait(pod, "ImagePullBackOff", 'Back-off pulling image "nowhere/none"')
    [status] = get_pod(kubectl, "stuck-worker-0")["status"]["containerStatuses"]
    assert status["state"]["waiting"]["reason"] == "ImagePullBackOff"


@pytest.mark.parametrize(
    ("sigterm", "grace", "wanted"),
    [
        # Long enough for two calls of kubectl on a busy machine.
        (Exit(143, "checkpoint written", after_seconds=5), 10, {"exitCode": 143, "message": "checkpoint written"}),
        (Exit(0), 10, {"exitCode": 0}),
        (Exit(143, "too late", after_seconds=600), 5, {"exitCode": 137}),
    ],
    ids=["in its own time", "well", "killed after the grace period"],
)
def test_a_deleted_pod_ends_as_its_container_answers_sigterm(
    sigterm: Exit, grace: int, wanted: dict[str, Any], kubectl: Kubectl, create: Callable[..., str], node: FakeNode
) -> None:
    node.sigterm = sigterm
    create(pytorchjob("ending", workers=1, terminationGracePeriodSeconds=grace))
    [pod] = node.wait_for_pods(1, "ending", "Pending")
    node.run(pod)
    node.wait_for_pods(1, "ending", "Running")
    kubectl("delete", "pod", "ending-worker-0", "--wait=false")
    if sigterm.after_seconds:
        assert "deletionTimestamp" in get_pod(kubectl, "ending-worker-0")["metadata"]
    node.wait_for_pods(0, "ending")
    [ended] = node.gone("ending")
    [status] = ended["status"]["containerStatuses"]
    assert ended["status"]["phase"] == ("Failed" if wanted["exitCode"] else "Succeeded")
    assert wanted.items() <= status["state"]["terminated"].items()


def test_a_pod_that_was_replaced_under_its_name_is_not_mistaken_for_the_new_one(
    kubectl: Kubectl, create: Callable[..., str], node: FakeNode
) -> None:
    create(pytorchjob("again", workers=1))
    [old] = node.wait_for_pods(1, "again", "Pending")
    kubectl("delete", "pod", "again-worker-0", "--wait=false")
    wait_for("the pending pod is gone", lambda: bool(node.gone("again")), 30)
    [new] = node.wait_for_pods(1, "again", "Pending")
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    for act in (node.run, node.preempt):
        with pytest.raises(client.ApiException, match=old["metadata"]["uid"]):
            act(old)
    assert node.pods("again", "Pending") == [new]


def test_pods_of_a_lost_node_stay_until_it_is_back(
    kubectl: Kubectl, create: Callable[..., str], node: FakeNode
) -> None:
    create(pytorchjob("lost", workers=1))
    [pod] = node.wait_for_pods(1, "lost", "Pending")
    node.run(pod)
    wait_for_condition(kubectl, "lost", "Running")
    node.lose()
    wait_for_condition(kubectl, "lost", "Failed")
    left = get_pod(kubectl, "lost-worker-0")
    assert left["status"]["phase"] == "Running"
    assert "deletionTimestamp" in left["metadata"]
    assert "DeletionByTaintManager" in [c.get("reason") for c in left["status"]["conditions"]]
    node.recover()
    node.wait_for_pods(0, "lost")


@pytest.mark.parametrize(("act", "reason"), [("preempt", "PreemptionByScheduler"), ("drain", "EvictionByEvictionAPI")])
def test_preemption_and_drain_say_so_in_the_pod(
    act: str, reason: str, create: Callable[..., str], node: FakeNode
) -> None:
    create(pytorchjob("victim", workers=1))
    [pod] = node.wait_for_pods(1, "victim", "Pending")
    node.run(pod)
    getattr(node, act)(pod)
    node.wait_for_pods(0, "victim")
    [ended] = node.gone("victim")
    assert [c["reason"] for c in ended["status"]["conditions"] if c["type"] == "DisruptionTarget"] == [reason]


def test_the_training_operators_webhook_refuses_a_bad_pytorchjob(create: Callable[..., str]) -> None:
    bad = pytorchjob("bad")
    worker = bad["spec"]["pytorchReplicaSpecs"]["Worker"]
    worker["template"]["spec"]["containers"][0]["name"] = "trainer"
    with pytest.raises(DevClusterError, match=r"validator.pytorchjob.training-operator.kubeflow.org.*pytorch"):
        create(bad)


def test_deleting_an_owner_deletes_its_children(kubectl: Kubectl, create: Callable[..., str], node: FakeNode) -> None:
    create(pytorchjob("owner"))
    for pod in node.wait_for_pods(2, "owner", "Pending"):
        node.run(pod)
    uid = json.loads(kubectl("get", "pytorchjob", "owner", "--output=json"))["metadata"]["uid"]
    reference = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "owner", "uid": uid, "controller": True}
    create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "child", "ownerReferences": [reference]}})
    kubectl("delete", "pytorchjob", "owner")
    node.wait_for_pods(0, "owner")
    wait_for("all children are gone", lambda: not kubectl("get", "services,pods", "--output=name"), 30, 0.2)
    wait_for("the ConfigMap is gone", lambda: "child" not in kubectl("get", "configmaps", "--output=name"), 30, 0.2)


def test_a_bound_token_is_reviewed_with_its_pod(
    control_plane: ControlPlane, kubectl: Kubectl, create: Callable[..., str], node: FakeNode
) -> None:
    create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "job"}, "data": {"job.json": "{}"}})
    minted_for = "trl-operator.io/job"
    token = {"serviceAccountToken": {"path": "token", "audience": minted_for, "expirationSeconds": 3600}}
    mounts = [{"name": "job", "mountPath": "/etc/trl"}, {"name": "token", "mountPath": "/var/run/secrets/trl"}]
    job = pytorchjob(
        "reporter",
        workers=1,
        volumes=[
            {"name": "job", "configMap": {"name": "job"}},
            {"name": "token", "projected": {"sources": [token]}},
        ],
    )
    job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["volumeMounts"] = mounts
    create(job)
    [pod] = node.wait_for_pods(1, "reporter", "Pending")
    assert node.files(pod, "/etc/trl") == {"job.json": "{}"}
    minted = node.files(pod, "/var/run/secrets/trl")["token"]

    review = client.AuthenticationV1Api(config.new_client_from_config(str(control_plane.kubeconfig)))

    def status(*audiences: str) -> Any:
        return review.create_token_review({"spec": {"token": minted, "audiences": audiences}}).status

    accepted = status(minted_for)
    assert accepted.authenticated
    assert accepted.user.extra["authentication.kubernetes.io/pod-name"] == ["reporter-worker-0"]
    assert accepted.user.extra["authentication.kubernetes.io/pod-uid"] == [pod["metadata"]["uid"]]
    assert accepted.user.extra["authentication.kubernetes.io/node-name"] == [node.name]
    assert not status("another-audience").authenticated
    kubectl("delete", "pod", "reporter-worker-0", "--wait=false")
    # Asked differently every time, since the API server repeats for 10 s what it answered to the same question.
    wait_for("the token dies with its pod", lambda: not status(minted_for, uuid4().hex).authenticated, 30)


def test_a_quota_keeps_pods_out(kubectl: Kubectl, create: Callable[..., str], node: FakeNode) -> None:
    kubectl("create", "quota", "small", "--hard=pods=1")
    wait_for(
        "the quota is in force", lambda: '"hard"' in kubectl("get", "quota", "small", "--output=jsonpath={.status}"), 30
    )
    create(pytorchjob("big"))
    node.wait_for_pods(1, "big")
    wait_for("an event names the quota", lambda: "exceeded quota: small" in kubectl("events"), 30, 0.2)


def test_the_audit_log_and_rbac_know_a_service_account(
    control_plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    kubectl("create", "serviceaccount", "reader")
    kubeconfig = control_plane.kubeconfig_for_service_account(namespace, "reader")
    with pytest.raises(DevClusterError, match="forbidden"):
        kubectl("get", "configmaps", kubeconfig=kubeconfig)
    kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader")

    def may_list() -> bool:
        try:
            return bool(kubectl("get", "configmaps", kubeconfig=kubeconfig) or True)
        except DevClusterError:
            return False

    wait_for("the Role works", may_list, 10)
    entries = control_plane.audit(f"system:serviceaccount:{namespace}:reader")
    seen = {(e["verb"], e["objectRef"]["resource"], e["responseStatus"]["code"]) for e in entries if "objectRef" in e}
    assert {("list", "configmaps", 403), ("list", "configmaps", 200)} <= seen


def test_blocking_an_owners_deletion_takes_the_right_to_its_finalizers(
    control_plane: ControlPlane, kubectl: Kubectl, create: Callable[..., str], namespace: str
) -> None:
    kubectl("create", "serviceaccount", "maker")
    kubectl("create", "role", "maker", "--verb=create", "--resource=configmaps")
    kubectl("create", "rolebinding", "maker", "--role=maker", f"--serviceaccount={namespace}:maker")
    create({**pytorchjob("owner"), "spec": {**pytorchjob("owner")["spec"], "runPolicy": {"suspend": True}}})
    uid = json.loads(kubectl("get", "pytorchjob", "owner", "--output=json"))["metadata"]["uid"]
    reference = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "owner", "uid": uid}
    metadata = {"name": "child", "ownerReferences": [{**reference, "blockOwnerDeletion": True}]}
    child = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    kubeconfig = control_plane.kubeconfig_for_service_account(namespace, "maker")
    with pytest.raises(DevClusterError, match="cannot set blockOwnerDeletion"):
        kubectl("create", "--filename=-", stdin=child, kubeconfig=kubeconfig)


def test_a_user_with_a_certificate_has_its_groups(control_plane: ControlPlane) -> None:
    kubeconfig = control_plane.kubeconfig_for("someone", ["team-a"])
    who = json.loads(control_plane.kubectl("auth", "whoami", "--output=json", kubeconfig=kubeconfig))
    assert who["status"]["userInfo"]["username"] == "someone"
    assert "team-a" in who["status"]["userInfo"]["groups"]


def test_every_part_may_be_killed_and_started_again(second_control_plane: ControlPlane) -> None:
    plane = second_control_plane
    plane.kubectl("create", "configmap", "kept")
    with plane.without("kube-controller-manager"):
        pass  # what was restarted before is no reason to start it last
    with FakeNode(plane.kubeconfig) as node:
        parts = list(plane.pids)
        assert parts == ["etcd", "kube-apiserver", "kube-controller-manager", "training-operator"]
        plane.stop(*parts)
        for part in parts:
            plane.start(part)
        assert "kept" in plane.kubectl("get", "configmaps")
        plane.kubectl("create", "--filename=-", stdin=json.dumps(pytorchjob("after", workers=1)))
        node.wait_for_pods(1, "after")
        plane.kubectl("delete", "pytorchjob", "after", "--wait=false")
        node.wait_for_pods(0, "after")


def test_a_part_that_does_not_start_is_named_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["sh", "-c", "echo the disk is full; exit 3"]
    monkeypatch.setattr(controlplane_commands, "etcd", lambda *_: command)
    plane = ControlPlane()
    with pytest.raises(
        DevClusterError, match=r"etcd ended with exit code 3; .*etcd.log ends with:\nthe disk is full"
    ) as failure:
        plane.__enter__()
    assert failure.value.__notes__ == [f"The logs of the control plane are kept in {plane.logs}"]
    assert (plane.logs / "etcd.log").read_text() == "the disk is full\n"
    shutil.rmtree(plane.folder)


def test_nothing_is_left_of_a_control_plane() -> None:
    with ControlPlane() as plane:
        folder = plane.folder
        assert len(processes_of(str(folder))) == 4
    assert processes_of(str(folder)) == []
    assert not folder.exists()


def test_no_process_outlives_a_killed_test_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "hack"), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as holder:
        assert holder.stdout
        folder = holder.stdout.readline().strip()
        assert len(processes_of(folder)) == 4
        holder.send_signal(signal.SIGKILL)
    wait_for("all processes have ended", lambda: not processes_of(folder), 10)
    shutil.rmtree(folder)
