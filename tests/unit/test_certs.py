"""The receiver's certificates: two Secrets that survive being emptied, deleted and raced for."""

import asyncio
import logging
import ssl
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from trl_operator import certs
from trl_operator.certs import Certificates, Pem, is_authority, is_fresh, is_signed_by, new_authority, new_serving
from trl_operator.errors import ApiError
from trl_operator.receiver.serving import Serving
from trl_operator.settings import Settings

HOST = "op.trl.svc"
SETTINGS = Settings(namespace="trl", identity="one", trainer_image="t", receiver_url=f"https://{HOST}:10443")


class Secrets:
    """Keeps Secrets as the API server does; `meanwhile` is done once before a write."""

    def __init__(self, **stored: Pem) -> None:
        self.writes = 0
        self.meanwhile: Callable[[], None] | None = None
        self.stored: dict[str, dict[str, Any]] = {}
        for name, pem in stored.items():
            self.put(f"trl-operator-{name.replace('_', '-')}", pem)

    def put(self, name: str, pem: Pem) -> None:
        data = {key: b64encode(value).decode() for key, value in pem.items()}
        self.stored[name] = {"metadata": {"name": name, "resourceVersion": str(self.writes)}, "data": data}

    def pem(self, name: str) -> Pem:
        return {key: b64decode(value) for key, value in self.stored[name]["data"].items()}

    @property
    def ca(self) -> Pem:
        return self.pem("trl-operator-receiver-ca")

    @property
    def serving(self) -> Pem:
        return self.pem("trl-operator-receiver")

    async def get(self, _: Any, __: str, name: str) -> dict[str, Any] | None:
        return self.stored.get(name)

    async def create(self, _: Any, body: dict[str, Any], __: str) -> None:
        self._write(body["metadata"]["name"], body, None)

    async def replace(self, _: Any, __: str, name: str, body: dict[str, Any]) -> None:
        self._write(name, body, body["metadata"]["resourceVersion"])

    def _write(self, name: str, body: dict[str, Any], version: str | None) -> None:
        if self.meanwhile:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        known = self.stored.get(name)
        if (known and known["metadata"]["resourceVersion"]) != version:
            raise ApiError(409, "conflict")
        self.writes += 1
        self.stored[name] = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.writes)}}


def ensure(secrets: Secrets, certificates: Certificates | None = None) -> Certificates:
    found = certificates or Certificates(secrets, SETTINGS)  # type: ignore[arg-type]
    asyncio.run(found.ensure())
    return found


def holds(secrets: Secrets, certificates: Certificates) -> None:
    """The receiver serves with what pods trust that are started now, and does not hold the CA's key."""
    assert secrets.serving.keys() == {"ca.crt", "tls.crt", "tls.key"}
    assert is_fresh(secrets.serving, HOST, datetime.now(UTC))
    assert is_signed_by(secrets.serving, {"ca.crt": certificates.ca})


def test_a_certificate_is_for_the_receivers_host_and_renewed_in_time(now: datetime) -> None:
    authority = new_authority(now)
    assert is_authority(authority)
    ca = x509.load_pem_x509_certificate(authority["ca.crt"])
    assert ca.not_valid_after_utc - now > timedelta(days=3600)
    for later in (timedelta(0), timedelta(days=61)):
        serving = new_serving(authority, HOST, now + later)
        assert is_fresh(serving, HOST, now + later)
        assert is_signed_by(serving, authority)
        assert not is_fresh(serving, "other.trl.svc", now + later)
        assert not is_fresh(serving, HOST, now + later + timedelta(days=61))
        assert not is_signed_by(serving, new_authority(now))


@pytest.mark.parametrize("change", [{"ca.key": b"x"}, {"ca.crt": b"x"}, {"ca.key": b""}, {"ca.crt": b""}])
def test_half_a_ca_is_none(now: datetime, change: Pem) -> None:
    authority = new_authority(now)
    assert not is_authority({**authority, **change})
    assert not is_authority({**authority, "ca.key": new_authority(now)["ca.key"]})
    assert not is_authority({})
    assert not is_fresh({}, HOST, now)


def test_both_secrets_are_made_once_and_then_left_alone() -> None:
    secrets = Secrets()
    certificates = ensure(secrets)
    holds(secrets, certificates)
    assert secrets.ca.keys() == {"ca.crt", "ca.key"}
    assert secrets.writes == 2
    for other in (certificates, None):
        assert ensure(secrets, other).ca == certificates.ca
    assert secrets.writes == 2


