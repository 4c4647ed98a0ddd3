"""The dev cluster may be killed at any point and comes back, and goes without a trace. Takes the cluster away."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster import cgroups, cluster, mounts, network, paths, process, stale, sysctls
from devcluster.layout import BRIDGE, CGROUP
from devcluster.waiting import wait_for

pytestmark = pytest.mark.skipif(bool(os.environ.get("CLUSTER")), reason="is about the dev cluster only")


@pytest.fixture
def pods(kubectl: Any, busybox: str) -> Iterator[None]:
    """A Deployment that writes to a claim behind a Service, so that every kind of trace is there."""
    labels = {"app": "lifecycle"}
    container = {
        "name": "main",
        "image": busybox,
        "command": ["sh", "-c", "touch /data/written; sleep 3600"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "lifecycle"}}]
    pod = {"terminationGracePeriodSeconds": 0, "containers": [container], "volumes": volumes}
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}}
    service = {"selector": labels, "ports": [{"port": 80}]}
    meta = {"name": "lifecycle", "namespace": "default"}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec},
    )
    kubectl.wait("condition=Available", "--namespace=default", "deployment/lifecycle")
    yield
    if cluster.complete():
        kubectl("delete", "--namespace=default", "deployment,service,pvc", "lifecycle", "--ignore-not-found")


def devcluster(*arguments: str) -> str:
    """What the command line prints."""
    return process.run(sys.executable, "-m", "devcluster", *arguments)


@pytest.fixture(autouse=True)
def _pythonpath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(paths.REPOSITORY / "hack"))


def kill_everything() -> None:
    """SIGKILL to every process and shim; what they held (mounts, interfaces, pods' processes) stays behind."""
    found = process.marked(paths.RUN)
    commands = [process.command_of(one.pid) for one in found]
    assert any("containerd-shim" in command for command in commands), commands
    assert len(found) > len(cluster.COMMANDS)
    process.end(found, grace=0)
    assert mounts.below(paths.RUN, paths.STATE), "the kill was not the clean end that would make this test worthless"


def test_a_second_up_leaves_every_process_of_a_running_cluster_alone(kubectl: Any) -> None:
    before = [running(name) for name in cluster.COMMANDS]
    assert None not in before
    devcluster("up")
    assert [running(name) for name in cluster.COMMANDS] == before


def test_status_names_every_process_and_addon_and_fails_unless_all_are_well(kubectl: Any) -> None:
    lines = {line.split("  ")[0]: line for line in devcluster("status").splitlines()}
    for name in cluster.COMMANDS:
        found = running(name)
        assert found is not None
        assert f"running, pid {found.pid}, " in lines[name]
    assert lines["node-0"].endswith(" Ready")
    assert lines["training-operator"].endswith(" Available")
    assert lines["default StorageClass"].endswith(" Available")
    assert lines["kubeconfig"].endswith(f" {paths.KUBECONFIG}")
    process.stop("kube-scheduler", paths.RUN)
    command = [sys.executable, "-m", "devcluster", "status"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"^kube-scheduler +not running$", done.stdout, re.M)
    assert "mend it with: make cluster-up" in done.stdout
    devcluster("up")


def test_logs_end_every_components_log_or_the_one_that_is_named(kubectl: Any) -> None:
    said = devcluster("logs")
    assert [name for name in cluster.COMMANDS if f"==> {paths.LOGS}/{name}.log <==" not in said] == []
    one = devcluster("logs", "kubelet", "--lines=3").splitlines()
    assert len(one) == 3
    assert not [line for line in one if line.startswith("==>")]


def running(name: str) -> process.Process | None:
    return process.running(name, paths.RUN)


def test_after_every_process_was_killed_the_cluster_comes_back_with_its_objects_and_pods(
    kubectl: Any, pods: None
) -> None:
    before = kubectl.get("--namespace=default", "pvc/lifecycle")["metadata"]["uid"]
    kill_everything()
    assert not tried(kubectl, "get", "--raw=/readyz", "--request-timeout=2s")
    devcluster("up")
    assert kubectl.get("--namespace=default", "pvc/lifecycle")["metadata"]["uid"] == before
    listing = ("exec", "--namespace=default", "deployment/lifecycle", "--", "ls", "/data")
    wait_for("a pod runs again, with the claim's data", lambda: "written" in tried(kubectl, *listing), 180, interval=1)


def tried(kubectl: Any, *arguments: str) -> str:
    """What kubectl prints, or nothing when it fails."""
    try:
        return str(kubectl(*arguments))
    except AssertionError:
        return ""


def test_an_etcd_that_does_not_start_is_replaced_by_a_new_one(kubectl: Any) -> None:
    kill_everything()
    for wal in paths.ETCD.glob("member/wal/*.wal"):
        wal.write_bytes(b"not a write-ahead log")
    assert "the cluster starts anew" in devcluster("up")
    assert kubectl("get", "nodes", "--output=name").split() == ["node/node-0"]


def test_an_up_that_was_killed_at_any_stage_is_followed_by_one_that_works(kubectl: Any) -> None:
    devcluster("down")
    # In the order in which they are started: each kill is at a later stage, over the remains of the earlier ones.
    for stage in ("etcd", "containerd", "kube-scheduler", "kubelet"):
        killed = subprocess.Popen([sys.executable, "-m", "devcluster", "up"], stdout=subprocess.DEVNULL)
        wait_for(f"up starts {stage}", lambda stage=stage: process.running(stage, paths.RUN) is not None, 120, 0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert not cluster.complete() or stage == "kubelet"
    devcluster("up")
    kubectl.wait("condition=Ready", "node/node-0", timeout=10)


def traces() -> dict[str, set[str]]:
    """Everything on the host that a cluster might leave behind, by kind."""
    rules = [process.run(f"{family}-save") for family in ("iptables", "ip6tables")]
    folders = (stale.SHIM_SOCKETS, stale.DEVICE_PLUGINS, stale.LOG_LINKS, network.CNI_RESULTS, Path("/run/netns"))
    processes = [process.command_of(int(folder.name)) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return {
        "processes": {command for command in processes if "trl-cluster" in command and "devcluster" not in command},
        "mounts": set(mounts.below(Path("/"))),
        "interfaces": {interface.name for interface in Path("/sys/class/net").iterdir()},
        "rules": {line for text in rules for line in text.splitlines() if line.startswith("-A")},
        "chains": {line.split()[0] for text in rules for line in text.splitlines() if line.startswith(":")},
        "cgroups": {str(h / name) for h in cgroups.hierarchies() for name in os.listdir(h)},
        "files": {str(file) for folder in folders for file in folder.glob("*")},
        "run": {str(paths.RUN)} if paths.RUN.exists() else set(),
        "sysctls": {f"{name}={sysctls.read(name)}" for name in sysctls.NAMES if (sysctls.ROOT / name).exists()},
        "network namespaces": set(process.run("lsns", "--type=net", "--noheadings", "--output=NS").split()),
    }


@pytest.fixture
def unusual_sysctl() -> Iterator[None]:
    """A value of kernel.panic that neither the host nor the kubelet, which sets it to 10, would choose."""
    devcluster("down")
    found = sysctls.read("kernel/panic")
    sysctls.write("kernel/panic", "7")
    yield
    sysctls.write("kernel/panic", found)


def test_down_leaves_the_host_as_it_was_before_up(request: pytest.FixtureRequest, unusual_sysctl: None) -> None:
    before = traces()
    devcluster("up")
    request.getfixturevalue("pods")
    during = traces()
    # Else the comparison would prove nothing.
    unchanged = {kind for kind in before if not during[kind] - before[kind]}
    assert not unchanged, f"a running cluster shows in none of: {unchanged}"
    devcluster("down")
    assert traces() == before
    # Also what two downs would leave alike.
    assert BRIDGE not in before["interfaces"]
    assert not [cgroup for cgroup in before["cgroups"] if cgroup.endswith(f"/{CGROUP}")]
    assert not [chain for chain in before["chains"] if re.match(r":(KUBE|CNI)-", chain)]
    assert not mounts.below(paths.RUN, paths.STATE)
    assert not process.marked(paths.RUN)
    assert {left.name for left in paths.STATE.iterdir()} <= {"buildkit", "containerd", "images.lock", "lock"}
