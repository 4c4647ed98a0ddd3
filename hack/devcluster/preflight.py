"""What must hold before the cluster is brought up; each refusal names what is wrong and the remedy."""

import os
import platform
import re
import shutil
from pathlib import Path

from devcluster import packages, paths, tools
from devcluster.errors import DevClusterError
from devcluster.layout import ADDRESS, PORTS
from devcluster.process import command_of, run

GB = 10**9
# What a cold machine needs, in GB; a warm one needs only CLUSTER.
BUILDING, IMAGES, CLUSTER = 12, 15, 3


def check(*, agreed: bool) -> None:
    """This machine can build the tools and run the cluster; missing packages are installed if `agreed`."""
    check_platform(platform.system(), platform.machine())
    check_root(os.geteuid())
    packages.ensure(agreed=agreed)
    check_disk(building=bool(tools.missing(tools.TOOLS)), images=not _has_images(paths.STATE))


def check_platform(system: str, machine: str) -> None:
    """Linux on x86-64."""
    if (system, machine) != ("Linux", "x86_64"):
        raise DevClusterError(
            f"this is {system} on {machine}; the dev cluster runs on Linux x86-64 only. "
            "Use a Linux machine, or another cluster with CLUSTER=current or CLUSTER=kind"
        )


def check_root(uid: int) -> None:
    """The superuser."""
    if uid:
        raise DevClusterError(
            f"root is needed (network, mounts, cgroups), this is uid {uid}: run it with sudo, "
            "or use another cluster with CLUSTER=current or CLUSTER=kind"
        )


def check_disk(*, building: bool, images: bool) -> None:
    """Enough free space for what is not there yet."""
    needs = [(paths.CACHE, BUILDING, "tools to build")] if building else []
    needs += [(paths.STATE, IMAGES, "images")] if images else []
    needs += [(paths.STATE, CLUSTER, "the cluster")]
    by_disk: dict[int, list[tuple[Path, int, str]]] = {}
    for need in needs:
        by_disk.setdefault(_existing(need[0]).stat().st_dev, []).append(need)
    for parts in by_disk.values():
        needed, free = sum(part[1] for part in parts), shutil.disk_usage(_existing(parts[0][0])).free
        if free < needed * GB:
            purposes = ", ".join(f"{size} GB for {purpose} in {folder}" for folder, size, purpose in parts)
            raise DevClusterError(
                f"{needed} GB of free disk are needed ({purposes}), {free / GB:.1f} GB are free: "
                "free some, or move the cache with TRL_DEV_CACHE=/another/disk"
            )


def _has_images(state: Path) -> bool:
    """Whether the image store has the one layer that takes the room: the trainer's dependencies, 3 GB compressed."""
    blobs = (state / "containerd/io.containerd.content.v1.content/blobs/sha256").glob("*")
    return any(blob.stat().st_size > GB for blob in blobs)


def check_ports() -> None:
    """No other process listens where the cluster will."""
    taken = []
    for line in run("ss", "-H", "-l", "-n", "-p", "-t", "-u").splitlines():
        fields = line.split()
        address, _, port = fields[4].rpartition(":")
        use = PORTS.get(int(port)) if port.isdigit() and fields[0] == "tcp" else None
        if port == "53" and address in (ADDRESS, "0.0.0.0", "*", "[::]"):
            use = "coredns"
        if use:
            pids = [int(pid) for pid in re.findall(r"pid=(\d+)", line)]
            owner = ", ".join(f"pid {pid}: {command_of(pid)}" for pid in pids) or "a process of another pid namespace"
            taken.append(f"port {port} ({use}) is taken on {address} by {owner}")
    if taken:
        raise DevClusterError("\n".join([*taken, "stop what holds the ports (kill the pid, or stop its service)"]))


def _existing(path: Path) -> Path:
    """The path or its nearest parent that exists."""
    return path if path.exists() else _existing(path.parent)
