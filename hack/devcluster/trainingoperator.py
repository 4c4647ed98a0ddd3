"""What the training-operator needs to run outside a cluster with its admission webhook on."""

from pathlib import Path
from typing import Any

import yaml

from devcluster import tools, webhooks

NAMESPACE = "kubeflow"
# The operator waits until this file exists, wherever it reads its certificate from: it reads from $TMPDIR. So every
# copy has a certificate of its own, and this file is never read.
MARKER = Path("/tmp") / webhooks.FOLDER / "tls.crt"


def crd() -> Path:
    """The PyTorchJob CRD of the version that is built; only server-side apply takes a file of this size."""
    return tools.manifests("training-operator") / "base" / "crds" / "kubeflow.org_pytorchjobs.yaml"


def command(kubeconfig: Path, webhook_port: int, health_port: int) -> list[str | Path]:
    """The command line; TMPDIR in its environment has to be the folder that `webhooks.certificates` was given."""
    MARKER.parent.mkdir(parents=True, exist_ok=True)
    MARKER.touch()
    return [
        tools.binary("training-operator"),
        f"--kubeconfig={kubeconfig}",
        "--enable-scheme=pytorchjob",
        f"--webhook-server-port={webhook_port}",
        f"--health-probe-bind-address=127.0.0.1:{health_port}",
        "--metrics-bind-address=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--controller-threads=4",
    ]


def objects(certificates: dict[str, bytes], webhook_port: int) -> list[dict[str, Any]]:
    """What has to be in the API server before the operator starts: namespace, Secret, webhook configuration."""
    [shipped] = yaml.safe_load_all((tools.manifests("training-operator") / "base/webhook/manifests.yaml").read_text())
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "validator.training-operator.kubeflow.org"},
        "webhooks": [hook for hook in shipped["webhooks"] if hook["rules"][0]["resources"] == ["pytorchjobs"]],
    }
    webhooks.call_at(configuration, webhook_port, certificates)
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "training-operator-webhook-cert", "namespace": NAMESPACE},
            "data": webhooks.data(certificates),
        },
        configuration,
    ]
