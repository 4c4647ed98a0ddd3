"""How long each check took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures checks by name, in the order in which they were made."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Measure what is done in the context; what has been measured under this name is added."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start

    def __str__(self) -> str:
        each = [f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items()]
        return f"the checks took {sum(self._seconds.values()):.1f} s: {', '.join(each)}"
