"""The receiver's CA and serving certificate, in one Secret of the operator's namespace."""

import logging
import ssl
import tempfile
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trl_operator.errors import ApiError
from trl_operator.kube import SECRETS, Kube
from trl_operator.settings import Settings

logger = logging.getLogger(__name__)

CA_LIFE = timedelta(days=3650)
"""Pods load the CA once, so it must outlive every job."""
SERVING_LIFE = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)

Pem = dict[str, bytes]
"""ca.crt, ca.key, tls.crt and tls.key."""


def new_pair(host: str, now: datetime) -> Pem:
    """Return a new CA and a serving certificate for `host` by it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trl-operator receiver CA")])
    builder = _builder(name, name, key.public_key(), now, CA_LIFE)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return renewed({"ca.crt": certificate.public_bytes(Encoding.PEM), "ca.key": _pem(key)}, host, now)


def renewed(pem: Pem, host: str, now: datetime) -> Pem:
    """Return the same CA with a new serving certificate for `host`."""
    authority = x509.load_pem_x509_certificate(pem["ca.crt"])
    authority_key = load_pem_private_key(pem["ca.key"], password=None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey), "the CA is made by new_pair"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trl-operator receiver")])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(name, authority.subject, key.public_key(), now, SERVING_LIFE)
        .add_extension(x509.SubjectAlternativeName([_name(host)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return {**pem, "tls.crt": certificate.public_bytes(Encoding.PEM), "tls.key": _pem(key)}


def is_fresh(pem: Pem, host: str, now: datetime) -> bool:
    """Return whether the serving certificate is for `host` and holds for a good while."""
    certificate = x509.load_pem_x509_certificate(pem["tls.crt"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return _name(host) in names and certificate.not_valid_after_utc - now > RENEW_BEFORE


async def ensure(kube: Kube, settings: Settings) -> Pem:
    """Return what the Secret holds, made or renewed if need be; replicas that race agree on one of them."""
    host = urlsplit(settings.receiver_url).hostname
    assert host is not None, "settings checks the URL"
    now = datetime.now(UTC)
    while True:
        secret = await kube.get(SECRETS, settings.namespace, settings.secret_name)
        if secret is not None:
            pem = {name: b64decode(value) for name, value in secret["data"].items()}
            if is_fresh(pem, host, now):
                return pem
            pem = renewed(pem, host, now)
        else:
            pem = new_pair(host, now)
        data = {name: b64encode(value).decode() for name, value in pem.items()}
        try:
            if secret is not None:
                await kube.replace(SECRETS, settings.namespace, settings.secret_name, secret | {"data": data})
            else:
                await kube.create(SECRETS, _secret(settings, data), settings.namespace)
        except ApiError as error:
            if error.status != 409:
                raise
            continue
        logger.info("wrote the receiver's certificates to Secret %s", settings.secret_name)
        return pem


def load(context: ssl.SSLContext, pem: Pem) -> None:
    """Make the server answer new connections with this certificate."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tls.pem")
        path.touch(mode=0o600)
        path.write_bytes(pem["tls.crt"] + pem["tls.key"])
        context.load_cert_chain(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _secret(settings: Settings, data: dict[str, str]) -> dict[str, object]:
    metadata = {"name": settings.secret_name, "namespace": settings.namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
