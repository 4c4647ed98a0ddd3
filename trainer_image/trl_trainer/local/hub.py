"""Asks once whether the hub answers, before its client asks again and again for minutes."""

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from trl_contract.base import Model
from trl_contract.sources import HubDataset, HubModel
from trl_trainer.errors import TrainerError
from trl_trainer.launch.network import is_offline
from trl_trainer.local.resource import Resource

SECONDS = 2.5
"""A hub that has not answered then is away."""


def check(resource: Resource, *, has_rows: bool) -> None:
    """Do nothing if the hub answers, or what the job names there is on this machine: models in the cache, and the rows
    if `has_rows`, written by an earlier attempt. The libraries do not ask a hub that does not answer.

    TrainerError(NetworkUnavailable) names what is not here.
    """
    named = list(_named(resource.training, ""))
    if not named or (not is_offline() and _answers()):
        return
    why = "HF_HUB_OFFLINE is set" if is_offline() else f"{_endpoint()} does not answer"
    # Before the first import of its client, which reads it then.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import try_to_load_from_cache

    missing = [
        f"{field} ({source.repo})"
        for field, source in named
        if (isinstance(source, HubDataset) and not has_rows)
        or (
            isinstance(source, HubModel)
            and not isinstance(try_to_load_from_cache(source.repo, "config.json", revision=source.revision), str)
        )
    ]
    if missing:
        raise TrainerError(
            "NetworkUnavailable",
            f"{why}, and this is not on this machine: {', '.join(missing)}; try again with a network, or give volumes",
        )


def _named(value: Any, field: str) -> Iterator[tuple[str, HubModel | HubDataset]]:
    if isinstance(value, HubModel | HubDataset):
        yield field, value
    elif isinstance(value, Model):
        for name, info in type(value).model_fields.items():
            yield from _named(getattr(value, name), f"{field}.{info.alias}" if field else str(info.alias))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _named(item, f"{field}[{i}]")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _answers() -> bool:
    """Return whether something at the hub's address answers in time. In a thread: a name server may take longer."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(_endpoint(), method="HEAD"), timeout=SECONDS).close()
        except urllib.error.HTTPError:
            pass  # whatever it says, it is there
        except (OSError, http.client.HTTPException) as error:
            if not isinstance(getattr(error, "reason", error), ssl.SSLError):
                return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answered.is_set()
