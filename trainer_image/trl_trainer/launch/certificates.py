"""The certificates of authorities that are trusted beside the system's own."""

import ssl
from collections.abc import Mapping
from pathlib import Path

import certifi

from trl_contract.report import CA_BUNDLE
from trl_trainer.errors import UserError

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE")
"""What Python's ssl and httpx, requests, curl, git and boto read; each takes a file in place of the system's."""


def trusted(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the variables that have every library trust the job's own authorities beside the system's; {} without any.

    The file with both is written into `folder`, with what the variables name already. Raises UserError (InvalidSpec) if
    the job's file holds no certificates.
    """
    if CA_BUNDLE not in environment:
        return {}
    own = environment[CA_BUNDLE]
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(own)
    except OSError as error:
        raise UserError("InvalidSpec", f"pod.caBundle: {own} holds no certificates in PEM: {error}") from error
    system = [certifi.where(), ssl.get_default_verify_paths().cafile or "", *map(environment.get, VARIABLES), own]
    known = dict.fromkeys(path for path in system if path and Path(path).is_file())
    whole = folder / "ca-certificates.crt"
    whole.write_bytes(b"\n".join(Path(path).read_bytes() for path in known))
    return dict.fromkeys(VARIABLES, str(whole))
