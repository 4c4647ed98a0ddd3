"""What the metrics of a run warn of: a loss or rewards from which nothing more is learnt, and a loss that runs away."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from trl_contract.report import JobWarning

STEPS = 20
"""So many in a row are no chance."""
EQUAL = 0.9
"""Share of prompts whose completions have equal rewards."""
LOW_LOSS = 0.01
BEFORE = 3
"""Fewest log entries that a later one is compared with."""


class Signs:
    """Looks at one log entry of training after the other; says each reason once."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._equal_after = self._low_after = 0
        """The last step at which rewards differed, or the loss was not low; or where training began."""
        self._losses, self._kls = deque[float](maxlen=10), deque[float](maxlen=10)

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after `step`."""
        self._equal_after = self._low_after = step

    def look(self, step: int, last: int, logs: Mapping[str, Any]) -> list[JobWarning]:
        """Return what is new. `logs`: what TRL has logged after `step` of `last` steps, by its names."""
        new = [found for found in self._found(step, last, logs) if found.reason not in self._told]
        new = list({found.reason: found for found in reversed(new)}.values())
        self._told |= {found.reason for found in new}
        return new

    def _found(self, step: int, last: int, logs: Mapping[str, Any]) -> Iterator[JobWarning]:
        if (share := logs.get("frac_reward_zero_std")) is not None:
            yield from self._equal_rewards(step, last, share)
            if (kl := logs.get("kl")) is not None:
                yield from self._kl(step, kl)
        elif (loss := logs.get("loss")) is not None:
            # Of grpo it is near 0 at all times.
            yield from self._loss(step, loss)

    def _equal_rewards(self, step: int, last: int, share: float) -> Iterator[JobWarning]:
        if share < EQUAL:
            self._equal_after = step
        number = step - self._equal_after
        if number >= STEPS or number == last:
            yield JobWarning(
                reason="RewardCollapse",
                message=f"for {number} steps all completions of a prompt got the same reward, of {100 * EQUAL:.0f} % of"
                " the prompts or more, and nothing is learnt from these",
                hint="Give grpo.rewards that tell answers apart, or raise generation.temperature or numGenerations.",
            )

    def _kl(self, step: int, kl: float) -> Iterator[JobWarning]:
        if len(self._kls) >= BEFORE and kl > max(1.0, 10 * max(self._kls)):
            yield JobWarning(
                reason="RewardCollapse",
                message=f"at step {step} kl is {kl:.4g}, ten times what it was before: the policy leaves its base",
                hint="Raise grpo.beta or lower training.learningRate, and read answers: rewards may be exploited.",
            )
        self._kls.append(kl)

    def _loss(self, step: int, loss: float) -> Iterator[JobWarning]:
        if not 0 <= loss < LOW_LOSS:
            self._low_after = step
        if (number := step - self._low_after) >= STEPS:
            yield JobWarning(
                reason="LossCollapse",
                message=f"for {number} steps the loss has been below {LOW_LOSS:g}: the rows are known by heart, or too"
                " easy",
                hint="Train fewer epochs, lower training.learningRate, or look at the rows: what gives answers away?",
            )
        if len(self._losses) >= BEFORE and loss > max(1.0, 2 * max(self._losses)):
            yield JobWarning(
                reason="UnstableLoss",
                message=f"at step {step} the loss is {loss:.4g}, more than twice that of any entry before"
                f" (at most {max(self._losses):.4g})",
                hint="Lower training.learningRate or maxGradNorm, warm up longer, or take more rows per step.",
            )
        self._losses.append(loss)
