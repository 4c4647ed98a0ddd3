"""The webhooks of operators that run beside a control plane alone: what they serve with, and where they are called."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

# Where controller-runtime reads the certificate, in $TMPDIR (Go's os.TempDir).
FOLDER = Path("k8s-webhook-server/serving-certs")
# Rotators of certificates replace what lacks the name of their authority and of their service.
AUTHORITIES = ("training-operator-ca", "kueue-ca")
SERVICES = ("training-operator.kubeflow.svc", "kueue-webhook-service.kueue-system.svc")


def certificates(folder: Path) -> dict[str, bytes]:
    """ca.crt, ca.key, tls.crt and tls.key, by which all of them serve on 127.0.0.1; the pair is also in `folder`.

    The CA's key is RSA in PKCS1, as rotators parse it.
    """
    ca_key, key = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    issuer = "webhooks-ca"
    names = [x509.DNSName(name) for name in AUTHORITIES]
    hosts = [*(x509.DNSName(name) for name in SERVICES), x509.IPAddress(ip_address("127.0.0.1"))]
    pair = {"tls.crt": _certificate("webhooks", hosts, key, issuer, ca_key), "tls.key": _private(key)}
    (folder / FOLDER).mkdir(parents=True)
    for name, content in pair.items():
        (folder / FOLDER / name).write_bytes(content)
    return {"ca.crt": _certificate(issuer, names, ca_key, issuer, ca_key), "ca.key": _private(ca_key), **pair}


def data(certificates: dict[str, bytes]) -> dict[str, str]:
    """The certificates as the data of a Secret."""
    return {name: b64encode(content).decode() for name, content in certificates.items()}


def call_at(found: dict[str, Any], port: int, certificates: dict[str, bytes]) -> None:
    """The API server calls the webhooks of this webhook configuration or CRD at 127.0.0.1, not through a Service."""
    clients = [hook["clientConfig"] for hook in found.get("webhooks", ())]
    if conversion := found.get("spec", {}).get("conversion", {}).get("webhook"):
        clients.append(conversion["clientConfig"])
    for called in clients:
        called["url"] = f"https://127.0.0.1:{port}{called.pop('service')['path']}"
        called["caBundle"] = b64encode(certificates["ca.crt"]).decode()


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
        .not_valid_after(now + timedelta(days=365))  # rotators renew what has less than 90 days left
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def _private(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
