"""Why a job waits, in the words of a real scheduler, volume controller and kubelet."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

SECONDS = 120
TAINT = "trl-operator.io/e2e=yes:NoSchedule"
MANIFEST = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
SHARED = {"storage": {"claimName": "shared"}}
WAITS = {
    "gpus": (
        {**SHARED, "resources": {"limits": {"nvidia.com/gpu": 8}}},
        "Unschedulable",
        "needs nvidia.com/gpu 8: 0/1 nodes",
    ),
    "selective": (
        {**SHARED, "nodeSelector": {"pool": "h100"}},
        "Unschedulable",
        "needs pool=h100 (nodeSelector): 0/1 nodes",
    ),
    "unbound": (
        {"storage": {"size": "7Gi", "storageClassName": "fast"}},
        "VolumeNotBound",
        "PersistentVolumeClaim unbound-dpo (7Gi, storageClassName: fast) is Pending",
    ),
    "unmounted": ({"storage": {"claimName": "broken"}}, "VolumeMountFailed", "(PersistentVolumeClaim broken)"),
    "unpulled": ({**SHARED, "image": "localhost/nowhere:1"}, "ImagePullFailed", "localhost/nowhere:1"),
    "secretless": (
        {**SHARED, "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]},
        "SecretNotFound",
        'secret "hub" not found',
    ),
}
TAINTED = {"tainted": (SHARED, "Unschedulable", "needs a toleration (tolerations: none): 0/1 nodes")}


def job(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    rows = [{"prompt": "Where is it?", "chosen": "I will look at once.", "rejected": "no idea"}] * 4
    base = {"model": {"hub": {"repo": "org/base"}}, "dataset": {"train": {"inline": rows}}}
    head = {"apiVersion": "trl-operator.io/v1alpha1", "kind": "DPOJob", "metadata": {"name": name}}
    return {**head, "spec": {**base, **spec}}


@pytest.fixture
def broken_volume(kubectl: Any, namespace: str) -> Iterator[list[dict[str, Any]]]:
    """Claims: one that is sound, and one whose volume is a folder that is not there."""
    modes = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "hostPath": {"path": "/var/lib/no-such-folder", "type": "Directory"},
        "claimRef": {"namespace": namespace, "name": "broken"},
        "storageClassName": "",
    }
    kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": spec})
    bound = {**modes, "storageClassName": "", "volumeName": namespace}
    yield [
        {**MANIFEST, "metadata": {"name": "broken"}, "spec": bound},
        {**MANIFEST, "metadata": {"name": "shared"}, "spec": modes},
    ]
    kubectl("delete", "persistentvolume", namespace, "--wait=false")


@pytest.fixture
def told(kubectl: Any, namespace: str) -> Callable[[dict[str, Any]], None]:
    """Applies jobs and waits until each tells why it waits."""

    def wait(wanted: dict[str, Any]) -> None:
        kubectl.apply(*(job(name, spec) for name, (spec, _, _) in wanted.items()), namespace=namespace)
        deadline = time.monotonic() + SECONDS
        while True:
            found = kubectl.get(f"--namespace={namespace}", "dpojobs")["items"]
            waiting = {obj["metadata"]["name"]: obj.get("status", {}).get("waiting", {}) for obj in found}
            missing = {
                name: waiting.get(name)
                for name, (_, reason, words) in wanted.items()
                if waiting[name].get("reason") != reason or words not in waiting[name]["message"]
            }
            if not missing:
                return
            assert time.monotonic() < deadline, missing
            time.sleep(0.5)

    return wait


def test_what_scheduler_volumes_and_kubelet_say_is_told(
    kubectl: Any, operator: None, namespace: str, broken_volume: list[dict[str, Any]], told: Callable[..., None]
) -> None:
    kubectl.apply(*broken_volume, namespace=namespace)
    told(WAITS)
    shown = kubectl("get", f"--namespace={namespace}", "dpojobs", "--output=wide")
    print(shown)
    for _, reason, words in WAITS.values():
        assert reason in shown
        assert words in shown
    kubectl("taint", "nodes", "--all", TAINT)
    try:
        told(TAINTED)
    finally:
        kubectl("taint", "nodes", "--all", f"{TAINT}-")
