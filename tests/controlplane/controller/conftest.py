"""The operator as a process of its own, under exactly the rights that the chart gives it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from devcluster import tools
from devcluster.controlplane import ControlPlane
from devcluster.paths import REPOSITORY
from devcluster.waiting import wait_for

CHART = REPOSITORY / "deploy/helm/trl-operator"
RELEASE = "trl-operator"
READY_SECONDS = 60

Obj = dict[str, Any]


def chart(namespace: str, *values: str) -> list[Obj]:
    """What `helm install` would send to the API server."""
    done = subprocess.run(
        [tools.binary("helm"), "template", RELEASE, CHART, f"--namespace={namespace}", "--kube-version=1.34.0"]
        + [f"--set={value}" for value in values],
        capture_output=True,
        text=True,
        check=True,
    )
    return [obj for obj in yaml.safe_load_all(done.stdout) if obj]


class Operator:
    """An operator as a process; it may be killed and started again."""

    def __init__(self, plane: ControlPlane, namespace: str, identity: str = "operator-0", **settings: str) -> None:
        self.plane = plane
        self.namespace = namespace
        self.log = plane.logs / f"{namespace}.{identity}.log"
        self.receiver_port, self.health_port = _free_port(), _free_port()
        self.settings = {
            "NAMESPACE": namespace,
            "IDENTITY": identity,
            "TRAINER_IMAGE": "localhost/trl-trainer:dev",
            "RECEIVER_URL": f"https://127.0.0.1:{self.receiver_port}",
            "RECEIVER_PORT": str(self.receiver_port),
            "HEALTH_PORT": str(self.health_port),
            "BIND_ADDRESS": "127.0.0.1",
            "SECRET_NAME": f"{RELEASE}-receiver",
            "LEASE_NAME": RELEASE,
            "WATCH_NAMESPACES": namespace,
            "PROGRESS_SECONDS": "1",
            **settings,
        }
        self.kubeconfig = plane.kubeconfig_for_service_account(namespace, RELEASE)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{RELEASE}"

    def start(self, wait: bool = True) -> None:
        # Nothing of the developer's environment, as in a pod: a variable that is no setting ends the operator. Its
        # temporary files go away with the control plane's, also when it is killed.
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(self.plane.folder), "KUBECONFIG": str(self.kubeconfig)}
        environment |= {f"TRL_OPERATOR_{name}": value for name, value in self.settings.items()}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", sys.executable, "-m", "trl_operator"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            wait_for("the operator is ready", self.is_ready, READY_SECONDS, 0.1)

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the operator ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it by SIGTERM; return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=20)


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
    started = [operator for operator in operators if operator.process is not None]
    for operator in started:
        if operator.process is not None and operator.process.poll() is None:
            operator.kill()
    for operator in started:
        assert "Traceback" not in operator.log.read_text(), operator.log.read_text()[-8000:]


@pytest.fixture(scope="session")
def operator(request: pytest.FixtureRequest) -> Iterator[Operator]:
    """An operator of the whole cluster, which the tests of this folder share."""
    plane: ControlPlane = request.getfixturevalue("control_plane")
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "trl-system"}})
    install(plane, "trl-system")
    with ended([Operator(plane, "trl-system", WATCH_NAMESPACES="")]) as [made]:
        made.start()
        yield made


@pytest.fixture
def make_operator(control_plane: ControlPlane, namespace: str) -> Iterator[Callable[..., Operator]]:
    """Operators of the test's namespace alone, which may be killed; see alone/."""
    install(control_plane, namespace, f"scope.namespaces={{{namespace}}}")
    with ended([]) as made:

        def make(identity: str = "operator-0", **settings: str) -> Operator:
            made.append(Operator(control_plane, namespace, identity, **settings))
            return made[-1]

        yield make


@pytest.fixture
def render_chart() -> Callable[..., list[Obj]]:
    """`chart(namespace, *values)`."""
    return chart


class Jobs:
    """The test's jobs, through kubectl."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace

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

    def patch(self, kind: str, name: str, change: Obj) -> None:
        self.plane.kubectl(
            "patch", kind, name, f"--namespace={self.namespace}", "--type=merge", f"--patch={json.dumps(change)}"
        )

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
