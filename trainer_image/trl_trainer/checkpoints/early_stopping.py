"""Ends training when the evaluations do not get better; the last model is exported, not the best."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_contract.evaluation import EarlyStopping
from trl_trainer.checkpoints.schedule import AlreadyTrained
from trl_trainer.errors import UserError


class Stopper(TrainerCallback):
    """Counts in the log history, which is part of every checkpoint: a resumed run decides as the whole one would."""

    def __init__(self, given: EarlyStopping) -> None:
        self._given = given
        self.stopped = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        name = f"eval_{self._given.metric}"
        if name not in (metrics or {}):
            known = ", ".join(sorted(key.removeprefix("eval_") for key in metrics or {}))
            raise UserError(
                "InvalidSpec", f"evaluation.earlyStopping.metric {self._given.metric} is not one of {known}"
            )
        if self._over(state):
            self.stopped = control.should_training_stop = control.should_save = True

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._over(state):
            self.stopped = True
            raise AlreadyTrained

    def _over(self, state: TrainerState) -> bool:
        name = f"eval_{self._given.metric}"
        # Step 0 is the base model, which a later attempt does not evaluate again.
        values = [entry[name] for entry in state.log_history if name in entry and entry["step"] > 0]
        return no_better(values, self._given)


def no_better(values: Sequence[float], given: EarlyStopping) -> bool:
    """Return whether the last `patience` values are all no better than the best before them."""
    if len(values) <= given.patience:
        return False
    before, last = values[: -given.patience], values[-given.patience :]
    if given.mode == "min":
        return min(last) >= min(before)
    return max(last) <= max(before)
