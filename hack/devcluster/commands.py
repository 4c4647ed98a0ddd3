"""The command line of every component: pure, nothing is started or written here."""

from pathlib import Path

from devcluster import paths
from devcluster.layout import ADDRESS, DOMAIN, NODE, POD_RANGE, SERVICE_RANGE

Command = list[str | Path]


def etcd(binary: Path) -> Command:
    """Without fsync: a machine that loses power loses the cluster's state, a killed process does not."""
    clients, peers = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        binary,
        f"--name={NODE}",
        f"--data-dir={paths.ETCD}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster={NODE}={peers}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def kube_apiserver(binary: Path) -> Command:
    """Node and RBAC authorization; Pod Security admission and the other defaults stay on."""
    return [
        binary,
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={ADDRESS}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={paths.PKI}/ca.crt",
        f"--tls-cert-file={paths.PKI}/kube-apiserver.crt",
        f"--tls-private-key-file={paths.PKI}/kube-apiserver.key",
        f"--kubelet-client-certificate={paths.PKI}/kube-apiserver-kubelet-client.crt",
        f"--kubelet-client-key={paths.PKI}/kube-apiserver-kubelet-client.key",
        f"--kubelet-certificate-authority={paths.PKI}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
        f"--service-account-key-file={paths.PKI}/sa.pub",
        f"--service-account-signing-key-file={paths.PKI}/sa.key",
    ]


def kube_controller_manager(binary: Path) -> Command:
    """Signs certificates, fills service accounts' CA, and runs every default controller."""
    return [
        binary,
        *_login("kube-controller-manager"),
        f"--root-ca-file={paths.PKI}/ca.crt",
        f"--service-account-private-key-file={paths.PKI}/sa.key",
        "--use-service-account-credentials=true",
        f"--cluster-signing-cert-file={paths.PKI}/ca.crt",
        f"--cluster-signing-key-file={paths.PKI}/ca.key",
        f"--cluster-cidr={POD_RANGE}",
        "--allocate-node-cidrs=false",
        # Where they would look for volume plugins; the default is outside of the cluster's folders.
        f"--flex-volume-plugin-dir={paths.VOLUME_PLUGINS}",
    ]


def kube_scheduler(binary: Path) -> Command:
    """The default scheduler."""
    return [binary, *_login("kube-scheduler")]


def containerd(binary: Path) -> Command:
    """A containerd of our own, beside any that the machine runs already."""
    return [binary, f"--config={paths.CONFIG}/containerd.toml", f"--address={paths.CONTAINERD_SOCKET}"]


def kubelet(binary: Path) -> Command:
    """The kubelet of the only node."""
    return [
        binary,
        f"--config={paths.CONFIG}/kubelet.yaml",
        f"--kubeconfig={kubeconfig(f'node-{NODE}')}",
        f"--hostname-override={NODE}",
        f"--node-ip={ADDRESS}",
        f"--root-dir={paths.KUBELET_ROOT}",
    ]


def kube_proxy(binary: Path) -> Command:
    """Services by iptables rules."""
    return [
        binary,
        f"--kubeconfig={kubeconfig('kube-proxy')}",
        f"--cluster-cidr={POD_RANGE}",
        "--proxy-mode=iptables",
        f"--hostname-override={NODE}",
        "--conntrack-max-per-core=0",
    ]


def coredns(binary: Path) -> Command:
    """Cluster DNS on the host."""
    return [binary, f"-conf={paths.CONFIG}/Corefile"]


def kubeconfig(subject: str) -> Path:
    """Where the kubeconfig of this subject of the PKI is."""
    return paths.KUBECONFIG if subject == "admin" else paths.CONFIG / f"{subject}.kubeconfig"


def _login(name: str) -> Command:
    file = kubeconfig(name)
    return [
        f"--kubeconfig={file}",
        f"--authentication-kubeconfig={file}",
        f"--authorization-kubeconfig={file}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]
