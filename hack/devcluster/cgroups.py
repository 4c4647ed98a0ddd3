"""The cgroup below which all pods run, in the version 1, hybrid and version 2 layouts."""

import errno
import os
import signal
from pathlib import Path

from devcluster import process
from devcluster.layout import CGROUP
from devcluster.waiting import wait_for


def add() -> None:
    """The pods' cgroup exists in every hierarchy; in a version 2 one it has every controller that the host offers."""
    for hierarchy in hierarchies():
        (hierarchy / CGROUP).mkdir(exist_ok=True)
        if (hierarchy / "cgroup.subtree_control").exists():
            for folder in (hierarchy, hierarchy / CGROUP):
                offered = (folder / "cgroup.controllers").read_text().split()
                (folder / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in offered))


def remove() -> None:
    """Every process of every pod has been killed and their cgroups are gone."""
    roots = [hierarchy / CGROUP for hierarchy in hierarchies() if (hierarchy / CGROUP).exists()]
    wait_for("the processes of the pods end", lambda: not _kill(roots), 60)
    wait_for("the cgroups of the pods go", lambda: all(map(_remove_tree, roots)), 60)


def hierarchies() -> list[Path]:
    """The mount points of all cgroup hierarchies."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(point) for _, point, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


def _kill(roots: list[Path]) -> set[int]:
    """Sends SIGKILL to every process below the cgroups, and says which there were."""
    pids = {pid for root in roots for folder, _, _ in os.walk(root) for pid in _pids(Path(folder))}
    for found in map(process.by_pid, pids):
        if found:
            found.signal(signal.SIGKILL)
    return pids


def _pids(cgroup: Path) -> list[int]:
    """The processes in it; none when it goes meanwhile, as a shim removes the cgroup of an ended container."""
    try:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise


def _remove_tree(root: Path) -> bool:
    """Whether the cgroup has gone; the kernel keeps one busy for a moment after its last process."""
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            Path(folder).rmdir()
        except OSError:
            return False
    return not root.exists()
