"""Evaluation on held-out rows."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trl_contract.base import RESOLVED, Int32, Model, Rule

MAX_ANSWER_TOKENS = 128
"""Length of the answers to sample prompts."""


class EarlyStopping(Model):
    metric: Annotated[str, Field(min_length=1, max_length=64)]
    """Metric of the evaluation, by the name that TRL logs without eval_, like loss or rewards/accuracies."""
    mode: Literal["min", "max"]
    """Whether less or more is better."""
    patience: Annotated[Int32, Field(ge=1, le=1000)] = 3
    """Training ends after so many evaluations in a row without a new best. The last model is exported, not the best."""


class EvaluationBase(Model):
    rules: ClassVar = (
        Rule(
            "!(has(self.everySteps) && has(self.everyEpochs))",
            "give everySteps or everyEpochs, not both",
            lambda self: self.every_steps is None or self.every_epochs is None,
        ),
        Rule(
            "!has(self.earlyStopping) || has(self.everySteps) || has(self.everyEpochs)",
            "earlyStopping needs everySteps or everyEpochs: it looks at the evaluations during training",
            lambda self: self.early_stopping is None or self.is_repeated,
        ),
        Rule(
            "!(has(self.everySteps) || has(self.everyEpochs)) || !has(self.enabled) || self.enabled",
            "everySteps and everyEpochs need evaluation: set enabled to true, or remove them",
            lambda self: self.enabled or not self.is_repeated,
        ),
    )

    enabled: bool = True
    """Evaluate on held-out rows before and after training."""
    at_start: bool = True
    """Evaluate the base model too, so that before and after can be compared."""
    every_steps: Annotated[Int32, Field(ge=1)] | None = None
    """Evaluate also every so many steps."""
    every_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Evaluate also every so many epochs, such as 0.25: rounded to steps."""
    per_device_batch_size: Annotated[Int32, Field(ge=1, le=4096)] | None = None
    """Rows per process; as training's if unset."""
    max_examples: Annotated[Int32, Field(ge=1), RESOLVED] = 512
    """At most so many held-out rows."""
    early_stopping: EarlyStopping | None = None
    """End training when the evaluations do not get better."""

    @property
    def is_repeated(self) -> bool:
        """Whether there are evaluations during training."""
        return self.every_steps is not None or self.every_epochs is not None


class RewardEvaluation(EvaluationBase):
    """Evaluation of a reward model."""


class Evaluation(EvaluationBase):
    sample_prompts: Annotated[list[Annotated[str, Field(min_length=1, max_length=2048)]], Field(max_length=16)] = []
    """Prompts answered by the base and by the tuned model, in at most 128 tokens, in final/samples.jsonl."""


class GrpoEvaluation(Evaluation):
    per_device_batch_size: Annotated[Int32, Field(ge=1, le=4096)] | None = None
    """Completions per process, whole groups of numGenerations in all processes; if unset as training's, or the next
    number that makes groups whole."""
    max_examples: Annotated[Int32, Field(ge=1), RESOLVED] = 64
    """At most so many held-out prompts."""
