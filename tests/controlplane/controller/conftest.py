"""Controller and receiver as processes of their own, under exactly the rights that the chart gives them."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

# Test modules are imported without a package (importlib mode), so what they share needs a place on the path.
sys.path.insert(0, str(Path(__file__).parent))

from chaos import HELD_BACK, World, through
from zygote import Forked, Zygote

from devcluster import tools
from devcluster.controlplane import ControlPlane
from devcluster.fakenode import FakeNode, Pod
from devcluster.faultproxy import FaultProxy
from devcluster.paths import REPOSITORY
from devcluster.waiting import wait_for

CHART = REPOSITORY / "deploy/helm/trl-operator"
RELEASE = "trl-operator"
READY_SECONDS = 60

Obj = dict[str, Any]


def chart(namespace: str, *values: str) -> list[Obj]:
    """What `helm install` would send to the API server."""
    done = subprocess.run(
        [tools.binary("helm"), "template", RELEASE, CHART, f"--namespace={namespace}", "--kube-version=1.36.0"]
        + [f"--set={value}" for value in values],
        capture_output=True,
        text=True,
        check=True,
    )
    return [obj for obj in yaml.safe_load_all(done.stdout) if obj]


class Process:
    """A process of the operator under a ServiceAccount of the chart; it may be killed and started again."""

    MODULE: str
    ACCOUNT: str

    def __init__(self, plane: ControlPlane, namespace: str, identity: str, settings: dict[str, str]) -> None:
        self.plane = plane
        self.namespace = namespace
        self.log = plane.logs / f"{namespace}.{identity}.log"
        self.health_port = _free_port()
        self.settings = {
            "HEALTH_PORT": str(self.health_port),
            "BIND_ADDRESS": "127.0.0.1",
            "WATCH_NAMESPACES": namespace,
            **settings,
        }
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.zygote: Zygote | None = None
        """What it is forked from, if it is not to be started from nothing."""

    @cached_property
    def kubeconfig(self) -> Path:
        """What it talks to the API server with; a test may set another one."""
        return self.plane.kubeconfig_for_service_account(self.namespace, self.ACCOUNT)

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.ACCOUNT}"

    def start(self, wait: bool = True) -> None:
        self.launch()
        if wait:
            wait_for(f"{self.MODULE} is ready", self.is_ready, READY_SECONDS, 0.1)

    def launch(self) -> None:
        """Start the process, whatever is missing."""
        # Nothing of the developer's environment, as in a pod: a variable that is no setting ends the process. Its
        # temporary files go away with the control plane's, also when it is killed.
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(self.plane.folder), "KUBECONFIG": str(self.kubeconfig)}
        environment |= {f"TRL_OPERATOR_{name}": value for name, value in self.settings.items()}
        if self.zygote is not None:
            self.process = self.zygote.start(environment, self.log)
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", sys.executable, "-m", self.MODULE],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"{self.MODULE} ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
        return self.answer("readyz") == 200

    def answer(self, path: str) -> int:
        """The status of /healthz or /readyz; 0 if nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/{path}", timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def leads(self) -> bool:
        return "trl_operator_leader 1.0" in self.metrics().splitlines()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it by SIGTERM; return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=20)


class Receiver(Process):
    """The receiver; `mount` does what a kubelet does with the Secret of its certificate."""

    MODULE = "trl_operator.receiver"
    ACCOUNT = f"{RELEASE}-receiver"

    def __init__(self, plane: ControlPlane, namespace: str, identity: str, port: int, **settings: str) -> None:
        self.port = port
        self.folder = plane.folder / f"{namespace}.{identity}.tls"
        given = {"RECEIVER_PORT": str(port), "TLS_FOLDER": str(self.folder), "PROGRESS_SECONDS": "1", **settings}
        super().__init__(plane, namespace, identity, given)

    def start(self, wait: bool = True) -> None:
        wait_for("the Secret of the certificate holds one", self.mount, READY_SECONDS, 0.1)
        super().start(wait)

    def mount(self) -> bool:
        """The files of the certificate are as the Secret has them; False if it has none."""
        secret = ("get", "secret", f"{RELEASE}-receiver", f"--namespace={self.namespace}")
        text = self.plane.kubectl(*secret, "--ignore-not-found", "--output=json")
        data = json.loads(text).get("data", {}) if text.strip() else {}
        if not {"tls.crt", "tls.key"} <= data.keys():
            return False
        self.folder.mkdir(exist_ok=True)
        for name in ("tls.crt", "tls.key"):
            (self.folder / name).write_bytes(b64decode(data[name]))
        return True


