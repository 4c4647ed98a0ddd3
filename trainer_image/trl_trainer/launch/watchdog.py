"""Ends a rank that makes no progress: a hung collective waits for ever, and holds every GPU of the job meanwhile."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_contract.report import EXIT_CODES, ExitRecord
from trl_trainer.launch import records

OTHERS_SECONDS = 5.0
"""Time for the other ranks, which stalled at about the same moment, to write their stacks too."""


_last_beat = time.monotonic()


def beat() -> None:
    """Give a sign of life of this process: called by what takes long between two events of the training loop."""
    global _last_beat
    _last_beat = time.monotonic()


class Watchdog(TrainerCallback):
    """Watches from the first step to the end of training: without a sign of life for `seconds`, the stacks of all
    threads go to stderr, the rank's record says CommunicationTimeout, and the process ends. So is a change of what
    `written` returns: the bytes of the checkpoint under way, or None if they cannot be counted just now."""

    def __init__(self, seconds: float, written: Callable[[], int | None], attempt: int, rank: int) -> None:
        self._seconds = seconds
        self._written = written
        self._attempt = attempt
        self._rank = rank
        self._step = 0
        self._done = threading.Event()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the watch."""
        self._done.set()

    def _alive(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        beat()
        self._step = state.global_step

    on_step_begin = on_substep_end = on_step_end = on_prediction_step = on_evaluate = on_save = on_log = _alive

    def _watch(self) -> None:
        size = None
        while not self._done.wait(min(1.0, self._seconds / 4)):
            silent = time.monotonic() - _last_beat
            if silent > self._seconds:
                self._end(silent)
            # Only when it looks bad: a storage that is slow should not be asked all the time.
            before, size = size, self._written() if silent > self._seconds / 4 else None
            if None not in (before, size) and before != size:
                beat()

    def _end(self, silent: float) -> None:
        print(f"watchdog: rank {self._rank}: nothing for {silent:.0f} s; stacks of all threads:", file=sys.stderr)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        folder = os.environ.get(records.FOLDER)
        if folder is not None:
            records.write(Path(folder), self._rank, self._record(silent))
        time.sleep(OTHERS_SECONDS)
        os._exit(EXIT_CODES["CommunicationTimeout"])

    def _record(self, silent: float) -> ExitRecord:
        return ExitRecord(
            outcome="Failed",
            attempt=self._attempt,
            reason="CommunicationTimeout",
            message=f"rank {self._rank}: no step, evaluation or save for {silent:.0f} s after step {self._step} "
            "(runPolicy.stallTimeoutSeconds); the log has the stacks of all ranks",
            rank=self._rank,
            time=records.now(),
            step=self._step,
        )
