"""Whole jobs that nobody has looked at yet, so that the first look needs no read."""

import json
from typing import Any

from trl_operator.plan.observation import Key

Obj = dict[str, Any]

BYTES = 16 * 1024 * 1024
"""As JSON, of all objects that are held; several times as much in memory. A job may be 400 KiB."""


class Held:
    """Objects by key, as many as fit; each is given out once. Whoever decides by one writes under its version."""

    def __init__(self, capacity: int = BYTES) -> None:
        self._free = capacity
        self._held: dict[Key, tuple[Obj, int]] = {}

    def put(self, key: Key, obj: Obj) -> None:
        """Hold the newest state of an object, unless there is no room."""
        self.take(key)
        size = len(json.dumps(obj))
        if size <= self._free:
            self._held[key] = obj, size
            self._free -= size

    def take(self, key: Key) -> Obj | None:
        """Return the object, and hold it no longer; None if it is not held."""
        obj, size = self._held.pop(key, (None, 0))
        self._free += size
        return obj
