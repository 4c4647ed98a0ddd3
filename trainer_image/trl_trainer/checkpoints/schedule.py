"""When to save and when to stop, agreed between all ranks: a rank that saves alone waits for ever.

Reasons that only one rank knows (its SIGTERM, rank 0's clock) travel in one all-reduce on gloo. It is started at the
end of a step and read at the end of the next, so that training never waits for it. Where steps are slow it is read at
once: milliseconds do not count then, and the grace period does. Whether they are slow travels with the rest.
"""

import time
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_trainer.checkpoints import fence
from trl_trainer.checkpoints.publisher import Publisher
from trl_trainer.distributed.world import Pending, Run, start_max
from trl_trainer.launch import watchdog
from trl_trainer.launch.termination import Termination

SLOW_SECONDS = 1.0
"""A step that takes longer is slow."""


class AlreadyTrained(Exception):
    """The checkpoint is of the last step: training on would be one step too many."""


class _StopEvaluation(Exception):
    """SIGTERM during an evaluation, on all ranks at the same prediction step."""


class Schedule(TrainerCallback):
    """Sets should_save and should_training_stop, on all ranks alike. Saves every so often, when told to stop, and
    always after the last step."""

    def __init__(self, run: Run, trainer: Trainer, termination: Termination, publisher: Publisher) -> None:
        checkpoint = run.job.spec.checkpoint
        self._run = run
        self._termination = termination
        self._publisher = publisher
        self._every_steps: int | None = checkpoint.every_steps
        self._every_seconds = None if checkpoint.every_minutes is None else 60 * checkpoint.every_minutes
        self._align = run.job.spec.save_multiple
        self._saved_at = time.monotonic()
        self._pending: Pending | None = None
        # Unknown before the first step is over.
        self._slow = True
        self._began = 0.0
        self._stop = self._save = False
        self.preempted = False
        """Training was cut short, and everything up to the current step is saved."""
        _make_stoppable(trainer, self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            raise AlreadyTrained
        self._saved_at = time.monotonic()
        self._termination.watched = True

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        took = time.monotonic() - self._began
        if self._slow:
            self._read(self._start(took, saving=False))
        elif self._pending is not None:
            self._read(self._pending)
        self._save |= self._every_steps is not None and state.global_step % self._every_steps == 0
        last = state.global_step >= state.max_steps
        if last or ((self._stop or self._save) and state.global_step % self._align == 0):
            control.should_save = True
            if self._stop and not last:
                self._end(control)
        # An evaluation may end in a save too: of early stopping, or because it is cut short.
        if control.should_save or control.should_evaluate:
            # Before the first byte: the folder may be a checkpoint of the attempt that has taken over.
            fence.check(self._run.work, self._run.job.attempt)
            # One at a time, on disk and in memory.
            self._publisher.wait()
            # What is saved must be known to be finite, and that is looked at when it is logged.
            control.should_log = True
        done = last or self.preempted or self._slow
        self._pending = None if done else self._start(took, saving=control.should_save)

    def _start(self, took: float, *, saving: bool) -> Pending:
        clock = self._run.is_main and self._every_seconds is not None and not saving
        due = clock and time.monotonic() - self._saved_at >= (self._every_seconds or 0)
        return start_max(self._run, [int(self._termination.requested), int(due), int(took > SLOW_SECONDS)])

    def _read(self, pending: Pending) -> None:
        stop, save, slow = pending.wait()
        self._stop |= bool(stop)
        self._save |= bool(save)
        self._slow = bool(slow)

    def _end(self, control: TrainerControl) -> None:
        control.should_training_stop = True
        control.should_evaluate = False
        self.preempted = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._termination.watched:
            return
        if start_max(self._run, [int(self._termination.requested)]).wait()[0]:
            raise _StopEvaluation

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._save = False
        self._saved_at = time.monotonic()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.preempted:
            self._termination.unwatch()

    def cut_evaluation(self, state: TrainerState, control: TrainerControl) -> None:
        """Save and stop, since an evaluation was cut short: at this step, or at the next that can be saved."""
        self._stop = True
        if state.global_step % self._align == 0:
            control.should_save = True
            self._end(control)


def _make_stoppable(trainer: Trainer, schedule: Schedule) -> None:
    """Let `trainer.evaluate` return early on SIGTERM: transformers has no flag for it."""
    evaluate = trainer.evaluate

    def stoppable(*args: Any, **kwargs: Any) -> dict[str, float]:
        # Before the first batch: transformers tells of each one when it is done.
        watchdog.enter("evaluating", together=True)
        try:
            return dict(evaluate(*args, **kwargs))
        except _StopEvaluation:
            schedule.cut_evaluation(trainer.state, trainer.control)
            return {}

    trainer.evaluate = stoppable
