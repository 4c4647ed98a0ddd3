"""Waiting for a condition with a deadline."""

import ssl
import time
import urllib.request
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


def answers(url: str, context: ssl.SSLContext | None = None) -> bool:
    """Whether there is an answer at `url`, and it is 200; no proxy is asked."""
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # refused, reset, or an answer other than 200
        return False
