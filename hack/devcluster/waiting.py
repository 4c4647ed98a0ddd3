"""Waiting for a condition with a deadline."""

import time
from collections.abc import Callable

from devcluster.errors import DevClusterError


def wait_for(what: str, check: Callable[[], bool], timeout: float, interval: float = 0.1) -> None:
    """Returns once `check()` is true, polled every `interval` seconds; `check` may raise DevClusterError to give up.

    Raises DevClusterError, which says `what` did not happen, after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise DevClusterError(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)