class Operator(Process):
    """The controller. `receiver` takes the reports of its jobs, once it is started too."""

    MODULE = "trl_operator"
    ACCOUNT = RELEASE

    def __init__(self, plane: ControlPlane, namespace: str, identity: str = "operator-0", **settings: str) -> None:
        self.receiver = Receiver(plane, namespace, f"{identity}.receiver", _free_port())
        if "WATCH_NAMESPACES" in settings:
            self.receiver.settings["WATCH_NAMESPACES"] = settings["WATCH_NAMESPACES"]
        given = {
            "NAMESPACE": namespace,
            "IDENTITY": identity,
            "TRAINER_IMAGE": "localhost/trl-trainer:dev",
            "RECEIVER_URL": f"https://127.0.0.1:{self.receiver.port}",
            "SECRET_NAME": f"{RELEASE}-receiver",
            "CA_SECRET_NAME": f"{RELEASE}-receiver-ca",
            "LEASE_NAME": RELEASE,
        }
        super().__init__(plane, namespace, identity, given | settings)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def install(plane: ControlPlane, namespace: str, *values: str) -> None:
    """Apply the chart's ServiceAccount and rights; names that are cluster-wide get the namespace's name too."""
    wanted = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    objects = [obj for obj in chart(namespace, *values) if obj["kind"] in wanted]
    for obj in objects:
        if obj["kind"].startswith("ClusterRole"):
            obj["metadata"]["name"] += f"-{namespace}"
        if obj["kind"] == "ClusterRoleBinding":
            obj["roleRef"]["name"] += f"-{namespace}"
    plane.apply(*objects)


@contextmanager
def ended(operators: list[Operator]) -> Iterator[list[Operator]]:
    """Whatever still runs at the end is killed, and none may have met a bug."""
    yield operators
    processes: list[Process] = [process for operator in operators for process in (operator, operator.receiver)]
    started = [process for process in processes if process.process is not None]
    for each in started:
        if each.process is not None and each.process.poll() is None:
            each.kill()
    for each in started:
        assert "Traceback" not in each.log.read_text(), each.log.read_text()[-8000:]


@pytest.fixture(scope="session")
def operator(request: pytest.FixtureRequest) -> Iterator[Operator]:
    """An operator of the whole cluster with its receiver, which the tests of this folder share."""
    with clusterwide(request.getfixturevalue("control_plane"), "pytorchjob") as made:
        yield made


@contextmanager
def clusterwide(plane: ControlPlane, backend: str) -> Iterator[Operator]:
    """An operator of the whole cluster with its receiver, that runs jobs on this backend."""
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "trl-system"}})
    install(plane, "trl-system", f"backend={backend}")
    with ended([Operator(plane, "trl-system", WATCH_NAMESPACES="", BACKEND=backend)]) as [made]:
        made.start()
        made.receiver.start()
        yield made


@pytest.fixture(scope="session")
def run_clusterwide() -> Callable[..., Any]:
    """`clusterwide(plane, backend)`."""
    return clusterwide


@pytest.fixture
def make_operator(control_plane: ControlPlane, namespace: str, new_operator: Any) -> Callable[..., Operator]:
    """Operators of the test's namespace alone, which may be killed; see alone/."""
    install(control_plane, namespace, f"scope.namespaces={{{namespace}}}")
    return new_operator  # type: ignore[no-any-return]


@pytest.fixture
def new_operator(control_plane: ControlPlane, namespace: str) -> Iterator[Callable[..., Operator]]:
    """The same, for a test that installs the chart itself."""
    with ended([]) as made:

        def make(identity: str = "operator-0", **settings: str) -> Operator:
            made.append(Operator(control_plane, namespace, identity, **settings))
            return made[-1]

        yield make


@pytest.fixture
def render_chart() -> Callable[..., list[Obj]]:
    """`chart(namespace, *values)`."""
    return chart


@pytest.fixture
def install_chart() -> Callable[..., None]:
    """`install(plane, namespace, *values)`."""
    return install


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[FaultProxy]:
    with FaultProxy(control_plane.url, control_plane.ca) as made:
        yield made


