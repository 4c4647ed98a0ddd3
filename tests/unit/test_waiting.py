"""Why an attempt does not run: what scheduler, kubelet and volume controllers say becomes a reason with names and
numbers."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from trl_contract.cluster import ClusterSpec
from trl_operator.api.stored import read_status, written
from trl_operator.constants import LABEL_JOB_UID
from trl_operator.plan.observation import Key
from trl_operator.plan.starting import waiting_reason
from trl_operator.plan.view import Told, Unbound, View
from trl_operator.status.conditions import set_condition
from trl_operator.store.needs import Needs
from trl_operator.store.store import Store

Make = Callable[..., Any]
KEY: Key = ("DPOJob", "team", "tune")
ASKED = {
    "storage": {"size": "1Gi"},
    "resources": {"limits": {"nvidia.com/gpu": 8, "cpu": 4}, "requests": {"cpu": "500m"}},
    "onePodPerNode": True,
    "pod": {"affinity": {"nodeAffinity": {}}},
}
PODS_ASK = {
    "nodeSelector": {"pool": "h100"},
    "tolerations": [
        {"key": "team", "operator": "Exists"},
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300},
    ],
}
"""Whatever the spec says itself: of jobDefaults, or of a flavor of Kueue."""
HELPS_NOT = " preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
POD = "pod tune-dpo-0-worker-0"
NOWHERE = "0/3 nodes are available"
MOUNT = 'MountVolume.SetUp failed for volume "pod-2" : '


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition], "containerStatuses": []}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            f"0/3 nodes are available: 1 Insufficient cpu, 3 Insufficient nvidia.com/gpu.{HELPS_NOT}",
            f"{POD} needs nvidia.com/gpu 8 and cpu 500m:"
            " 0/3 nodes are available: 1 Insufficient cpu, 3 Insufficient nvidia.com/gpu",
        ),
        # Up to Kubernetes 1.35, and since 1.36.
        (
            f"0/3 nodes are available: 3 node(s) had untolerated taint {{pool: gpu}}. {HELPS_NOT}",
            f"{POD} needs a toleration (tolerations: team):"
            " 0/3 nodes are available: 3 node(s) had untolerated taint {pool: gpu}",
        ),
        (
            f"0/3 nodes are available: 3 node(s) had untolerated taint(s). no new claims to deallocate,{HELPS_NOT}",
            f"{POD} needs a toleration (tolerations: team):"
            " 0/3 nodes are available: 3 node(s) had untolerated taint(s)",
        ),
        (
            f"0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.{HELPS_NOT}",
            f"{POD} needs pool=h100 (nodeSelector) and what pod.affinity.nodeAffinity asks for:"
            " 0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector",
        ),
        (
            f"0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.{HELPS_NOT}",
            f"{POD} needs a node without a pod of this job (onePodPerNode):"
            " 0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules",
        ),
        (
            f"{NOWHERE}: 3 node(s) didn't satisfy existing pods anti-affinity rules.{HELPS_NOT}",
            f"{POD}: {NOWHERE}: 3 node(s) didn't satisfy existing pods anti-affinity rules",
        ),
        ("no nodes available to schedule pods", f"{POD}: no nodes available to schedule pods"),
    ],
)
def test_what_the_scheduler_finds_no_node_for_is_told_with_what_was_asked(
    make_pod: Make, words: str, message: str
) -> None:
    cluster = ClusterSpec.model_validate(ASKED)
    asks = {**unscheduled(words), "asks": PODS_ASK}
    one = View(pods=(make_pod(0, **asks), make_pod(1)))
    assert waiting_reason(cluster, one) == ("Unschedulable", message)
    two = View(pods=(make_pod(1, **unscheduled("0/3 nodes are available: another")), make_pod(0, **asks)))
    assert waiting_reason(cluster, two) == ("Unschedulable", message.replace(POD, f"{POD} and others"))


PENDING = "PersistentVolumeClaim data (1Gi, storageClassName: fast) is Pending"
WAITS, FAILS = Unbound(PENDING), Unbound(PENDING, "no such class")
IMMEDIATE = unscheduled(f"{NOWHERE}: pod has unbound immediate PersistentVolumeClaims.{HELPS_NOT}")
UNTOLD = unscheduled("")
GONE = unscheduled(f'{NOWHERE}: persistentvolumeclaim "data" not found.{HELPS_NOT}')
FULL = unscheduled(f"{NOWHERE}: 3 Insufficient cpu.")
READY = [{"type": "PodReadyToStartContainers", "status": "True"}]


@pytest.mark.parametrize(
    ("pod", "claim", "expected"),
    [
        (IMMEDIATE, WAITS, ("VolumeNotBound", f"{POD} waits for its volume: {PENDING}")),
        (IMMEDIATE, FAILS, ("VolumeNotBound", f"{POD} waits for its volume: {PENDING}: no such class")),
        (UNTOLD, FAILS, ("VolumeNotBound", f"{POD} waits for its volume: {PENDING}: no such class")),
        # It waits for the pod's node, as many classes have it.
        (UNTOLD, WAITS, None),
        (FULL, WAITS, ("Unschedulable", f"{POD} needs cpu 500m: 0/3 nodes are available: 3 Insufficient cpu")),
        (GONE, None, ("PersistentVolumeClaimNotFound", f'{POD}: {NOWHERE}: persistentvolumeclaim "data" not found')),
    ],
)
def test_a_claim_without_a_volume_is_told_when_it_keeps_the_pod_from_a_node(
    make_pod: Make, pod: dict[str, Any], claim: Unbound | None, expected: tuple[str, str] | None
) -> None:
    told = Told(claims={"data": claim} if claim else {})
    view = View(pods=(make_pod(0, **pod, claims=("data",)),), told=told)
    assert waiting_reason(ClusterSpec.model_validate(ASKED), view) == expected


@pytest.mark.parametrize(
    ("pod", "warning", "expected"),
    [
        ({}, ("FailedMount", "exit status 32"), ("VolumeMountFailed", f"{POD}: exit status 32")),
        *[
            (
                {},
                ("FailedMount", f'{MOUNT}{kind} "a" not found'),
                (f"{what}NotFound", f'{POD}: {MOUNT}{kind} "a" not found'),
            )
            for kind, what in (("secret", "Secret"), ("secrets", "Secret"), ("configmap", "ConfigMap"))
        ],
        ({}, ("FailedAttachVolume", "Multi-Attach error"), ("VolumeMountFailed", f"{POD}: Multi-Attach error")),
        ({}, ("FailedCreatePodSandBox", "no address left"), ("PodSandboxFailed", f"{POD}: no address left")),
        # It stays for an hour after the volume is mounted, and an image may take as long.
        ({"conditions": READY}, ("FailedMount", "exit status 32"), None),
        (
            {"waiting": ("ErrImagePull", "pull access denied"), "conditions": READY},
            ("FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (regcred)"),
            ("ImagePullFailed", f"{POD}: pull access denied; Unable to retrieve some image pull secrets (regcred)"),
        ),
        (
            {"waiting": ("CreateContainerConfigError", "image will run as root")},
            None,
            ("CreateContainerConfigError", f"{POD}: image will run as root"),
        ),
        ({"waiting": ("RunContainerError", "no such file")}, None, ("RunContainerError", f"{POD}: no such file")),
        ({}, None, None),
    ],
)
def test_what_events_tell_of_a_pod_that_has_a_node_is_told_while_it_is_in_the_way(
    make_pod: Make, pod: dict[str, Any], warning: tuple[str, str] | None, expected: tuple[str, str] | None
) -> None:
    found = make_pod(0, "Pending", **pod)
    view = View(pods=(found,), told=Told(pods={found.name: warning} if warning else {}))
    assert waiting_reason(ClusterSpec.model_validate(ASKED), view) == expected


@pytest.fixture
def known(child_object: Make, pod_object: Make, job_object: Make) -> tuple[Needs, Store, list[Key], Any, Any]:
    """A store with a job, its PyTorchJob and a pod without a node; what it tells."""
    store, changed = Store(), []
    child = child_object(0)
    child["metadata"]["ownerReferences"] = [{**child["metadata"]["ownerReferences"][0], "uid": "u"}]
    pod = pod_object(0, **IMMEDIATE, claims=("data",))
    pod["metadata"]["labels"][LABEL_JOB_UID] = "u"
    job = job_object()
    store.put_job(
        {**job, "metadata": {**job["metadata"], "uid": "u", "resourceVersion": "1"}, "status": {"attempt": 0}}
    )
    store.put_child(child)
    store.put_pod(pod)
    store.follow(changed.append)
    changed.clear()
    return Needs(store), store, changed, store.children("u", "team")[0], next(iter(store._pods.values()))


def event(version: int, kind: str, uid: str, reason: str, message: str, **about: str) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": f"e{version}", "uid": f"e{version}", "resourceVersion": str(version)}
    said = {"reason": reason, "message": message, "lastTimestamp": f"2026-11-21T11:00:0{version}Z"}
    return {"metadata": metadata, "involvedObject": {"kind": kind, "namespace": "team", "uid": uid, **about}, **said}


def claim(version: int, **status: Any) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": "data", "uid": "claim-uid", "resourceVersion": str(version)}
    spec = {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}
    return {"metadata": metadata, "spec": spec, "status": status}


def test_a_claim_that_gets_no_volume_is_told_with_the_newest_warning_and_wakes_the_job(known: Any) -> None:
    needs, _, changed, child, pod = known
    assert needs.told(KEY, child, [pod], 1) == Told()
    needs.put_claim(claim(2, phase="Pending"))
    assert (changed, needs.told(KEY, child, [pod], 1).claims) == ([KEY], {"data": WAITS})
    needs.put_event(event(3, "PersistentVolumeClaim", "claim-uid", "ProvisioningFailed", "no such class", name="data"))
    needs.put_event(event(4, "PersistentVolumeClaim", "claim-uid", "Other", "of no interest", name="data"))
    assert changed == [KEY] * 2
    assert needs.told(KEY, child, [pod], 1).claims == {"data": FAILS}
    needs.put_claim(claim(5, phase="Bound"))
    assert (changed, needs.told(KEY, child, [pod], 1)) == ([KEY] * 3, Told())


def test_a_warning_about_a_pod_wakes_its_job_and_only_such_as_tell_more_than_its_status_are_kept(known: Any) -> None:
    needs, _, changed, child, pod = known
    needs.put_event(event(2, "Pod", pod.uid, "Unhealthy", "of no interest"))
    needs.put_event(event(3, "Pod", "another", "FailedMount", "of another pod"))
    assert changed == []
    needs.put_event(event(4, "Pod", pod.uid, "FailedMount", "an old one"))
    needs.put_event(event(5, "Pod", pod.uid, "FailedMount", 'volume "claim-0" and volume "pv-7"'))
    assert changed == [KEY] * 2
    needs.put_claim({**claim(1, phase="Bound"), "spec": {"volumeName": "pv-7"}})
    named = 'volume "claim-0" (PersistentVolumeClaim data) and volume "pv-7" (PersistentVolumeClaim data)'
    assert needs.told(KEY, child, [pod], 1).pods == {pod.name: ("FailedMount", named)}
    needs.put_event(event(6, "PyTorchJob", child.uid, "FailedCreatePod", "exceeded quota", name=child.name))
    assert needs.told(KEY, child, [pod], 2).denials == ("exceeded quota",)
    assert needs.told(KEY, child, [pod], 1).denials == (), "all its pods are there"


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({}, None),
        ({"Accepted": "True", "Running": "False"}, "RunningFalse"),
        ({"Accepted": "False", "Running": "False"}, "AcceptedFalse"),
        ({"Accepted": "Unknown"}, "AcceptedUnknown"),
        ({"Accepted": "True", "UpstreamReady": "False"}, "UpstreamReadyFalse"),
        ({"Accepted": "True", "Suspended": "True"}, "SuspendedTrue"),
        ({"Accepted": "True", "Running": "True", "Stalled": "Unknown", "Suspended": "False"}, None),
    ],
)
def test_a_job_that_does_not_run_shows_the_condition_that_says_why(
    now: datetime, conditions: dict[str, Any], reason: str | None
) -> None:
    status = read_status({})
    for kind, value in conditions.items():
        set_condition(status, kind, value, kind + value, f"{kind} is {value}", generation=1, now=now)
    assert written(status).get("waiting", {}).get("reason") == reason
    status.completion_time = "2026-11-21T11:00:00Z"
    assert "waiting" not in written(status)
