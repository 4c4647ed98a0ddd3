"""A job's own authorities are trusted beside the system's, by every library that connects to anything."""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import certifi
import pytest

from trl_operator import certs
from trl_trainer.errors import UserError
from trl_trainer.launch.certificates import VARIABLES, trusted

CLIENTS = {
    "requests": "import requests, sys; requests.get(sys.argv[1]).raise_for_status()",
    "hub": "import sys; from huggingface_hub import get_session; get_session().get(sys.argv[1]).raise_for_status()",
    "ssl": "import sys, urllib.request; urllib.request.urlopen(sys.argv[1]).close()",
    "curl": "curl -sSf",
    "git": "git ls-remote",
}


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        # An empty repository, for git.
        body = b"001e# service=git-upload-pack\n0000" + b"0000"
        self.send_response(200)
        self.send_header("Content-Type", "application/x-git-upload-pack-advertisement")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The certificate of an authority that nobody knows, and the address of a server that it vouches for."""
    made, now = certs.new_authority(datetime.now(UTC)), datetime.now(UTC)
    path = tmp_path_factory.mktemp("authority") / "ca.crt"
    path.write_bytes(made["ca.crt"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certs.load(context, certs.new_serving(made, "127.0.0.1", now))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield path, f"https://127.0.0.1:{server.server_address[1]}/repo"
    server.shutdown()


@pytest.mark.parametrize("name", CLIENTS)
def test_every_library_trusts_the_jobs_authority(name: str, authority: tuple[Path, str], tmp_path: Path) -> None:
    path, url = authority
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    said = CLIENTS[name]
    command = [sys.executable, "-c", said, url] if said.startswith("import") else [*said.split(), url]
    known = trusted({**clean, "TRL_CA_BUNDLE": str(path)}, tmp_path)
    assert subprocess.run(command, env=clean, capture_output=True, timeout=60).returncode != 0
    done = subprocess.run(command, env=clean | known, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_was_trusted_before_still_is(authority: tuple[Path, str], tmp_path: Path) -> None:
    """The system's, and those that a variable has named already."""
    path, _ = authority
    other = tmp_path / "other.crt"
    other.write_bytes(certs.new_authority(datetime.now(UTC))["ca.crt"])
    found = trusted({"REQUESTS_CA_BUNDLE": str(other), "TRL_CA_BUNDLE": str(path)}, tmp_path)
    assert set(found) == set(VARIABLES)
    [whole] = set(found.values())

    def subjects(*files: str | Path) -> set[bytes]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for file in files:
            context.load_verify_locations(file)
        return set(context.get_ca_certs(binary_form=True))

    assert subjects(whole) >= subjects(certifi.where(), other, path)
    assert len(subjects(whole)) >= 100


def test_nothing_changes_without_a_bundle_and_one_without_certificates_is_named(tmp_path: Path) -> None:
    assert trusted({"PATH": "/bin"}, tmp_path) == {}
    (tmp_path / "ca.crt").write_text("no certificate")
    for path in (tmp_path / "ca.crt", tmp_path / "missing.crt"):
        with pytest.raises(UserError, match=r"pod.caBundle: .*\.crt holds no certificates"):
            trusted({"TRL_CA_BUNDLE": str(path)}, tmp_path)
