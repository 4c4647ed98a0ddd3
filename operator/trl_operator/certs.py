"""The receiver's CA and serving certificate, in two Secrets of the operator's namespace."""

import asyncio
import logging
import ssl
import tempfile
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
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

PAUSE_AFTER_FAILURE = 5.0

Pem = dict[str, bytes]
"""Some of ca.crt, ca.key, tls.crt and tls.key."""


def new_authority(now: datetime) -> Pem:
    """Return a new CA: ca.crt and ca.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trl-operator receiver CA")])
    builder = _builder(name, name, key.public_key(), now, CA_LIFE)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return {"ca.crt": certificate.public_bytes(Encoding.PEM), "ca.key": _pem(key)}


def new_serving(authority: Pem, host: str, now: datetime) -> Pem:
    """Return a serving certificate for `host` by this CA: tls.crt and tls.key."""
    issuer = x509.load_pem_x509_certificate(authority["ca.crt"])
    authority_key = _private_key(authority["ca.key"])
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trl-operator receiver")])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(name, issuer.subject, key.public_key(), now, SERVING_LIFE)
        .add_extension(x509.SubjectAlternativeName([_name(host)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return {"tls.crt": certificate.public_bytes(Encoding.PEM), "tls.key": _pem(key)}


def is_authority(pem: Pem) -> bool:
    """Return whether a CA is there with the key that belongs to it."""
    try:
        certificate = x509.load_pem_x509_certificate(pem["ca.crt"])
        return certificate.public_key() == _private_key(pem["ca.key"]).public_key()
    except (KeyError, ValueError, TypeError):
        return False


def is_fresh(pem: Pem, host: str, now: datetime) -> bool:
    """Return whether a serving certificate with its key is there, for `host` and for a good while."""
    try:
        certificate = x509.load_pem_x509_certificate(pem["tls.crt"])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        load_pem_private_key(pem["tls.key"], password=None)
    except (KeyError, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return _name(host) in names and certificate.not_valid_after_utc - now > RENEW_BEFORE


def is_signed_by(pem: Pem, authority: Pem) -> bool:
    """Return whether the serving certificate is one of this CA's."""
    try:
        certificate = x509.load_pem_x509_certificate(pem["tls.crt"])
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority["ca.crt"]))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class Certificates:
    """The receiver's certificates in two Secrets: the CA with its key, and what the receiver serves with.

    What the CA's Secret holds counts; when it is lost, the CA in memory is written again, so that pods that trust it
    go on reporting. A serving certificate beside which nobody knows a CA's key is left as it is while it holds.
    """

    def __init__(self, kube: Kube, settings: Settings) -> None:
        self._kube = kube
        self._settings = settings
        self._authority: Pem | None = None
        self.ca = b""
        """The authority's certificate; empty before `ensure` has returned for the first time."""

    async def ensure(self) -> None:
        """Make both Secrets what they have to be; replicas that race agree on one CA. Raises ApiError."""
        while True:
            try:
                return await self._ensure(datetime.now(UTC))
            except ApiError as error:
                if error.status != 409:
                    raise

    async def _ensure(self, now: datetime) -> None:
        settings, host = self._settings, urlsplit(self._settings.receiver_url).hostname
        assert host is not None, "settings checks the URL"
        stored_ca, stored = await self._read(settings.ca_secret_name), await self._read(settings.secret_name)
        known, serving = _data(stored_ca), _data(stored)
        # Earlier versions kept the CA's key beside the serving certificate.
        authority = next(filter(is_authority, (known, self._authority or {}, serving)), None)
        fresh = is_fresh(serving, host, now)
        if authority is None and fresh and serving.get("ca.crt"):
            self.ca = serving["ca.crt"]
            return
        authority = _only(authority or new_authority(now), "ca.crt", "ca.key")
        if known != authority:
            await self._write(settings.ca_secret_name, stored_ca, authority)
        self._authority = authority
        if not fresh or not is_signed_by(serving, authority):
            serving = new_serving(authority, host, now)
        wanted = _only({**serving, "ca.crt": authority["ca.crt"]}, "ca.crt", "tls.crt", "tls.key")
        if _data(stored) != wanted:
            await self._write(settings.secret_name, stored, wanted)
        self.ca = authority["ca.crt"]

    async def keep(self, seconds: float) -> None:
        """Look after the Secrets for ever, this often."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.ensure()
            except ApiError as error:
                logger.warning("certificates: %s", error)

    async def first(self) -> None:
        """Return once the Secrets are what they have to be, however long the API server takes to answer."""
        while True:
            try:
                return await self.ensure()
            except ApiError as error:
                logger.warning("certificates: %s", error)
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _read(self, name: str) -> dict[str, Any] | None:
        return await self._kube.get(SECRETS, self._settings.namespace, name)

    async def _write(self, name: str, before: dict[str, Any] | None, pem: Pem) -> None:
        data = {key: b64encode(value).decode() for key, value in pem.items()}
        if before is not None:
            await self._kube.replace(SECRETS, self._settings.namespace, name, before | {"data": data})
        else:
            metadata = {"name": name, "namespace": self._settings.namespace}
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}
            await self._kube.create(SECRETS, body, self._settings.namespace)
        logger.info("wrote Secret %s", name)


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


def _data(secret: dict[str, Any] | None) -> Pem:
    """Return what a Secret holds; nothing if there is none, or if somebody has made an empty one."""
    return {name: b64decode(value) for name, value in ((secret or {}).get("data") or {}).items()}


def _only(pem: Pem, *names: str) -> Pem:
    return {name: pem[name] for name in names}


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the CA's key is made by new_authority")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
