"""What runs of the cluster and how it fares."""

from pathlib import Path

from devcluster import cluster, kube, paths, process
from devcluster.errors import DevClusterError
from devcluster.layout import NODE


def show() -> bool:
    """Prints a line for every process, then the node and the addons; True if all of it is well."""
    found = {name: process.running(name, paths.RUN) for name in cluster.COMMANDS}
    for name, running in found.items():
        print(f"{name:24} {f'running, pid {running.pid}, {_memory(running.pid)} MB' if running else 'not running'}")
    if not all(found.values()):
        print("bring it up with: make cluster-up" if not any(found.values()) else "mend it with: make cluster-up")
        return False
    conditions = [
        _condition(NODE, "node", NODE, "Ready"),
        _condition("training-operator", "--namespace=kubeflow", "deployment", "training-operator", "Available"),
        _condition(
            "default StorageClass",
            "--namespace=local-path-storage",
            "deployment",
            "local-path-provisioner",
            "Available",
        ),
    ]
    print(f"{'kubeconfig':24} {paths.KUBECONFIG}")
    return all(conditions)


def _condition(label: str, *words: str) -> bool:
    *target, kind = words
    path = f'jsonpath={{.status.conditions[?(@.type=="{kind}")].status}}'
    try:
        well = kube.kubectl("get", *target, "--request-timeout=10s", "--output", path) == "True"
    except DevClusterError as error:
        print(f"{label:24} unknown: {error}")
        return False
    print(f"{label:24} {kind if well else f'not {kind}'}")
    return well


def _memory(pid: int) -> int:
    """Resident memory in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 // 10**6
