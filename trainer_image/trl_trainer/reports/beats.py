"""The events of training as signs of life for the watchdog."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_trainer.launch import watchdog


class Beats(TrainerCallback):
    """Beats at each event of training and of an evaluation. From the first step on nothing else counts."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        watchdog.enter("training", together=True)
        watchdog.beat(state.global_step)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        watchdog.enter("evaluating", together=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        watchdog.enter("saving", together=True)

    def _beat(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        watchdog.beat(state.global_step)

    on_train_begin = on_substep_end = on_step_end = on_evaluate = on_log = _beat
