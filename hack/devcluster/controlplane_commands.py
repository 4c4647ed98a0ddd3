"""The command lines of a control plane without nodes, whose files are all in one folder."""

from pathlib import Path

from devcluster import tools
from devcluster.commands import Command

CONTROLLERS = (
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "resourcequota-controller",
    "serviceaccount-controller",  # without a default ServiceAccount no pod is admitted
)
# audit-policy.json: one entry per request once it is answered, and one when a watch begins.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


def etcd(folder: Path, port: int, peer_port: int) -> Command:
    """The data outlive a killed process, but no loss of power."""
    clients, peers = (f"http://127.0.0.1:{number}" for number in (port, peer_port))
    return [
        tools.binary("etcd"),
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def kube_apiserver(folder: Path, port: int, etcd_port: int) -> Command:
    """Admission as in a cluster, the strict ownership of some clusters too; every request is in logs/audit.log."""
    return [
        tools.binary("kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        # The second one demands the right to update the owner's finalizers of who sets blockOwnerDeletion.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        f"--client-ca-file={folder}/pki/ca.crt",
        f"--tls-cert-file={folder}/pki/kube-apiserver.crt",
        f"--tls-private-key-file={folder}/pki/kube-apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={folder}/pki/sa.pub",
        f"--service-account-signing-key-file={folder}/pki/sa.key",
        f"--audit-policy-file={folder}/audit-policy.json",
        f"--audit-log-path={folder}/logs/audit.log",
    ]


def kube_controller_manager(folder: Path) -> Command:
    """Only what works without nodes, and without the client's usual limits."""
    return [
        tools.binary("kube-controller-manager"),
        f"--kubeconfig={folder}/kube-controller-manager.kubeconfig",
        f"--controllers={','.join(CONTROLLERS)}",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={folder}/pki/sa.key",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]
