"""Clearing what a cluster leaves behind, whether it was brought down or killed at any point."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from devcluster import cgroups, mounts, network, paths, process

# Folders that containerd and the kubelet do not let us move.
SHIM_SOCKETS = Path("/run/containerd/s")
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
LOG_LINKS = Path("/var/log/containers")


def clear() -> None:
    """No process, mount, interface, firewall rule or cgroup of the cluster is left; its state on disk stays.

    To the components it looks like a reboot: RUN, which a reboot empties, is gone.
    """
    while found := process.marked(paths.RUN):
        process.end(found, grace=0)
    cgroups.remove()
    _remove(_shim_sockets())
    mounts.unmount(paths.RUN, paths.STATE)
    network.remove()
    _remove([paths.RUN, *_log_links(), *DEVICE_PLUGINS.glob("*")])
    for folder in (SHIM_SOCKETS, DEVICE_PLUGINS, LOG_LINKS, network.CNI_RESULTS):
        _remove_empty(folder)


def forget() -> None:
    """The cluster's objects, claims' data, certificates and logs are gone; the image store stays."""
    folders = (paths.KUBELET_ROOT, paths.VOLUMES, paths.VOLUME_PLUGINS, paths.KUBECTL_CACHE)
    # etcd first: what `up` finds without one, it takes for remains.
    _remove([paths.ETCD, *folders, paths.PKI, paths.CONFIG, paths.LOGS, paths.KUBECONFIG])


def _shim_sockets() -> list[Path]:
    """Each shim's bundle names its socket."""
    addresses = paths.RUN.glob("containerd/io.containerd.runtime.v2.task/*/*/address")
    return [Path(address.read_text().removeprefix("unix://")) for address in addresses]


def _log_links() -> list[Path]:
    links = [link for link in LOG_LINKS.glob("*") if link.is_symlink()]
    return [link for link in links if link.readlink().is_relative_to(paths.LOGS)]


def _remove(found: Iterable[Path]) -> None:
    for path in found:
        mounts.remove(path)


def _remove_empty(folder: Path) -> None:
    """Removes the folder, and its parent, unless something else of the host lies in them."""
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()
