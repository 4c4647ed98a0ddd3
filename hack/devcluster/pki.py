"""Certificates of a control plane: one CA, what the components serve with, and what they and people log in with."""

import ipaddress
import json
import shutil
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=3650)
SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


@dataclass(frozen=True)
class Subject:
    """Who a certificate is for: its file name, user name, groups, and the names and addresses it may serve under."""

    file: str
    user: str
    groups: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


def subjects(addresses: Sequence[str], nodes: Mapping[str, str] = {}) -> list[Subject]:
    """The certificates of a control plane reachable at `addresses`, with `nodes` as name -> address."""
    local = ("localhost", "127.0.0.1")
    return [
        Subject("kube-apiserver", "kube-apiserver", hosts=(*SERVICE_NAMES, *local, *addresses)),
        Subject("kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",)),
        Subject("admin", "admin", ("system:masters",)),
        Subject("kube-controller-manager", "system:kube-controller-manager", hosts=local),
        Subject("kube-scheduler", "system:kube-scheduler", hosts=local),
        Subject("kube-proxy", "system:kube-proxy"),
        Subject("coredns", "system:coredns"),
        *(Subject(f"node-{n}", f"system:node:{n}", ("system:nodes",), (n, a)) for n, a in nodes.items()),
    ]


def ensure(folder: Path, wanted: Sequence[Subject]) -> None:
    """`folder` holds ca, sa (service accounts: sa.key, sa.pub) and FILE.key, FILE.crt of every subject, all PEM.

    What is there already stays; a folder is written whole or not at all.
    """
    if folder.exists():
        return
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True, mode=0o700)
    ca_key = _new_key(new / "ca.key")
    ca = _builder("kubernetes-ca", (), ca_key, None).add_extension(x509.BasicConstraints(True, 0), critical=True)
    ca = ca.add_extension(_usage(signs_certificates=True), critical=True)
    _write(new / "ca.crt", ca, ca_key)
    for subject in wanted:
        issue(new, subject)
    accounts = _new_key(new / "sa.key")
    public = accounts.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (new / "sa.pub").write_bytes(public)
    new.rename(folder)


def issue(folder: Path, subject: Subject) -> None:
    """The PKI in `folder` has a new FILE.key and FILE.crt for this subject."""
    ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signer = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey), "ensure() made it"
    key = _new_key(folder / f"{subject.file}.key")
    _write(folder / f"{subject.file}.crt", _leaf(subject, key, ca), signer)


def kubeconfig(folder: Path, subject: str, server: str) -> str:
    """A self-contained kubeconfig (JSON is YAML) with which `subject` of the PKI in `folder` logs in at `server`."""

    def data(file: str) -> str:
        return b64encode((folder / file).read_bytes()).decode()

    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "trl-cluster",
        "contexts": [{"name": "trl-cluster", "context": {"cluster": "trl-cluster", "user": subject}}],
        "clusters": [
            {"name": "trl-cluster", "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}
        ],
        "users": [
            {
                "name": subject,
                "user": {
                    "client-certificate-data": data(f"{subject}.crt"),
                    "client-key-data": data(f"{subject}.key"),
                },
            }
        ],
    }
    return json.dumps(config, indent=2)


def _leaf(subject: Subject, key: ec.EllipticCurvePrivateKey, ca: x509.Certificate) -> x509.CertificateBuilder:
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = _builder(subject.user, subject.groups, key, ca)
    if subject.hosts:
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(h) for h in subject.hosts]), critical=False)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    return builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)


def _builder(
    user: str, groups: Sequence[str], key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None
) -> x509.CertificateBuilder:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    name = x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    # SEC1 ("EC PRIVATE KEY"), which every Kubernetes component reads.
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    path.chmod(0o600)
    return key


def _write(path: Path, builder: x509.CertificateBuilder, signer: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    certificate = builder.sign(signer, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate
