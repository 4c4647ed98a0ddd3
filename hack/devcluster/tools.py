"""The binaries that the cluster consists of, built from pinned Go modules and cached by what they are built from."""

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from devcluster import golang, mounts, paths, process
from devcluster.errors import DevClusterError
from devcluster.locks import exclusive

FLAGS = ("-trimpath", "-mod=readonly", "-buildvcs=false")
# A machine has other work too.
POLITELY = (*process.DIES_WITH_US, "nice", "-n", "5")
HEARTBEAT = 20  # seconds between two lines of progress


@dataclass(frozen=True)
class Tool:
    """One binary: the folder under hack/tools that pins it and the Go package it is the main package of.

    `manifests` is a folder of the module `source` that is kept beside the binary.
    """

    pin: str
    package: str
    source: str = ""
    manifests: str = ""


TOOLS = {
    "pause": Tool("pause", "."),
    "etcd": Tool("etcd", "go.etcd.io/etcd/server/v3"),
    **{
        name: Tool("kubernetes", f"k8s.io/kubernetes/cmd/{name}")
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
    },
    "coredns": Tool("coredns", "."),
    "training-operator": Tool(
        "training-operator",
        "github.com/kubeflow/training-operator/cmd/training-operator.v1",
        "github.com/kubeflow/training-operator",
        "manifests",
    ),
    "jobset": Tool("jobset", "sigs.k8s.io/jobset", "sigs.k8s.io/jobset", "config"),
    "trainer": Tool(
        "trainer",
        "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",
        "github.com/kubeflow/trainer/v2",
        "manifests",
    ),
    "kueue": Tool("kueue", "sigs.k8s.io/kueue/cmd/kueue", "sigs.k8s.io/kueue", "config"),
    "local-path-provisioner": Tool(
        "local-path-provisioner",
        "github.com/rancher/local-path-provisioner",
        "github.com/rancher/local-path-provisioner",
        "deploy",
    ),
    "helm": Tool("helm", "helm.sh/helm/v3/cmd/helm"),
    "buildkitd": Tool("buildkit", "github.com/moby/buildkit/cmd/buildkitd"),
    "buildctl": Tool("buildkit", "github.com/moby/buildkit/cmd/buildctl"),
}


def binary(name: str) -> Path:
    """The path of the tool's binary, which is built if the cache has none made from the same pins."""
    ensure([name])
    return _path(name)


def manifests(name: str) -> Path:
    """The folder of Kubernetes manifests that the tool's own module ships."""
    ensure([name])
    return _path(name).parent / TOOLS[name].manifests


def missing(names: Iterable[str]) -> list[str]:
    """Those of the tools that would have to be built."""
    return [name for name in names if not _path(name).exists()]


def ensure(names: Iterable[str]) -> None:
    """All the named tools are built. Prints which one is being built, how many are left and the time passed."""
    if not (todo := missing(names)):
        return
    start = time.monotonic()
    # One build at a time on the whole machine: two would only share the same cores.
    with exclusive(paths.BIN / ".lock", "tools: waiting for another process that builds"):
        mounts.remove(golang.SCRATCH)
        golang.SCRATCH.mkdir(parents=True)
        for index, name in enumerate(todo):
            if not _path(name).exists():
                _build(name, f"{name} ({index + 1} of {len(todo)}, {len(todo) - index - 1} left)", start)
        if not missing(TOOLS):
            # 10 GB of sources and compiled packages, which nothing needs until a pin changes.
            for folder in (golang.MODULES, golang.BUILDS, golang.SCRATCH):
                mounts.remove(folder)


def version(name: str, module: str) -> str:
    """The version at which hack/tools pins `module`, e.g. "v1.36.5"."""
    found = re.findall(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", _pin(name).joinpath("go.mod").read_text(), re.M)
    assert len(found) == 1, f"hack/tools/{TOOLS[name].pin}/go.mod requires {module} once"
    return str(found[0])


def _build(name: str, part: str, start: float) -> None:
    tool, target = TOOLS[name], _path(name)
    go = golang.installed()
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: the build of a killed predecessor may write to its file for a moment yet.
    temporary = target.with_name(f".{name}.{os.getpid()}.new")
    for old in target.parent.glob(f".{name}.*.new"):
        old.unlink()
    build: list[str | Path] = [go, "build", *FLAGS, "-ldflags", _ldflags(name), "-o", temporary, tool.package]
    _run([*POLITELY, *build], _pin(name), part, start)
    if tool.manifests:
        _keep_manifests(go, name)
    temporary.rename(target)


def _run(command: list[str | Path], folder: Path, part: str, start: float) -> None:
    """Runs one build to its end, with a line of progress now and then."""
    with subprocess.Popen(command, cwd=folder, env=golang.environment(), stderr=subprocess.PIPE, text=True) as child:
        while True:
            print(f"tools: building {part}, {_clock(start)} elapsed", flush=True)
            try:
                _, errors = child.communicate(timeout=HEARTBEAT)
                break
            except subprocess.TimeoutExpired:
                continue
            except BaseException:
                child.kill()
                raise
    if child.returncode:
        raise DevClusterError(f"building {part} failed ({' '.join(map(str, command))} in {folder}):\n{errors[-4000:]}")


def _keep_manifests(go: Path, name: str) -> None:
    """Copies the manifests out of the module cache, which a second run then does not need."""
    tool = TOOLS[name]
    listed = subprocess.run(
        [go, "list", "-m", "-f", "{{.Dir}}", tool.source],
        cwd=_pin(name),
        env=golang.environment(),
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    kept = _path(name).parent / tool.manifests
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(Path(listed) / tool.manifests, kept)


def _ldflags(name: str) -> str:
    stamps = ""
    if TOOLS[name].pin == "kubernetes":
        number = version(name, "k8s.io/kubernetes")
        major, minor, _ = number.removeprefix("v").split(".")
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            stamps += f" -X {package}.gitVersion={number} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    return f"-s -w{stamps}"


def _pin(name: str) -> Path:
    return paths.TOOLS / TOOLS[name].pin


@cache
def _path(name: str) -> Path:
    """Where the binary is or will be: the folder's name is a hash of everything that decides the binary's bytes."""
    digest = hashlib.sha256()
    for file in sorted(_pin(name).iterdir()):
        if file.name in ("go.mod", "go.sum") or file.suffix == ".go":
            digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    digest.update("\0".join([golang.toolchain().version, *FLAGS, _ldflags(name), "CGO_ENABLED=0"]).encode())
    return paths.BIN / f"{TOOLS[name].pin}-{digest.hexdigest()[:16]}" / name


def _clock(start: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    return f"{minutes}:{seconds:02d}"
