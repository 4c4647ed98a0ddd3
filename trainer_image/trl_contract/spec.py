"""The training part of the four custom resources: the one list of hyper-parameters in this project.

The CRD schema is generated from these models, the operator copies the user's values into the job file and the trainer
reads them there.
"""

from math import gcd
from typing import ClassVar, Literal, Self

from trl_contract.base import Kind, Model
from trl_contract.evaluation import Evaluation, EvaluationBase, GrpoEvaluation, RewardEvaluation
from trl_contract.rewards import RewardFunction
from trl_contract.sources import Dataset, ModelSource, PromptDataset
from trl_contract.stages import Dpo, Grpo, Reward, Sft
from trl_contract.training import (
    Checkpoint,
    Fsdp,
    GrpoTraining,
    Peft,
    PeftWithDropout,
    SftTraining,
    Tracking,
    Training,
    TrainingBase,
)

Profile = Literal["smoke", "conservative", "balanced", "aggressive"]

STEPS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
"""Values of training.gradientAccumulationSteps that are named where another does not fit."""


class TrainingSpec(Model):
    """What all kinds have in common, and what every kind says of itself without torch."""

    profile: Profile | None = None
    """Values for fields that are not given: smoke ends in minutes on a CPU, to see that all fits together; conservative
    learns slowly and steadily, aggressive fast, balanced in between. `explain`, final/resolved.json and
    docs/profiles.md have them."""
    model: ModelSource
    """The base model."""
    dataset: Dataset
    """Rows of the kind's form."""
    training: TrainingBase
    """Hyper-parameters of the loop."""
    evaluation: EvaluationBase
    """Evaluation on held-out rows."""
    peft: Peft = Peft()
    """Adapter or full fine-tuning."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are published and how many are kept."""
    fsdp: Fsdp = Fsdp()
    """How the model is sharded over processes."""
    tracking: Tracking | None = None
    """Experiment trackers."""

    learning_rates: ClassVar[tuple[float, float]]
    """Default peak learning rates of full fine-tuning and of adapters."""
    sequences_per_row: ClassVar[int] = 1
    """Sequences that the model sees of one row."""

    @property
    def max_length(self) -> int | None:
        """training.maxLength; None where a kind has none."""
        return None

    @property
    def activation_offloading(self) -> bool:
        """training.activationOffloading; false where a kind has none."""
        return False

    @property
    def cuts_rows(self) -> bool:
        """Whether what of a training row is beyond training.maxLength is lost; of a held-out row it always is."""
        return True

    def sequence_length(self, longest: int) -> int:
        """Return the tokens of the longest sequence that the model sees, where the longest row has `longest`."""
        return longest if self.max_length is None else min(longest, self.max_length)

    def evaluation_batch_size(self, world: int) -> int:
        """Return the default of evaluation.perDeviceBatchSize."""
        return self.training.per_device_batch_size

    def with_micro_batch(self, size: int) -> Self:
        """Return the same spec with `size` rows, a divisor of perDeviceBatchSize, in each of as many more micro-steps:
        the rows of an optimizer step stay. A resolved spec evaluates as before."""
        training = self.training
        steps = training.gradient_accumulation_steps * (training.per_device_batch_size // size)
        update = {"per_device_batch_size": size, "gradient_accumulation_steps": steps}
        return self.model_copy(update={"training": training.model_copy(update=update)})

    def check_world(self, world: int) -> None:
        """Raise ValueError, from the field on, if so many processes cannot train this."""
        if world > 1 and self.peft.lora_dropout > 0 and self.training.gradient_checkpointing:
            raise ValueError(
                f"peft.dropout: {self.peft.lora_dropout} does not go with training.gradientCheckpointing and {world}"
                " processes, which recompute with other values left out: remove one"
            )

    @property
    def is_padded(self) -> bool:
        """Whether batches have padding that could be left out."""
        return True

    @property
    def reference(self) -> Literal["none", "base", "precompute", "explicit"]:
        """The model beside the policy that it is compared with; none: there is none, or the policy itself serves."""
        return "none"

    @property
    def explicit_reference(self) -> ModelSource | None:
        """The source of an explicit reference model."""
        return None

    def with_reference(self, source: ModelSource) -> "TrainingSpec":
        """Return the same spec with another explicit reference model, of a kind that has one."""
        raise TypeError(f"{type(self).__name__} has no explicit reference model")

    @property
    def rewards(self) -> list[RewardFunction]:
        """The reward functions of a kind that has any."""
        return []

    def with_rewards(self, rewards: list[RewardFunction]) -> "TrainingSpec":
        """Return the same spec with other reward functions, of a kind that has any."""
        raise TypeError(f"{type(self).__name__} has no rewards")

    @property
    def sample_prompts(self) -> list[str]:
        """evaluation.samplePrompts of a kind that answers."""
        return []

    @property
    def has_kl_penalty(self) -> bool:
        """Whether the policy is tied to its base, where a kind can do without."""
        return True

    @property
    def least_accuracy(self) -> float | None:
        """Accuracy on held-out rows below which the job fails; None: whatever it is."""
        return None

    @property
    def save_multiple(self) -> int:
        """Steps whose multiples can be resumed from exactly."""
        return 1


class SequenceSpec(TrainingSpec):
    """What the kinds have in common that train on sequences of a given length: all but grpo, which samples its own."""

    training: Training = Training()
    """Hyper-parameters of the loop."""

    @property
    def max_length(self) -> int:
        return self.training.max_length

    @property
    def activation_offloading(self) -> bool:
        return self.training.activation_offloading


class SFTSpec(SequenceSpec):
    dataset: Dataset
    """Conversations, prompt and completion, or text. An assistant turn of weight 0 is read and not learnt."""
    training: SftTraining = SftTraining()
    """Hyper-parameters of the loop."""
    peft: PeftWithDropout = PeftWithDropout()
    """Adapter or full fine-tuning."""
    sft: Sft = Sft()
    """What the loss is computed on."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on held-out rows."""

    learning_rates = (2e-5, 2e-4)

    @property
    def is_padded(self) -> bool:
        return not self.sft.packing

    @property
    def cuts_rows(self) -> bool:
        return self.sft.packing_strategy in (None, "bfd")

    @property
    def sample_prompts(self) -> list[str]:
        return self.evaluation.sample_prompts


class RewardSpec(SequenceSpec):
    dataset: Dataset
    """Preference pairs: chosen and rejected, with or without prompt."""
    reward: Reward = Reward()
    """The loss."""
    evaluation: RewardEvaluation = RewardEvaluation()
    """Evaluation on held-out pairs."""

    learning_rates = (1e-5, 1e-4)
    sequences_per_row = 2

    @property
    def least_accuracy(self) -> float | None:
        return None if self.profile == "smoke" else self.reward.min_accuracy


class DPOSpec(SequenceSpec):
    dataset: PromptDataset
    """Preference pairs: prompt, chosen, rejected."""
    dpo: Dpo = Dpo()
    """The loss."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on held-out pairs."""

    learning_rates = (1e-6, 1e-5)
    sequences_per_row = 2

    @property
    def reference(self) -> Literal["none", "base", "precompute", "explicit"]:
        mode = self.dpo.reference_model.mode
        if mode == "explicit":
            return "explicit"
        if self.peft.method != "none":
            return "none"
        return "base" if mode == "auto" else "precompute"

    @property
    def explicit_reference(self) -> ModelSource | None:
        return self.dpo.reference_model.source

    def with_reference(self, source: ModelSource) -> "DPOSpec":
        reference = self.dpo.reference_model.model_copy(update={"source": source})
        return self.model_copy(update={"dpo": self.dpo.model_copy(update={"reference_model": reference})})

    @property
    def sample_prompts(self) -> list[str]:
        return self.evaluation.sample_prompts


class GRPOSpec(TrainingSpec):
    dataset: PromptDataset
    """Prompts; other columns reach the rewards."""
    training: GrpoTraining = GrpoTraining()
    """Hyper-parameters of the loop."""
    peft: PeftWithDropout = PeftWithDropout()
    """Adapter or full fine-tuning."""
    grpo: Grpo
    """Generation, rewards and loss."""
    evaluation: GrpoEvaluation = GrpoEvaluation()
    """Evaluation on held-out prompts."""

    learning_rates = (1e-6, 1e-5)

    def sequence_length(self, longest: int) -> int:
        return longest + self.grpo.generation.max_completion_length

    def evaluation_batch_size(self, world: int) -> int:
        # TRL evaluates whole groups: batch x processes must be a multiple of numGenerations.
        step = self.grpo.num_generations // gcd(self.grpo.num_generations, world)
        return -(-self.training.per_device_batch_size // step) * step

    def with_micro_batch(self, size: int) -> Self:
        found, sampled = super().with_micro_batch(size), self.grpo.steps_per_generation
        if sampled is None:
            return found
        # Micro-steps too: as many completions as before are sampled at once.
        sampled *= self.training.per_device_batch_size // size
        return found.model_copy(update={"grpo": self.grpo.model_copy(update={"steps_per_generation": sampled})})

    def check_world(self, world: int) -> None:
        super().check_world(world)
        training, groups, size = self.training, self.grpo.num_generations, self.evaluation.per_device_batch_size
        batch = training.per_device_batch_size * world * training.gradient_accumulation_steps
        if batch % groups:
            raise ValueError(
                f"training: training.perDeviceBatchSize x numNodes x numProcPerNode ="
                f" {training.per_device_batch_size * world}, x training.gradientAccumulationSteps = {batch}, must be a"
                f" multiple of grpo.numGenerations = {groups}: training.gradientAccumulationSteps may be"
                f" {[steps for steps in STEPS if training.per_device_batch_size * world * steps % groups == 0]} or"
                f" {groups}"
            )
        if size is not None and size * world % groups:
            raise ValueError(
                f"evaluation: evaluation.perDeviceBatchSize = {size}, x numNodes x numProcPerNode = {world}, must be a"
                f" multiple of grpo.numGenerations = {groups}: remove it, or use {groups}"
            )

    @property
    def reference(self) -> Literal["none", "base", "precompute", "explicit"]:
        return "base" if self.grpo.beta > 0 and self.peft.method == "none" else "none"

    @property
    def rewards(self) -> list[RewardFunction]:
        return list(self.grpo.rewards)

    def with_rewards(self, rewards: list[RewardFunction]) -> "GRPOSpec":
        return self.model_copy(update={"grpo": self.grpo.model_copy(update={"rewards": rewards})})

    @property
    def sample_prompts(self) -> list[str]:
        return self.evaluation.sample_prompts

    @property
    def has_kl_penalty(self) -> bool:
        return self.grpo.beta > 0

    @property
    def steps_per_generation(self) -> int:
        """grpo.stepsPerGeneration, or its default."""
        return self.grpo.steps_per_generation or self.training.gradient_accumulation_steps

    @property
    def steps_per_sampling(self) -> int:
        """Optimizer steps between two times of sampling."""
        return self.grpo.num_iterations * self.steps_per_generation // self.training.gradient_accumulation_steps

    @property
    def save_multiple(self) -> int:
        # Completions that are yet to be learnt from are not saved.
        return self.steps_per_sampling


SPECS: dict[Kind, type[TrainingSpec]] = {
    "SFTJob": SFTSpec,
    "RewardJob": RewardSpec,
    "DPOJob": DPOSpec,
    "GRPOJob": GRPOSpec,
}
"""The training part of each kind."""