@pytest.mark.parametrize("empty", [{}, {"ca.crt": b"", "tls.crt": b"nonsense"}])
def test_empty_secrets_made_beforehand_are_filled(empty: Pem) -> None:
    secrets = Secrets(receiver=empty, receiver_ca={})
    holds(secrets, ensure(secrets))
    del secrets.stored["trl-operator-receiver"]["data"]
    holds(secrets, ensure(secrets))


def test_the_ca_in_memory_is_written_again_when_its_secret_is_lost() -> None:
    secrets = Secrets()
    certificates = ensure(secrets)
    before = certificates.ca
    for lost in (["receiver"], ["receiver-ca"], ["receiver", "receiver-ca"]):
        for name in lost:
            del secrets.stored[f"trl-operator-{name}"]
        ensure(secrets, certificates)
        holds(secrets, certificates)
        assert (certificates.ca, secrets.ca["ca.crt"]) == (before, before), "running pods trust it"
    secrets.put("trl-operator-receiver-ca", {})
    ensure(secrets, certificates)
    assert secrets.ca["ca.crt"] == before


def test_a_serving_certificate_whose_ca_nobody_knows_serves_on(now: datetime) -> None:
    secrets = Secrets()
    before = ensure(secrets).ca
    del secrets.stored["trl-operator-receiver-ca"]
    again = ensure(secrets)
    assert again.ca == before
    assert "trl-operator-receiver-ca" not in secrets.stored


def test_an_earlier_versions_secret_gives_its_ca_and_loses_the_key() -> None:
    authority = new_authority(datetime.now(UTC))
    serving = new_serving(authority, HOST, datetime.now(UTC))
    secrets = Secrets(receiver={**authority, **serving})
    certificates = ensure(secrets)
    holds(secrets, certificates)
    assert certificates.ca == authority["ca.crt"]
    assert secrets.ca == authority
    assert secrets.serving["tls.crt"] == serving["tls.crt"], "no new certificate is needed"


def test_replicas_that_race_agree_on_one_ca() -> None:
    secrets = Secrets()
    others: list[Certificates] = []

    async def main() -> Certificates:
        mine = Certificates(secrets, SETTINGS)  # type: ignore[arg-type]
        winner = {"receiver-ca": new_authority(datetime.now(UTC))}
        secrets.meanwhile = lambda: secrets.put("trl-operator-receiver-ca", winner["receiver-ca"])
        await mine.ensure()
        assert mine.ca == winner["receiver-ca"]["ca.crt"]
        return mine

    others.append(asyncio.run(main()))
    holds(secrets, others[0])


def test_an_api_server_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certs, "PAUSE_AFTER_FAILURE", 0.01)
    secrets = Secrets()
    secrets.meanwhile = lambda: (_ for _ in ()).throw(ApiError(0, "away"))
    certificates = Certificates(secrets, SETTINGS)  # type: ignore[arg-type]
    asyncio.run(asyncio.wait_for(certificates.first(), 5))
    holds(secrets, certificates)


# -- the receiver's side


def write(folder: Path, pem: Pem) -> None:
    for name in ("tls.crt", "tls.key"):
        (folder / name).write_bytes(pem[name])


def test_the_receiver_serves_with_what_its_files_hold_now(
    tmp_path: Path, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    authority = new_authority(datetime.now(UTC))
    first, second = (new_serving(authority, "localhost", datetime.now(UTC)) for _ in range(2))
    serving = Serving(tmp_path)
    assert not serving.look()
    write(tmp_path, first)
    assert serving.look()
    assert served(serving, authority) == first["tls.crt"]
    (tmp_path / "tls.crt").write_bytes(second["tls.crt"])
    assert serving.look(), "half of a new pair is no pair"
    assert served(serving, authority) == first["tls.crt"]
    write(tmp_path, second)
    serving.look()
    assert served(serving, authority) == second["tls.crt"]
    told = len(caplog.records)
    serving.look()
    assert len(caplog.records) == told
    (tmp_path / "tls.key").unlink()
    assert serving.look(), "what is loaded serves on"


def served(serving: Serving, authority: Pem) -> bytes:
    """The certificate that a client gets which trusts the authority."""
    client = ssl.create_default_context(cadata=authority["ca.crt"].decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.context.wrap_bio(to_server, to_client, server_side=True)
    wanting = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        for side in (wanting, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = wanting.getpeercert(binary_form=True)
    assert found is not None
    return ssl.DER_cert_to_PEM_cert(found).encode()
