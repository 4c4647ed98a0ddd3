"""The host's sysctls: remembered before the cluster changes any, and put back."""

import json
from pathlib import Path

from devcluster import paths

# Changed by us (ip_forward, bridge-nf-call), by the kubelet (vm, kernel) and by kube-proxy (the rest).
NAMES = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
SAVED = paths.STATE / "sysctl.json"
ROOT = Path("/proc/sys")


def save() -> None:
    """Remembers the values until `restore`; a second call keeps what the first one saw."""
    if not saved():
        SAVED.parent.mkdir(parents=True, exist_ok=True)
        temporary = SAVED.with_suffix(".new")
        temporary.write_text(json.dumps({name: read(name) for name in NAMES if (ROOT / name).exists()}, indent=2))
        temporary.rename(SAVED)


def saved() -> bool:
    """Whether a cluster has changed this host since it was last taken down."""
    return SAVED.exists()


def restore() -> None:
    """The values are what they were at `save`; does nothing when nothing was saved."""
    if saved():
        for name, value in json.loads(SAVED.read_text()).items():
            if read(name) != value:
                write(name, value)
        SAVED.unlink()


def read(name: str) -> str:
    """The value of a sysctl named by its path below /proc/sys."""
    return (ROOT / name).read_text().strip()


def write(name: str, value: str) -> None:
    """Sets a sysctl."""
    (ROOT / name).write_text(value)
