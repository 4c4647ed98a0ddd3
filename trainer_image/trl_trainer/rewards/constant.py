"""Says it when the rewards of a run tell no completion from another."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STEPS = 20
"""So many in a row are no chance."""


class ConstantRewards(TrainerCallback):
    """Warns once when in all groups of STEPS steps, or of a whole shorter run, all completions got the same reward."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._began = 0
        """The last step at which some group had different rewards, or training began."""
        self._is_said = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        # TRL's name for the share of groups with equal rewards, since the last log.
        share = (logs or {}).get("frac_reward_zero_std")
        if share is None:
            return
        if share < 1:
            self._began = state.global_step
        number = state.global_step - self._began
        if not self._is_said and (number >= STEPS or number == state.max_steps):
            self._is_said = True
            self._warn(
                f"RewardConstant: for {number} steps all completions of each prompt got the same reward, and nothing is"
                " learnt from that: give grpo.rewards that tell answers apart, or raise grpo.generation.temperature"
            )
