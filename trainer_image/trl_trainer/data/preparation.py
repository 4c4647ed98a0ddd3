"""Rank 0 prepares the data while the others wait, without a collective: preparing may take hours.

Rank 0 appends to a file on the storage volume how far it is and how it ended, and the others read that file again and
again. A line at a time and never a rename: another node's NFS client sees what was appended when it opens the file, and
may take half a minute to see a new name.
"""

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from trl_trainer.distributed.world import Run, broadcast
from trl_trainer.errors import TrainerError
from trl_trainer.launch import watchdog

INTERVAL_SECONDS = 1.0
"""Least time between two lines."""
POLL_SECONDS = 0.05
MAX_MESSAGE = 1000


class Tell(Protocol):
    """Says that rows were done: what is done with them, how many so far, and of how many if that is known."""

    def __call__(self, doing: str, done: int, total: int | None = None) -> None: ...


def untold(doing: str, done: int, total: int | None = None) -> None:
    """Say it to nobody."""


def together(run: Run, make: Callable[[Tell], str], show: Tell) -> str:
    """Return what `make` returns on rank 0, on every rank; where it raises, all ranks do, at once.

    `make` gets a function to call at each sign of progress; at most once a second it reaches `show`, the watchdog and
    the other ranks. They give up (CommunicationTimeout) when nothing new has come for twice stallTimeoutSeconds: rank
    0's own watchdog speaks first.
    """
    path = Path(broadcast(run, lambda: str(_new_file(run.work / "data"))))
    if not run.is_main:
        return _follow(path, 2 * run.job.stall_timeout_seconds)
    teller = _Teller(path, show)
    try:
        made = make(teller)
    except BaseException as error:
        teller.write({"error": str(error)[:MAX_MESSAGE]})
        raise
    teller.write({"made": made})
    return made


def _new_file(folder: Path) -> Path:
    """Make the file that this attempt tells its progress in; those of earlier ones go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("progress-*.jsonl"):
        old.unlink()
    path = folder / f"progress-{uuid.uuid4().hex}.jsonl"
    path.touch()
    return path


class _Teller:
    def __init__(self, path: Path, show: Tell) -> None:
        self._path = path
        self._show = show
        self._last = 0.0

    def __call__(self, doing: str, done: int, total: int | None = None) -> None:
        watchdog.beat()
        if time.monotonic() - self._last >= INTERVAL_SECONDS:
            self._last = time.monotonic()
            self._show(doing, done, total)
            self.write({"doing": doing, "done": done, "total": total})

    def write(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _follow(path: Path, seconds: float) -> str:
    """Return what rank 0 made when the file says so."""
    seen, since = b"", time.monotonic()
    while True:
        found = _last_line(path)
        if found != seen:
            watchdog.beat()
            seen, since = found, time.monotonic()
        # A line without its end is still being written.
        last = json.loads(found) if found.endswith(b"\n") else {}
        if "error" in last:
            raise TrainerError("PeerLost", f"rank 0 failed: {last['error']}")
        if "made" in last:
            return str(last["made"])
        if time.monotonic() - since > seconds:
            raise TrainerError("CommunicationTimeout", f"rank 0 has prepared no row of the data for {seconds:.0f} s")
        time.sleep(POLL_SECONDS)


def _last_line(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        # No line is longer: JSON writes a character in at most 12 bytes.
        file.seek(max(0, size - 12 * MAX_MESSAGE - 100))
        return (file.read().splitlines(keepends=True) or [b""])[-1]
