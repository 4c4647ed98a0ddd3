"""The folders of the dev cluster; it writes nothing outside them."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / "hack" / "tools"

# Survives `down` and is shared by all checkouts: built tools, Go's caches, wheels, image bases.
CACHE = Path(os.environ.get("TRL_DEV_CACHE") or Path.home() / ".cache" / "trl-operator")
BIN = CACHE / "bin"

# The cluster itself. The image store in STATE survives `down`; RUN holds sockets and pid files.
STATE = Path("/var/lib/trl-cluster")
RUN = Path("/run/trl-cluster")

PKI = STATE / "pki"
CONFIG = STATE / "config"
ETCD = STATE / "etcd"
LOGS = STATE / "log"
KUBECTL_CACHE = STATE / "kubectl"
VOLUMES = STATE / "volumes"
VOLUME_PLUGINS = STATE / "volume-plugins"
KUBELET_ROOT = STATE / "kubelet"
KUBECONFIG = STATE / "admin.kubeconfig"
CONTAINERD_SOCKET = RUN / "containerd.sock"
