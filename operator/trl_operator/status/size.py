"""A status holds at most 12 KiB. What is too much is cut here, before either of its writers writes its part."""

import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

Status = dict[str, Any]

MAX_BYTES = 12 * 1024
"""Of the status as compact JSON."""
LEAST_OWN, MOST_OWN = 5 * 1024, 7 * 1024
"""What the part of trl-operator-status may count on: reports leave it the one, and what it says when an attempt has
ended, like the log of a failure, up to the other."""
SAYING_SO = 256
"""For the names of what was cut."""
MARK = "[...]"
"""In place of what was cut from a text."""


@dataclass(frozen=True)
class Cut:
    """What is left of a field: so many bytes of a text, or items of a list. 0: nothing."""

    path: str
    """Names with dots between; all items of a list on the way."""
    keep: int
    end: bool = False
    """The end is kept, where the start would be."""


OWN_CUTS = (
    Cut("waiting.message", 512),
    Cut("failure.log", 1024, end=True),
    Cut("conditions.message", 1024),
    Cut("failure.hint", 512),
    Cut("failure.message", 512),
    Cut("conditions.message", 512),
    Cut("failure.log", 512, end=True),
    Cut("artifacts.fetchCommand", 0),
    Cut("failure.log", 256, end=True),
    Cut("conditions.message", 128),
    Cut("waiting.message", 256),
    Cut("failure.hint", 256),
    Cut("failure.message", 256),
    Cut("warnings.hint", 128),
    Cut("warnings.message", 128),
)
"""In this order, one after the other until the rest fits. Texts say themselves that they were cut; a fetchCommand is
absent where it is too long."""

REPORT_CUTS = (
    Cut("checkpoints.metrics", 0),
    Cut("progress.metrics", 12),
    Cut("rewards", 8),
    Cut("progress.warnings", 4),
    Cut("evaluation.before", 12),
    Cut("evaluation.after", 12),
    Cut("checkpoints", 2, end=True),
    Cut("progress.metrics", 0),
    Cut("rewards", 0),
    Cut("progress.warnings", 1),
    Cut("evaluation.skipped.message", 256),
    Cut("evaluation.before", 0),
    Cut("evaluation.after", 0),
    Cut("progress.artifacts", 0),
    Cut("warnings.hint", 128),
    Cut("warnings.message", 128),
)
"""The same of the part of trl-operator-progress; progress.cut says which. Of metrics, what kubectl get prints and what
other jobs ask for (accuracy) stay."""


def size(part: Status) -> int:
    """Return the bytes of a part of a status."""
    return len(json.dumps(part, ensure_ascii=False, separators=(",", ":")).encode())


def fit(own: Status, reported: Status) -> Status:
    """Return what trl-operator-status writes beside what has been reported."""
    return _cut(own, MAX_BYTES - size(reported), OWN_CUTS)[0]


def fit_report(reported: Status, own: Status) -> Status:
    """Return what trl-operator-progress writes beside what trl-operator-status says, or is about to say."""
    reports, said = size(reported), size(own)
    if reports <= MAX_BYTES - max(said, MOST_OWN):
        return reported
    shortest = size(_cut(own, 0, OWN_CUTS)[0])
    room = MAX_BYTES - max(LEAST_OWN, min(said, MOST_OWN), shortest)
    if reports <= room:
        return reported
    fitting, cut = _cut(reported, room - SAYING_SO, REPORT_CUTS)
    if cut and "progress" in fitting:
        fitting["progress"]["cut"] = sorted({*fitting["progress"].get("cut", ()), *cut})
    return fitting


def _cut(part: Status, room: int, cuts: Iterable[Cut]) -> tuple[Status, list[str]]:
    """Return the part cut as far as it has to be, or can be, and the paths of what was cut."""
    if size(part) <= room:
        return part, []
    part, found = deepcopy(part), []
    for cut in cuts:
        if _apply(part, cut.path.split("."), cut) and cut.path not in found:
            found.append(cut.path)
        if size(part) <= room:
            break
    return part, found


def _apply(node: Any, path: list[str], cut: Cut) -> bool:
    """Cut a field below `node`; return whether there was more of it."""
    if isinstance(node, list):
        found = [_apply(item, path, cut) for item in node]
        return any(found)
    name, *rest = path
    if name not in node:
        return False
    if rest:
        return _apply(node[name], rest, cut)
    before = node[name]
    after = _shorter_text(before, cut) if isinstance(before, str) else _fewer(before, cut)
    if after:
        node[name] = after
    else:
        del node[name]
    return bool(after != before)


def _shorter_text(text: str, cut: Cut) -> str:
    data = text.encode()
    if len(data) <= cut.keep:
        return text
    if not (left := max(cut.keep - len(MARK) - 1, 0)):
        return ""
    kept = (data[-left:] if cut.end else data[:left]).decode(errors="ignore")
    return f"{MARK} {kept}" if cut.end else f"{kept} {MARK}"


def _fewer(items: list[Any], cut: Cut) -> list[Any]:
    staying = [index for index, item in enumerate(items) if _stays(item)]
    others = [index for index, item in enumerate(items) if not _stays(item)]
    left = max(cut.keep - len(staying), 0)
    others = others[len(others) - left :] if cut.end else others[:left]
    return [items[index] for index in sorted([*staying, *others])]


def _stays(item: Any) -> bool:
    return isinstance(item, dict) and ("display" in item or item.get("name") == "accuracy")
