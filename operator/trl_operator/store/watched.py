"""What a process watches, and where it goes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl_operator.resource import Resource

Obj = dict[str, Any]


@dataclass(frozen=True)
class Watched:
    """A resource whose objects somebody keeps."""

    resource: Resource
    put: Callable[[Obj], None]
    """Take over the state of an object, unless a newer one is known."""
    drop: Callable[[Obj], None]
    """The object is gone; this was its last state."""
    sweep: Callable[[list[str], set[str], int], None]
    """Of these namespaces (all if none is named), a list of this version holds only objects with these uids."""
    selector: str = ""
    """Label selector."""
    fields: str = ""
    """Field selector."""


def covers(namespaces: list[str], namespace: str) -> bool:
    """Return whether a list of these namespaces, all if there are none, holds objects of this one."""
    return not namespaces or namespace in namespaces
