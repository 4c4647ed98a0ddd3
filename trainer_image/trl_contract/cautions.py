"""What is odd about a spec and yet allowed: status.warnings and `explain` say it in the same words."""

from collections.abc import Iterator

from trl_contract.base import Kind
from trl_contract.report import JobWarning
from trl_contract.spec import GRPOSpec, TrainingSpec

LEAST_BATCH = 4
LEAST_GENERATIONS = 4

USUAL_RATES: dict[Kind, tuple[tuple[float, float], tuple[float, float]]] = {
    "SFTJob": ((1e-6, 1e-4), (1e-5, 1e-3)),
    "RewardJob": ((1e-6, 1e-4), (1e-5, 1e-3)),
    "DPOJob": ((1e-7, 1e-5), (1e-6, 1e-4)),
    "GRPOJob": ((1e-7, 1e-5), (1e-6, 1e-4)),
}
"""Lowest and highest learning rate that published recipes take, when all weights are trained and with adapters."""

REASONS = frozenset({"UnusualLearningRate", "SmallEffectiveBatch", "FewGenerations"})
"""What `of` may say; other reasons in status.warnings are the trainer's."""


def of(kind: Kind, spec: TrainingSpec, processes: int) -> list[JobWarning]:
    """Return what is odd about a job on so many processes; of one that is only to show that it runs, nothing."""
    return [] if spec.profile == "smoke" else list(_found(kind, spec, processes))


def _found(kind: Kind, spec: TrainingSpec, processes: int) -> Iterator[JobWarning]:
    training, adapter = spec.training, spec.peft.method != "none"
    (low, high), usual = USUAL_RATES[kind][adapter], spec.learning_rates[adapter]
    rate = training.learning_rate or usual
    if not low <= rate <= high:
        yield JobWarning(
            reason="UnusualLearningRate",
            message=f"training.learningRate is {rate:g}; a {kind} with peft.method {spec.peft.method} usually takes"
            f" {low:g} to {high:g}",
            hint=f"Leave it out for {usual:g}, or watch the first losses.",
        )
    batch = training.per_device_batch_size * training.gradient_accumulation_steps * processes
    if batch < LEAST_BATCH:
        yield JobWarning(
            reason="SmallEffectiveBatch",
            message=f"an optimizer step sees {batch} rows (training.perDeviceBatchSize x processes x"
            f" gradientAccumulationSteps); below {LEAST_BATCH} steps are mostly noise",
            hint="Raise training.gradientAccumulationSteps; it takes no memory.",
        )
    if isinstance(spec, GRPOSpec) and spec.grpo.num_generations < LEAST_GENERATIONS:
        yield JobWarning(
            reason="FewGenerations",
            message=f"grpo.numGenerations is {spec.grpo.num_generations}; with fewer than {LEAST_GENERATIONS}"
            " completions of a prompt their mean says little about each",
            hint="Raise it to 4 or more; batches must stay multiples of it.",
        )
