"""The life of the cluster: up and down."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from devcluster import (
    addons,
    cgroups,
    commands,
    configs,
    containers,
    image,
    kube,
    locks,
    network,
    paths,
    pki,
    preflight,
    process,
    stale,
    sysctls,
    tools,
)
from devcluster.commands import Command
from devcluster.errors import DevClusterError
from devcluster.layout import ADDRESS, FIRST_SERVICE_ADDRESS, NODE, SERVER
from devcluster.waiting import answers, wait_for

# The processes, by name, in the order in which they are started.
COMMANDS: dict[str, Callable[[Path], Command]] = {
    "etcd": commands.etcd,
    "containerd": commands.containerd,
    "kube-apiserver": commands.kube_apiserver,
    "kube-controller-manager": commands.kube_controller_manager,
    "kube-scheduler": commands.kube_scheduler,
    "kube-proxy": commands.kube_proxy,
    "coredns": commands.coredns,
    "kubelet": commands.kubelet,
}
TIMEOUT = 180  # seconds for each step: it takes a few, but the machine may be busy with other work


def up(*, agreed: bool) -> None:
    """The node is Ready and the addons work. A running cluster stays as it is, a half dead one is started anew.

    `agreed`: missing Debian packages are installed without asking. Raises DevClusterError.
    """
    preflight.check(agreed=agreed)
    # All of them, also those that only images and charts need: one long wait, then none.
    tools.ensure(tools.TOOLS)
    say = _clock()
    with _lock():
        if not complete():
            # Not otherwise: firewall rules of the same names would be another Kubernetes' then.
            if sysctls.saved():
                stale.clear()
            preflight.check_ports()
            _start(say)
        try:
            _settle(say)
        except DevClusterError as error:
            raise DevClusterError(
                f"{error}\nsee make cluster-logs; make cluster-down cluster-up starts anew, without the objects"
            ) from error


def down() -> None:
    """No process, mount, interface, firewall rule, cgroup or object of the cluster is left; images and caches stay."""
    if not sysctls.saved():
        return
    preflight.check_root(os.geteuid())
    with _lock():
        for name in reversed(COMMANDS):
            if name != "containerd":
                process.stop(name, paths.RUN, grace=0)
        cgroups.remove()
        if process.running("containerd", paths.RUN):
            containers.remove_all()
        stale.clear()
        stale.forget()
        sysctls.restore()


def complete() -> bool:
    """Whether every process of the cluster runs."""
    return all(process.running(name, paths.RUN) for name in COMMANDS)


def _settle(say: Callable[[str], None]) -> None:
    """What runs in the cluster has been applied, and all of it is ready."""
    addons.install()
    for condition in ("create", "condition=Ready"):
        kube.kubectl("wait", f"--for={condition}", f"--timeout={TIMEOUT}s", f"node/{NODE}")
    say("the node is Ready")
    addons.wait(TIMEOUT)
    say("training-operator and local-path-provisioner are Available")


def _start(say: Callable[[str], None]) -> None:
    """Every process runs and the API server is ready, on a host that `stale.clear` has cleared."""
    network.load_module()
    sysctls.save()
    network.add()
    cgroups.add()
    new = not _start_etcd(say)
    for name in ("containerd", "kube-apiserver"):
        _launch(name)
    _wait_for("kube-apiserver", lambda: kube.succeeds("get", "--raw=/readyz"))
    say("the API server is ready")
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns"):
        _launch(name)
    _wait_for("containerd", containers.answers)
    if new:
        containers.remove_all()
    containers.ensure_image(*_pause())
    _launch("kubelet")


def _start_etcd(say: Callable[[str], None]) -> bool:
    """etcd serves; whether with the objects of the cluster before, as opposed to none."""
    if paths.ETCD.exists():
        _write_files()
        _launch("etcd")
        if _etcd_serves():
            return True
        process.stop("etcd", paths.RUN, grace=0)
        say("etcd does not start from its data: the cluster starts anew, without the objects it had")
    stale.forget()
    _write_files()
    _launch("etcd")
    if not _etcd_serves():
        raise DevClusterError(f"etcd does not start; the end of its log:\n{_end_of_log('etcd')}")
    return False


def _write_files() -> None:
    """Certificates, kubeconfigs and configuration are on disk."""
    pki.ensure(paths.PKI, pki.subjects([ADDRESS, FIRST_SERVICE_ADDRESS], {NODE: ADDRESS}))
    for name, text in configs.files(image.name(*_pause())).items():
        file = paths.CONFIG / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for subject in ("admin", "kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns", f"node-{NODE}"):
        file = commands.kubeconfig(subject)
        file.touch(mode=0o600)
        file.write_text(pki.kubeconfig(paths.PKI, subject, SERVER))
    paths.VOLUMES.mkdir(exist_ok=True)


def _launch(name: str) -> None:
    binary = tools.binary(name) if name in tools.TOOLS else Path(name)
    process.start(name, COMMANDS[name](binary), run=paths.RUN, log=_log(name))


def _etcd_serves() -> bool:
    """Whether etcd answers; False once it has ended instead."""
    health = "http://127.0.0.1:2379/health"
    wait_for("etcd answers or ends", lambda: answers(health) or not process.running("etcd", paths.RUN), TIMEOUT)
    return process.running("etcd", paths.RUN) is not None


def _wait_for(name: str, check: Callable[[], bool]) -> None:
    """The check holds; gives up with the end of the log when the process has ended."""

    def checked() -> bool:
        if not process.running(name, paths.RUN):
            raise DevClusterError(f"{name} has ended; the end of its log:\n{_end_of_log(name)}")
        return check()

    wait_for(f"{name} is ready (see {_log(name)})", checked, TIMEOUT)


def _log(name: str) -> Path:
    return paths.LOGS / f"{name}.log"


def _end_of_log(name: str) -> str:
    return _log(name).read_text(errors="replace")[-3000:]


def _pause() -> tuple[str, dict[str, Path | str], list[str]]:
    return "pause", {"/pause": tools.binary("pause")}, ["/pause"]


def _lock() -> AbstractContextManager[None]:
    return locks.exclusive(paths.STATE / "lock", "cluster: waiting for another up or down to end")


def _clock() -> Callable[[str], None]:
    start = time.monotonic()
    return lambda what: print(f"cluster: {what} ({time.monotonic() - start:.1f} s)", flush=True)