@pytest.fixture
def quick_operator(make_operator: Callable[..., Any], proxy: FaultProxy, zygote: Zygote) -> Any:
    """Of the test's namespace, behind the proxy, and quick to start."""
    made = make_operator()
    made.zygote = zygote
    through(made, proxy)
    return made


@pytest.fixture
def world(control_plane: ControlPlane, namespace: str, node: FakeNode) -> Iterator[World]:
    """Everything that happens in the test's namespace, whose pods run as soon as they are there."""
    node.policy = run_pods
    with World(control_plane, namespace, node) as made:
        yield made


def run_pods(node: FakeNode, pod: Pod) -> None:
    if pod["status"]["phase"] == "Pending" and HELD_BACK not in pod["spec"].get("nodeSelector", {}):
        node.run(pod)


class Jobs:
    """The test's jobs, through kubectl."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace
        self.workloads, self.kind = "pytorchjobs", "PyTorchJob"
        """What attempts are here."""

    def apply(self, *objects: Obj) -> None:
        placed = [{**obj, "metadata": {"namespace": self.namespace, **obj["metadata"]}} for obj in objects]
        self.plane.apply(*placed)

    def get(self, kind: str, name: str) -> Obj | None:
        text = self.plane.kubectl(
            "get", kind, name, f"--namespace={self.namespace}", "--ignore-not-found", "--output=json"
        )
        return json.loads(text) if text.strip() else None

    def list(self, kind: str) -> list[Obj]:
        text = self.plane.kubectl("get", kind, f"--namespace={self.namespace}", "--output=json")
        return list(json.loads(text)["items"])

    def patch(self, kind: str, name: str, change: Obj, subresource: str = "") -> None:
        self.plane.kubectl(
            *("patch", kind, name, f"--namespace={self.namespace}", "--type=merge", f"--patch={json.dumps(change)}"),
            *([f"--subresource={subresource}"] if subresource else []),
        )

    def suspend(self, name: str, suspend: bool) -> None:
        """Suspend a workload, or let it go."""
        said = {"suspend": suspend}
        self.patch(self.workloads, name, {"spec": {"runPolicy": said} if self.kind == "PyTorchJob" else said})

    def delete(self, kind: str, name: str) -> None:
        self.plane.kubectl("delete", kind, name, f"--namespace={self.namespace}", "--wait=false")

    def status(self, kind: str, name: str) -> Obj:
        obj = self.get(kind, name)
        return {} if obj is None else dict(obj.get("status", {}))

    def wait(self, kind: str, name: str, what: str, holds: Callable[[Obj], bool], seconds: float = 60) -> Obj:
        """Wait until `holds(status)`; return that status."""
        status: Obj = {}

        def reached() -> bool:
            nonlocal status
            status = self.status(kind, name)
            return holds(status)

        try:
            wait_for(f"{kind} {name} {what}", reached, seconds, 0.2)
        except Exception:
            print(f"status of {kind} {name}: {json.dumps(status, indent=1)}")
            raise
        return status

    def wait_for_phase(self, name: str, phase: str, kind: str = "dpojob", seconds: float = 60) -> Obj:
        return self.wait(kind, name, f"is {phase}", lambda status: status.get("phase") == phase, seconds)


@pytest.fixture
def jobs(control_plane: ControlPlane, namespace: str) -> Jobs:
    return Jobs(control_plane, namespace)


@pytest.fixture
def dpo() -> Callable[..., Obj]:
    """A DPOJob whose rows are in its spec, so that it needs no other object."""

    def make(name: str = "tune", **spec: Any) -> Obj:
        rows = [{"prompt": "Where is it?", "chosen": "I will look at once.", "rejected": "no idea"}] * 4
        base: Obj = {
            "model": {"hub": {"repo": "org/base"}},
            "dataset": {"train": {"inline": rows}},
            "storage": {"size": "1Gi"},
        }
        return {
            "apiVersion": "trl-operator.io/v1alpha1",
            "kind": "DPOJob",
            "metadata": {"name": name},
            "spec": {**base, **spec},
        }

    return make


@pytest.fixture
def record() -> Callable[..., str]:
    """A termination message as the trainer writes it."""

    def make(outcome: str = "Succeeded", **fields: Any) -> str:
        time_text = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        return json.dumps({"contractVersion": 1, "outcome": outcome, "time": time_text, **fields})

    return make
