"""Ends a rank that shows no sign of life: one that hangs waits for ever, and holds every GPU of the job meanwhile.

Standard library only. It watches from the rank's start to its end, in one process too. What takes long calls `beat`. In
training nothing else counts: a rank that waits in a collective may burn a whole core. Before and after, single calls
that cannot beat (a download, from_pretrained, a merge) show that they live by what they compute, read and write; should
a rank wait there in a collective that burns CPU time, the collective's own limit ends it, twice stallTimeoutSeconds.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trl_contract.report import ExitRecord, FailureReason
from trl_trainer.launch import records

OTHERS_SECONDS = 5.0
"""Time for the other ranks, which stalled at about the same moment, to write their stacks too."""
WORKING_CPU = 0.05
"""Share of a core above which a process computes. An idle rank was seen to take 0.013: three process groups of gloo
take 0.002 each, and this watchdog 0.004."""
WORKING_BYTES = 64 << 10
"""Bytes per second above which a process reads or writes; a log that repeats a complaint takes less."""


@dataclass
class _Life:
    """What this process is doing, as it told."""

    beat: float = time.monotonic()
    activity: str = "starting"
    together: bool = False
    waits: bool = False
    step: int = 0


_life = _Life()


def beat(step: int | None = None) -> None:
    """Give a sign of life of this process; `step` is how far training has come."""
    _life.beat = time.monotonic()
    if step is not None:
        _life.step = step


def enter(activity: str, *, together: bool = False) -> None:
    """Say what begins, in words that go with "while". `together`: all ranks take part all the time, and only `beat`
    counts as a sign of life."""
    _life.activity, _life.together = activity, together
    beat()


def activity() -> str:
    """Return what this process is at, as it told."""
    return _life.activity


@contextmanager
def led(activity: str, *, leads: bool) -> Iterator[None]:
    """While this is open one rank does the work, the one that `leads`, and the others wait for it. They are not judged:
    its watchdog ends it, and its end ends them. One of them that hangs makes it wait, too."""
    enter(activity)
    _life.waits = not leads
    try:
        yield
    finally:
        _life.waits = False
        beat()


@dataclass(frozen=True)
class Signs:
    """What a process leaves behind while it works."""

    cpu: float
    """Seconds of CPU time."""
    moved: int | None
    """Bytes given to write calls, downloads among them, and read from storage, those of mapped files among them; None:
    not known."""
    saved: int | None
    """Bytes of the checkpoint under way; None: they cannot be counted just now."""


def works(before: Signs, after: Signs, seconds: float, *, together: bool) -> bool:
    """Return whether the process did something in the `seconds` between `before` and `after`."""
    if None not in (before.saved, after.saved) and before.saved != after.saved:
        return True
    if together:
        return False
    moved = 0 if before.moved is None or after.moved is None else after.moved - before.moved
    return after.cpu - before.cpu >= WORKING_CPU * seconds or moved >= WORKING_BYTES * seconds


def moved_bytes(io: str) -> int:
    """Return `Signs.moved` by /proc/PID/io: bytes given to write calls, and those that storage delivered."""
    counts = dict(line.split(": ") for line in io.splitlines())
    return int(counts["wchar"]) + int(counts["read_bytes"])


class Watchdog:
    """Without a sign of life for `seconds` the stacks of all threads go to stderr, the rank's record says what it was
    doing, and the process ends. `saved` returns the bytes of the checkpoint under way, or None."""

    def __init__(self, seconds: float, saved: Callable[[], int | None], *, attempt: int, rank: int, world: int) -> None:
        self._seconds = seconds
        self._saved = saved
        self._attempt = attempt
        self._rank = rank
        self._world = world

    def start(self) -> None:
        """Watch in a thread, to the end of the process."""
        beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        tick = min(1.0, self._seconds / 4)
        before = None
        while True:
            # Should this thread not come to run: native code has hung with the interpreter's lock.
            faulthandler.dump_traceback_later(self._seconds, exit=True)
            time.sleep(tick)
            silent = 0.0 if _life.waits else time.monotonic() - _life.beat
            if silent > self._seconds:
                self._end(silent)
            # Only when it looks bad: a storage that is slow should not be asked all the time.
            after = self._signs() if silent > self._seconds / 4 else None
            if before is not None and after is not None and works(before, after, tick, together=_life.together):
                beat()
            before = after

    def _signs(self) -> Signs:
        try:
            moved = moved_bytes(Path("/proc/self/io").read_text())
        except OSError:
            # A process that keeps its memory to itself may not read this.
            moved = None
        return Signs(time.process_time(), moved, self._saved())

    def _end(self, silent: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        record = self._record(silent)
        print(f"watchdog: {record.message}; stacks of all threads:", file=sys.stderr)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        folder = os.environ.get(records.FOLDER)
        if folder is not None:
            records.write(Path(folder), self._rank, record)
        time.sleep(OTHERS_SECONDS)
        os._exit(records.exit_code(record))

    def _record(self, silent: float) -> ExitRecord:
        # A collective that hangs is the fault of some other rank, or of the network.
        reason: FailureReason = "CommunicationTimeout" if _life.together and self._world > 1 else "Stalled"
        after = f", after step {_life.step}" if _life.step else ""
        return ExitRecord(
            outcome="Failed",
            attempt=self._attempt,
            reason=reason,
            message=f"rank {self._rank}: nothing for {silent:.0f} s while {_life.activity}{after}"
            " (runPolicy.stallTimeoutSeconds); the log has the stacks of all ranks",
            rank=self._rank,
            time=records.now(),
            step=_life.step,
        )
