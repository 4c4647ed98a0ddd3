"""The Debian packages that the cluster needs: looked for, and installed when the user agrees."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from devcluster.errors import DevClusterError

# Known by a file, not by the package database: Docker's containerd.io serves as well as Debian's containerd.
NEEDED = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "iproute2": "ip",
    "busybox-static": "/bin/busybox",
    "debootstrap": "debootstrap",
}


def missing() -> list[str]:
    """The packages that are not there."""
    return [package for package, file in NEEDED.items() if not _present(package, file)]


def ensure(*, agreed: bool) -> None:
    """Every package is installed. Installs what is missing if the user agreed beforehand or, asked at a terminal, now.

    Raises DevClusterError, which names the command to run, when the user did not agree.
    """
    if not (wanted := missing()):
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *wanted]
    text = " ".join(command)
    if not shutil.which("apt-get"):
        raise DevClusterError(f"install these (Debian's package names; there is no apt-get here): {', '.join(wanted)}")
    if not agreed and sys.stdin.isatty():
        agreed = input(f"Missing Debian packages. Run `{text}` now? [y/N] ").strip().lower() in ("y", "yes")
    if not agreed:
        raise DevClusterError(f"missing Debian packages, install them with: apt-get update && {text}\n(or pass --yes)")
    print(f"cluster: {text}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update", "--quiet"], command):
        done = subprocess.run(step, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise DevClusterError(f"{' '.join(step)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    if still := missing():
        raise DevClusterError(f"{text} succeeded, but these are still missing: {', '.join(still)}")


def _present(package: str, file: str) -> bool:
    if package == "busybox-static":
        # The plain busybox, in the same place, is linked dynamically and does not run in an image of its own.
        return Path(file).exists() and b"ld-linux" not in Path(file).read_bytes()[:4096]
    return shutil.which(file) is not None
