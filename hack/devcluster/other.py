"""Clusters that are not ours: CLUSTER=current is the kubeconfig's own, CLUSTER=kind one made by kind."""

import os
import shutil
import subprocess
from pathlib import Path

from devcluster import paths, tools
from devcluster.errors import DevClusterError
from devcluster.process import run

NAMES = ("current", "kind")
KIND = "trl-operator"  # kind's name for the cluster
OPERATOR = "github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref={version}"


def kubeconfig(name: str) -> Path:
    """The kubeconfig that reaches the cluster."""
    if name == "kind":
        return paths.CACHE / "kind.kubeconfig"
    named = [path for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    return Path(named[0]) if named else Path.home() / ".kube" / "config"


def up(name: str) -> None:
    """The cluster can run our jobs. Makes a kind cluster if there is none; into a current one nothing is installed."""
    if name == "kind":
        _create()
    for arguments, what, remedy in _needs():
        if not _succeeds(name, *arguments):
            raise DevClusterError(f"{kubeconfig(name)}: {what}; {remedy}")
    print(f"cluster: {kubeconfig(name)} reaches a cluster with what the jobs need")


def down(name: str) -> None:
    """The kind cluster is deleted; a current one is left alone."""
    if name == "kind":
        run(_kind(), "delete", "cluster", f"--name={KIND}")
        kubeconfig(name).unlink(missing_ok=True)


def _needs() -> list[tuple[list[str], str, str]]:
    """kubectl arguments that must succeed, what it means when they do not, and the remedy."""
    return [
        (["get", "--raw=/readyz"], "its cluster does not answer", "point KUBECONFIG at one that does"),
        (
            ["get", "crd", "pytorchjobs.kubeflow.org"],
            "the training-operator is not installed",
            f"install it with: kubectl apply --server-side -k '{_operator()}'",
        ),
        (
            ["wait", "--for=condition=Available", "--timeout=180s", "-n", "kubeflow", "deployment/training-operator"],
            "the training-operator in the namespace kubeflow is not Available",
            "see: kubectl -n kubeflow describe deployment training-operator",
        ),
    ]


def _create() -> None:
    if KIND not in run(_kind(), "get", "clusters").split():
        run(_kind(), "create", "cluster", f"--name={KIND}", f"--kubeconfig={kubeconfig('kind')}", "--wait=180s")
    run(_kubectl(), f"--kubeconfig={kubeconfig('kind')}", "apply", "--server-side", "-k", _operator())


def _succeeds(name: str, *arguments: str) -> bool:
    command = [_kubectl(), f"--kubeconfig={kubeconfig(name)}", "--request-timeout=10s", *arguments]
    return subprocess.run(command, capture_output=True).returncode == 0


def _operator() -> str:
    return OPERATOR.format(version=tools.version("training-operator", "github.com/kubeflow/training-operator"))


def _kind() -> str:
    if found := shutil.which("kind"):
        return found
    raise DevClusterError("CLUSTER=kind needs kind, and Docker or Podman, on the PATH; leave CLUSTER out to do without")


def _kubectl() -> str:
    return shutil.which("kubectl") or str(tools.binary("kubectl"))
