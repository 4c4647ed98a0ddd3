"""What this container may use of the host's memory, and what is left of it in words. Standard library only."""

import os
from pathlib import Path

GIB = 2**30
SHARED = Path("/dev/shm")
"""Its files are in memory, and count against the container's limit."""


def size(count: int) -> str:
    """Return a number of bytes in a unit that says something."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 2 else f"{count / 2**20:.1f} MiB"


def available(root: Path = Path("/")) -> int:
    """Return the bytes that this container may use: the lowest memory limit of its control groups, or the machine's
    memory. `root` is where the file systems of /proc and /sys/fs/cgroup are looked for."""
    return min(_machine(root), *_limits(root))


def _machine(root: Path) -> int:
    meminfo = (root / "proc/meminfo").read_text().split("\n", 1)[0]
    return int(meminfo.split()[1]) * 1024


def _limits(root: Path) -> list[int]:
    """Return the memory limits of this process' control groups, and as the last one what no memory reaches."""
    limits = [2**63]
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the file system starts at its own group, so the path may not be there.
        folder = base / group.lstrip("/")
        for parent in (folder, *folder.parents):
            if (parent / name).exists():
                text = (parent / name).read_text().strip()
                limits += [int(text)] if text != "max" else []
            if parent == base:
                break
    return limits


def oom_kills(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processes of this container the kernel has killed for memory (cgroup v2, else v1)."""
    for name in ("memory.events", "memory/memory.oom_control"):
        path = root / name
        if path.exists():
            fields = dict(line.split() for line in path.read_text().splitlines())
            return int(fields.get("oom_kill", 0))
    return 0


def exhausted(root: Path = Path("/")) -> str:
    """Return which memory had no room for more, how much it is, and what to do: the container's, or without a limit of
    its own the machine's."""
    machine, limit = _machine(root), min(_limits(root))
    if limit >= machine:
        return (
            f"the node has {size(machine)} for all its pods, and this one has no resources.limits.memory: set it, so"
            " that a node with room is found"
        )
    used = shared(root / SHARED.relative_to("/"))[0]
    files = f", {size(used)} of it files in {SHARED}" if used >= 2**20 else ""
    return f"resources.limits.memory is {size(limit)} for all processes of the pod{files}: raise it"


def shared(folder: Path = SHARED) -> tuple[int, int]:
    """Return the bytes that are used of /dev/shm, and all that it has; 0 if there is none."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0, 0
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_blocks * found.f_frsize


def shared_exhausted(folder: Path = SHARED) -> str:
    """Return how much /dev/shm has, and what to do when that is full."""
    return f"{SHARED} has {size(shared(folder)[1])}: raise sharedMemory, or lower dataset.workers"
