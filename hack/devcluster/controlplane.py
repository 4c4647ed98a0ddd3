"""A real control plane without nodes: etcd, API server, controllers and training-operator, as processes of a test.

What is real: CRDs with CEL, RBAC, admission (the training-operator's webhook too), quotas, garbage collection, the life
of namespaces, service-account tokens, the audit log. What is missing is all that needs a scheduler, a node or its
network; `devcluster.fakenode` plays the first two.
"""

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from kubernetes import client, config

from devcluster import controlplane_commands as commands
from devcluster import engines, pki, tools, trainingoperator, webhooks
from devcluster.errors import DevClusterError
from devcluster.waiting import answers, wait_for

BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "training-operator")
# Go collects garbage at five times the live heap, not two: 200 MB more, and a start in 6 s, not 11, on a busy machine.
LESS_CPU = {"GOGC": "400"}
READY_TIMEOUT = 60  # seconds; the slowest, the API server, needs 3 on an idle machine


class ControlPlane:
    """A context manager: inside it the control plane answers; after it neither process nor folder is left.

    Several run side by side. Enter it in a thread that outlives it: the kernel kills the processes when that thread
    ends, which is also what ends them when the whole test process is killed.

    `crds` are files with CustomResourceDefinitions that are there from the start, so that the garbage collector and the
    quota controller know their kinds at once: they look for new kinds only every 30 s.
    `engines` are those of `devcluster.engines` that run as well. Set `keep` to keep the folder with the logs.
    """

    def __init__(self, crds: Sequence[Path] = (), engines: Sequence[str] = ()) -> None:
        self.keep = False
        self._crds = crds
        self.engines = engines
        self._ports: dict[str, socket.socket] = {}
        self._commands: dict[str, list[str | Path]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        tools.ensure([*BINARIES, *self.engines])
        began = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="trl-controlplane-"))
        try:
            self._prepare()
            self.start("etcd")
            self.start("kube-apiserver")
            self._install()
            self.start("kube-controller-manager", "training-operator", *self.engines)
        except BaseException as error:
            error.add_note(f"The logs of the control plane are kept in {self.logs}")
            self.keep = True
            self.__exit__()
            raise
        self.start_seconds = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(*self._running)
        for reserved in self._ports.values():
            reserved.close()
        if self.keep:
            shutil.rmtree(self.folder / "etcd", ignore_errors=True)
        else:
            shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        """The API server's address."""
        return f"https://127.0.0.1:{self._port('kube-apiserver')}"

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig (group system:masters)."""
        return self.folder / "admin.kubeconfig"

    @property
    def ca(self) -> Path:
        """The certificate of the authority behind the API server's certificate."""
        return self.folder / "pki" / "ca.crt"

    @property
    def logs(self) -> Path:
        """The folder with one log per process, and audit.log."""
        return self.folder / "logs"

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of what runs, by name, in the order in which they have to be started.

        Not in the order in which they were: training-operator ends when the API server is not there yet.
        """
        return {name: self._running[name].pid for name in self._commands if name in self._running}

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig with a client certificate of this user in these groups; only RBAC says what it may do."""
        file = user.replace(":", ".")
        pki.issue(self.folder / "pki", pki.Subject(file, user, tuple(groups)))
        path = self.folder / f"{file}.kubeconfig"
        path.write_text(pki.kubeconfig(self.folder / "pki", file, self.url))
        return path

    def kubeconfig_for_service_account(self, namespace: str, name: str) -> Path:
        """A kubeconfig with a token of an existing ServiceAccount, valid for a day; only RBAC says what it may do."""
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", "--duration=24h").strip()
        config = json.loads(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        path = self.folder / f"{namespace}.{name}.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def api(self, kubeconfig: Path | None = None) -> client.ApiClient:
        """A new client for the classes of `kubernetes.client`, as the administrator or with another kubeconfig."""
        return config.new_client_from_config(str(kubeconfig or self.kubeconfig))

    def kubectl(self, *arguments: str | Path, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        """What kubectl prints, as the administrator or with another kubeconfig.

        Raises DevClusterError with what kubectl says when it fails.
        """
        done = subprocess.run(
            [tools.binary("kubectl"), f"--kubeconfig={kubeconfig or self.kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, "KUBECACHEDIR": str(self.folder / "kubectl")},
            timeout=120,
        )
        if done.returncode:
            raise DevClusterError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()[:4000]}")
        return done.stdout

    def apply(self, *objects: Mapping[str, Any], kubeconfig: Path | None = None) -> None:
        """Server-side applies the objects; raises DevClusterError with the API server's answer when one is refused."""
        self.kubectl("apply", "--server-side", "--filename=-", stdin=_list_of(objects), kubeconfig=kubeconfig)

    def audit(self, user: str | None = None) -> list[dict[str, Any]]:
        """Every request that was answered so far (audit.k8s.io/v1 Event, level Metadata), oldest first.

        With `user`, such as "system:serviceaccount:NAMESPACE:NAME", only that user's. A watch is there twice: when it
        began (stage ResponseStarted) and when it ended.
        """
        lines = (self.logs / "audit.log").read_text().split("\n")[:-1]
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [entry for entry in entries if user in (None, entry["user"]["username"])]

    def start(self, *names: str) -> None:
        """The named processes, which did not run, are ready; an API server that was stopped comes back with its data.

        Raises DevClusterError with the end of the log of one that is not.
        """
        for name in names:
            with self._log(name).open("ab") as log:
                self._running[name] = subprocess.Popen(
                    ["setpriv", "--pdeathsig=KILL", *map(str, self._commands[name])],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env={**os.environ, "TMPDIR": str(self.folder), **LESS_CPU},
                    start_new_session=True,  # an interrupt from the keyboard is for the tests
                )
        for name in names:
            try:
                wait_for(f"{name} is ready", lambda name=name: self._is_ready(name), READY_TIMEOUT, 0.05)  # type: ignore[misc]
            except DevClusterError as error:
                tail = self._log(name).read_text(errors="replace")[-2000:]
                raise DevClusterError(f"{error}; its log {self._log(name)} ends with:\n{tail}") from error

    def stop(self, *names: str) -> None:
        """The named processes are gone, killed without a chance to say good-bye; their ports stay reserved for them."""
        for name in names:
            self._running[name].kill()
        for name in names:
            self._running.pop(name).wait()

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Inside, the named process does not run; after it, whatever happened, it is ready again."""
        self.stop(name)
        try:
            yield
        finally:
            self.start(name)

    @contextmanager
    def configured(self, engine: str, **settings: Any) -> Iterator[None]:
        """Inside, the engine runs with these settings merged into its configuration; after it, as before."""
        with self.without(engine):
            self._configure(engine, settings)
        try:
            yield
        finally:
            with self.without(engine):
                self._configure(engine)

    def _is_ready(self, name: str) -> bool:
        if (code := self._running[name].poll()) is not None:
            raise DevClusterError(f"{name} ended with exit code {code}")
        match name:
            case "etcd":
                return answers(f"http://127.0.0.1:{self._port('etcd')}/readyz")
            case "kube-apiserver":
                return answers(f"{self.url}/readyz", ssl.create_default_context(cafile=str(self.ca)))
            case "kube-controller-manager":  # it serves nothing
                return True
            case _:
                return answers(f"http://127.0.0.1:{self._port(f'{name}-health')}/readyz")

    def _prepare(self) -> None:
        """Certificates, configuration files and command lines are ready; nothing runs yet."""
        self.logs.mkdir()
        subjects = [
            pki.Subject("kube-apiserver", "kube-apiserver", hosts=("127.0.0.1", "localhost")),
            pki.Subject("admin", "admin", ("system:masters",)),
            pki.Subject("kube-controller-manager", "system:kube-controller-manager"),
            *(pki.Subject(name, name, ("system:masters",)) for name in ("training-operator", *self.engines)),
        ]
        pki.ensure(self.folder / "pki", subjects)
        for subject in subjects[1:]:
            config = pki.kubeconfig(self.folder / "pki", subject.file, self.url)
            (self.folder / f"{subject.file}.kubeconfig").write_text(config)
        (self.folder / "audit-policy.json").write_text(json.dumps(commands.AUDIT_POLICY))
        self._commands = {
            "etcd": commands.etcd(self.folder, self._port("etcd"), self._port("etcd-peer")),
            "kube-apiserver": commands.kube_apiserver(self.folder, self._port("kube-apiserver"), self._port("etcd")),
            "kube-controller-manager": commands.kube_controller_manager(self.folder),
            "training-operator": trainingoperator.command(
                self.folder / "training-operator.kubeconfig",
                self._port("training-operator-webhook"),
                self._port("training-operator-health"),
            ),
        }
        for name in self.engines:
            self._configure(name)
            kubeconfig = self.folder / f"{name}.kubeconfig"
            self._commands[name] = engines.command(name, kubeconfig, self.folder / f"{name}.json")

    def _configure(self, engine: str, changes: Mapping[str, Any] = {}) -> None:
        settings = engines.configuration_outside(engine, self.folder, self._port, changes)
        (self.folder / f"{engine}.json").write_text(json.dumps(settings))

    def _install(self) -> None:
        """What the API server has to hold before the controllers start."""
        certificates = webhooks.certificates(self.folder)
        held = trainingoperator.objects(certificates, self._port("training-operator-webhook"))
        for name in self.engines:
            held += engines.objects_outside(name, self._port(f"{name}-webhook"), certificates)
        objects = self.folder / "objects.json"
        objects.write_text(_list_of(held))
        files = [f"--filename={path}" for path in (objects, trainingoperator.crd(), *self._crds)]
        # Without the client's validation, for which the API server would have to build its OpenAPI documents first.
        self.kubectl("apply", "--server-side", "--validate=false", *files)
        extensions = client.ApiextensionsV1Api(self.api())

        def established() -> bool:
            # Not `kubectl wait`: it fails on a CRD that has no conditions yet.
            crds = json.loads(extensions.list_custom_resource_definition(_preload_content=False).data)["items"]
            conditions = [{c["type"]: c["status"] for c in crd["status"].get("conditions") or ()} for crd in crds]
            return all(found.get("Established") == "True" for found in conditions)

        wait_for("the CRDs are established", established, READY_TIMEOUT, 0.05)

    def _port(self, name: str) -> int:
        """A port that stays ours from the first call to the end, also while nothing listens on it.

        A bound socket that does not listen keeps everybody else off the port, but for a listener that sets
        SO_REUSEADDR, as every Go program does.
        """
        if name not in self._ports:
            self._ports[name] = socket.socket()
            self._ports[name].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._ports[name].bind(("", 0))
        port: int = self._ports[name].getsockname()[1]
        return port

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


def _list_of(objects: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
