"""What a token says of itself: enough to refuse most wrong ones without asking anybody. Nothing here is verified."""

import json
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Any

LEEWAY_SECONDS = 60.0
"""The API server is as generous with clocks."""


@dataclass(frozen=True)
class Claims:
    """Whom a token is for, by its own words."""

    audiences: tuple[str, ...]
    expires: float
    """Unix time."""
    pod_uid: str

    def fit(self, audience: str, now: float) -> bool:
        """Return whether the token is for this audience and not over."""
        return audience in self.audiences and now < self.expires + LEEWAY_SECONDS


def claims(token: str) -> Claims | None:
    """Return what a service-account token says; None for what is no JWT, or is not bound to a pod."""
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        return None
    try:
        header, payload = _decoded(parts[0]), _decoded(parts[1])
        bound = payload["kubernetes.io"]["pod"]["uid"]
        audiences = payload["aud"]
        expires = float(payload["exp"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    audiences = [audiences] if isinstance(audiences, str) else audiences
    if not isinstance(header.get("alg"), str) or not isinstance(bound, str) or not isinstance(audiences, list):
        return None
    return Claims(tuple(item for item in audiences if isinstance(item, str)), expires, bound)


def _decoded(part: str) -> dict[str, Any]:
    found = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
