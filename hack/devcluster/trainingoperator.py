"""What the training-operator needs to run outside a cluster with its admission webhook on."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from devcluster import tools

NAMESPACE = "kubeflow"
# The operator waits until this file exists, wherever it reads its certificate from: it reads from $TMPDIR (Go's
# os.TempDir). So every copy has a certificate of its own, and this file is never read.
MARKER = Path("/tmp/k8s-webhook-server/serving-certs/tls.crt")
CERTIFICATES = Path("k8s-webhook-server/serving-certs")  # in $TMPDIR


def crd() -> Path:
    """The PyTorchJob CRD of the version that is built; only server-side apply takes a file of this size."""
    return tools.manifests("training-operator") / "base" / "crds" / "kubeflow.org_pytorchjobs.yaml"


def command(kubeconfig: Path, webhook_port: int, health_port: int) -> list[str | Path]:
    """The command line; TMPDIR in its environment has to be the folder that `certificates` was given."""
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


def certificates(folder: Path) -> dict[str, bytes]:
    """ca.crt, ca.key, tls.crt and tls.key, by which the webhook serves on 127.0.0.1; the pair is also in `folder`.

    The operator's certificate rotator parses the CA's key as RSA in PKCS1 and replaces what lacks these names.
    """
    ca_key, key = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    ca_name = "training-operator-ca"
    ca = _certificate(ca_name, [x509.DNSName(ca_name)], ca_key, ca_name, ca_key)
    hosts = [x509.DNSName(f"training-operator.{NAMESPACE}.svc"), x509.IPAddress(ip_address("127.0.0.1"))]
    pair = {
        "tls.crt": _certificate("training-operator", hosts, key, ca_name, ca_key),
        "tls.key": _private(key),
    }
    (folder / CERTIFICATES).mkdir(parents=True)
    for name, content in pair.items():
        (folder / CERTIFICATES / name).write_bytes(content)
    return {"ca.crt": ca, "ca.key": _private(ca_key), **pair}


def objects(certificates: dict[str, bytes], webhook_port: int) -> list[dict[str, Any]]:
    """What has to be in the API server before the operator starts: namespace, Secret, webhook configuration."""
    [shipped] = yaml.safe_load_all((tools.manifests("training-operator") / "base/webhook/manifests.yaml").read_text())
    [webhook] = [hook for hook in shipped["webhooks"] if hook["rules"][0]["resources"] == ["pytorchjobs"]]
    path = webhook["clientConfig"]["service"]["path"]
    webhook["clientConfig"] = {
        "url": f"https://127.0.0.1:{webhook_port}{path}",
        "caBundle": b64encode(certificates["ca.crt"]).decode(),
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "training-operator-webhook-cert", "namespace": NAMESPACE},
            "data": {name: b64encode(content).decode() for name, content in certificates.items()},
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "validator.training-operator.kubeflow.org"},
            "webhooks": [webhook],
        },
    ]


def _certificate(
    subject: str, hosts: Sequence[x509.GeneralName], key: rsa.RSAPrivateKey, issuer: str, signer: rsa.RSAPrivateKey
) -> bytes:
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=365))  # the rotator renews what has less than 90 days left
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def _private(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
