"""The cluster that the tests of this folder run on: the dev cluster, or the one that CLUSTER names."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from devcluster import addons, engines, images, other, paths, release, tools
from devcluster.cluster import complete

sys.path.insert(0, str(Path(__file__).parent))

import jobs

HACK = Path(__file__).parents[2] / "hack"
SCRIPTS = [Path(__file__).with_name(name) for name in ("tiny.py", "distances.py")]
DISRUPTIVE = "test_cluster_lifecycle.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What kills the cluster or takes it away runs after everything else."""
    items.sort(key=lambda item: item.path.name == DISRUPTIVE)


def devcluster(*arguments: str) -> None:
    """Runs the command line `python -m devcluster`; raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "devcluster", *arguments]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(HACK)})


class Kubectl:
    """kubectl as the cluster's administrator."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl prints; fails the test with its errors when it fails."""
        command = [str(tools.binary("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        environment = {**os.environ, "KUBECACHEDIR": str(paths.CACHE / "kubectl")}
        done = subprocess.run(command, env=environment, input=given, capture_output=True, text=True)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *objects: dict[str, Any], namespace: str | None = None) -> None:
        """Server-side applies the objects."""
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        within = [f"--namespace={namespace}"] if namespace else []
        self("apply", "--server-side", *within, "--filename=-", given=given)

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, as `kubectl get` gives it."""
        found: dict[str, Any] = json.loads(self("get", "--output=json", *arguments))
        return found

    def wait(self, condition: str, *arguments: str, timeout: float = 180) -> None:
        """The objects exist and `kubectl wait --for=CONDITION` holds for them within `timeout` seconds each."""
        self("wait", "--for=create", f"--timeout={timeout:.0f}s", *arguments)
        self("wait", f"--for={condition}", f"--timeout={timeout:.0f}s", *arguments)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """The cluster is up with a default StorageClass and the training-operator.

    It is left as it was found: up, or taken away again unless KEEP_CLUSTER=1.
    """
    was_up = bool(os.environ.get("CLUSTER")) or complete()
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        devcluster("up", "--yes")
    yield
    if was_up:
        devcluster("up", "--yes")
    elif os.environ.get("KEEP_CLUSTER") != "1":
        devcluster("down")


@pytest.fixture(scope="session")
def kubectl(cluster: None) -> Kubectl:
    """kubectl against the cluster."""
    name = os.environ.get("CLUSTER")
    return Kubectl(other.kubeconfig(name) if name else paths.KUBECONFIG)


@pytest.fixture(scope="session")
def trainer_image(cluster: None) -> str:
    """The name of the trainer image of this checkout, which the cluster's nodes have or find."""
    if not os.environ.get("CLUSTER"):
        images.build("trainer")
    return release.reference("trainer")


@pytest.fixture(scope="session")
def operator(kubectl: Kubectl, trainer_image: str) -> None:
    """The operator of this checkout runs, installed by its chart."""
    if not os.environ.get("CLUSTER"):
        images.build("operator")
    release.install(kubectl.kubeconfig, otherBackends="{trainjob}", **{"kueue.enabled": "true"})


@pytest.fixture(scope="session")
def trainer(kubectl: Kubectl) -> Iterator[None]:
    """JobSet and Kubeflow Trainer run in the cluster."""
    yield from _engines(kubectl, "jobset", "trainer")


@pytest.fixture(scope="session")
def kueue(kubectl: Kubectl, trainer: None) -> Iterator[None]:
    """Kueue runs as well, for PyTorchJobs and TrainJobs."""
    yield from _engines(kubectl, "kueue")


def _engines(kubectl: Kubectl, *names: str) -> Iterator[None]:
    if os.environ.get("CLUSTER"):
        for name in names:
            kind = engines.PROBES[name]["kind"]
            assert f" {kind}\n" in kubectl("api-resources"), f"{name} is missing: install it into this cluster"
        yield
    else:
        with engines.installed(*names):
            yield


@pytest.fixture(scope="session")
def status_server(trainer: None) -> None:
    """Trainer runs, in a cluster of ours with the status server that it has behind a feature gate."""
    if not os.environ.get("CLUSTER"):
        engines.install("trainer", featureGates={"TrainJobStatus": True})


@pytest.fixture(scope="session")
def team(kubectl: Kubectl, operator: None, status_server: None, trainer_image: str) -> Iterator[str]:
    """A restricted namespace with a claim that holds a tiny model and rows for every stage."""
    name = "e2e-jobs"
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=180s")
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": restricted}})
    kubectl.wait("jsonpath={.metadata.name}=default", f"--namespace={name}", "serviceaccount/default")
    scripts = {file.name: file.read_text() for file in SCRIPTS}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"}, "data": scripts},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "models"},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        },
        jobs.script("tiny", trainer_image, "/models/tiny"),
        namespace=name,
    )
    kubectl.wait("condition=Complete", f"--namespace={name}", "job/tiny", timeout=jobs.SECONDS)
    yield name
    # A cluster that was taken away meanwhile has taken it along.
    if os.environ.get("CLUSTER") or complete():
        kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="module")
def queue(kubectl: Kubectl, team: str, kueue: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """The LocalQueue `team`, with a quota of so many jobs as the module's QUOTA says; priority classes low and high."""
    *wide, local = jobs.queues(team, f"{250 * request.module.QUOTA}m")
    kubectl.apply(*wide)
    kubectl.apply(local, namespace=team)
    yield "team"
    kubectl("delete", f"--namespace={team}", "localqueue/team")
    kubectl(
        "delete",
        f"clusterqueue/{team}",
        f"resourceflavor/{team}",
        "workloadpriorityclass/low",
        "workloadpriorityclass/high",
    )


@pytest.fixture(scope="session")
def busybox(cluster: None) -> str:
    """The name of a small image with a shell."""
    return "busybox:1.36" if os.environ.get("CLUSTER") else addons.helper_image()


@pytest.fixture(scope="session")
def pids() -> Callable[[str], list[int]]:
    """Gives the processes in whose command line a text occurs."""

    def found(text: str) -> list[int]:
        matching = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if text in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    matching.append(int(folder.name))
        return matching

    return found


@pytest.fixture
def make_namespace(kubectl: Kubectl) -> Iterator[Callable[..., str]]:
    """Makes namespaces, with the labels given, that are deleted after the test."""
    made: list[str] = []

    def make(**labels: str) -> str:
        name = f"e2e-{uuid.uuid4().hex[:8]}"
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        made.append(name)
        kubectl.wait("jsonpath={.metadata.name}=default", f"--namespace={name}", "serviceaccount/default")
        return name

    yield make
    if made:
        kubectl("delete", "namespace", "--wait=false", *made)


@pytest.fixture
def namespace(make_namespace: Callable[..., str]) -> str:
    """A namespace that enforces Pod Security `restricted`, with its default ServiceAccount in place."""
    return make_namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
