"""SIGTERM in a rank. Standard library only: it is installed before anything slow is imported."""

import signal
from types import FrameType

from trl_trainer.errors import Preempted


class Termination:
    """Whether this rank was told to stop. While a training loop watches it, the signal only sets `requested`;
    otherwise it ends the rank at once with Preempted, since there is nothing to save."""

    def __init__(self) -> None:
        self.requested = False
        self.watched = False
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        first = not self.requested
        self.requested = True
        if first and not self.watched:
            raise Preempted("stopped by SIGTERM outside training: nothing to save")

    def unwatch(self) -> None:
        """End the watch; a signal that came while nobody acted on it takes effect now."""
        self.watched = False
        if self.requested:
            raise Preempted("stopped by SIGTERM")
