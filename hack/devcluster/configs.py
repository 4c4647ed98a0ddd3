"""The configuration files of the components: pure, as text by file name."""

import json

import yaml

from devcluster import paths
from devcluster.commands import kubeconfig
from devcluster.layout import ADDRESS, BRIDGE, CGROUP, DOMAIN, FIRST_POD_ADDRESS, NETWORK, NODE, POD_RANGE

CONTAINERD = """\
version = 2
root = "{paths.STATE}/containerd"
state = "{paths.RUN}/containerd"
# Would make /opt/containerd; the others need kernel modules or tools that nobody uses here.
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE no score may be lowered and every pod would fail.
  restrict_oom_score_adj = true
  # Else they lie in /run/netns.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{paths.CONFIG}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{paths.RUN}/runc"
        SystemdCgroup = false
"""

# `denial 0`: a name that is not there yet is asked for again at once, which is what a rendezvous waits for.
COREFILE = """\
.:53 {{
    bind {ADDRESS}
    errors
    ready {ADDRESS}:8181
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
    cache 5 {{
        denial 0
    }}
}}
"""


def files(pause_image: str) -> dict[str, str]:
    """Every configuration file, by its path below paths.CONFIG."""
    return {
        "containerd.toml": CONTAINERD.format(paths=paths, pause=pause_image),
        "cni/10-bridge.conflist": json.dumps(_network(), indent=2),
        "kubelet.yaml": yaml.safe_dump(_kubelet(), sort_keys=False),
        # Pods get the cluster's DNS server only: no name outside of it resolves.
        "resolv.conf": "",
        "Corefile": COREFILE.format(ADDRESS=ADDRESS, DOMAIN=DOMAIN, kubeconfig=kubeconfig("coredns")),
    }


def _network() -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(paths.RUN / "ipam"),
            "ranges": [[{"subnet": POD_RANGE, "rangeStart": FIRST_POD_ADDRESS, "gateway": ADDRESS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": NETWORK, "plugins": [bridge, ports]}


def _kubelet() -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{paths.PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{paths.PKI}/node-{NODE}.crt",
        "tlsPrivateKeyFile": f"{paths.PKI}/node-{NODE}.key",
        "containerRuntimeEndpoint": f"unix://{paths.CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDomain": DOMAIN,
        "clusterDNS": [ADDRESS],
        "resolvConf": f"{paths.CONFIG}/resolv.conf",
        "podLogsDir": f"{paths.LOGS}/pods",
        "volumePluginDir": str(paths.VOLUME_PLUGINS),
        # A developer's disk is often nearly full, and images are built here, not pulled: nothing is thrown away early.
        "evictionHard": {"imagefs.available": "1%", "nodefs.available": "1%", "memory.available": "200Mi"},
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "5s",
        # The training-operator writes its certificate into a Secret and waits for it in its own volume, which may be
        # looked at once a minute only.
        "syncFrequency": "5s",
    }
