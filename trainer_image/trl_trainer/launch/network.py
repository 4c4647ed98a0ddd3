"""Waits for a network that does not answer: a hub that is away for minutes must not cost an attempt."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from trl_contract.acceptance import hub_tokens
from trl_contract.sources import HubDataset, HubModel
from trl_contract.spec import TrainingSpec
from trl_trainer.errors import TrainerError, is_network
from trl_trainer.launch import watchdog

PATIENCE = "TRL_NETWORK_SECONDS"
"""Variable with the seconds that a rank waits for, if not SECONDS."""
SECONDS = 600.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
HUB = "the hub"

T = TypeVar("T")

_patience = 0.0
_silent_since: dict[str, float] = {}


def be_patient(stall_timeout_seconds: int) -> None:
    """Let this process wait for networks from now on; its peers, which wait for it, must not take it for stalled."""
    global _patience
    _patience = min(float(os.environ.get(PATIENCE, SECONDS)), stall_timeout_seconds / 2)


def patiently(what: str, ask: Callable[[], T]) -> T:
    """Return what `ask` returns; while `what`, a server somewhere, does not answer, call it again and again.

    The pauses grow to LONGEST_PAUSE. When the server has been silent for as long as this process is patient, over
    several calls too: TrainerError(NetworkUnavailable). That is at once where `be_patient` was not called, and for a
    hub that the environment forbids to ask (HF_HUB_OFFLINE).
    """
    pause = FIRST_PAUSE
    while True:
        try:
            found = ask()
        except Exception as error:
            if isinstance(error, TrainerError) or not is_network(error):
                # Somebody has answered.
                _silent_since.pop(what, None)
                raise
            now = time.monotonic()
            patience = 0.0 if what == HUB and is_offline() else _patience
            left = _silent_since.setdefault(what, now) + patience - now
            words = f"{what} does not answer: {(str(error).splitlines() or [type(error).__name__])[0]}"
            if left <= 0:
                # Without its causes: they are long, and tell of nothing but sockets.
                raise TrainerError("NetworkUnavailable", words) from None
        else:
            _silent_since.pop(what, None)
            return found
        print(f"{words}; asking again in {min(pause, left):.0f} s, for {left:.0f} s", flush=True)
        watchdog.beat()
        time.sleep(min(pause, left))
        watchdog.beat()
        pause = min(2 * pause, LONGEST_PAUSE)


def hub_token(spec: TrainingSpec, source: HubModel | HubDataset | None) -> str | None:
    """Return the token of a source of the spec; None where it has none of its own, and the libraries' is sent."""
    ref = source.token_secret_ref if source else None
    variable = next((name for name, known in hub_tokens(spec).items() if known == ref), "")
    return os.environ.get(variable)


@contextmanager
def with_token(spec: TrainingSpec, source: HubModel | HubDataset | None) -> Iterator[None]:
    """Have the libraries send the token of this source until the block ends: they read HF_TOKEN anew for each request.
    For what is loaded by one thread at a time."""
    own, usual = hub_token(spec, source), os.environ.get("HF_TOKEN")
    if own is None or own == usual:
        yield
        return
    os.environ["HF_TOKEN"] = own
    try:
        yield
    finally:
        if usual is None:
            del os.environ["HF_TOKEN"]
        else:
            os.environ["HF_TOKEN"] = usual


def is_offline() -> bool:
    """Return whether the environment forbids to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
