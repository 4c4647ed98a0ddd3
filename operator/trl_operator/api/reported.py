"""The part of the status that comes from the trainer: the field manager trl-operator-progress alone writes it."""

from typing import Annotated

from pydantic import Field

from trl_operator.api.parts import Count, Decimal, Int64, Part, Text63, Text256, Text1024, Time, list_map


def short(number: float) -> str:
    """Return a number as people read it: with four significant digits, more only of whole thousands."""
    return f"{number:.0f}" if 1e3 <= abs(number) < 1e15 else f"{number:.4g}"


class Metric(Part):
    name: Annotated[str, Field(max_length=64)]
    """Exactly as TRL logs it."""
    value: Decimal
    """A decimal number."""


class LoggedMetric(Metric):
    display: Decimal | None = None
    """The same with four significant digits, of what kubectl get prints."""


class ReportedArtifact(Part):
    type: Annotated[str, Field(max_length=32)]
    """model or adapter."""
    path: Text1024
    """Folder, relative to the storage volume."""
    digest: Annotated[str, Field(max_length=80)]
    """sha256 over the folder's files."""
    size: Int64 | None = None
    """Bytes of all its files."""


class ProgressStatus(Part):
    attempt: Count
    """Attempt that reported."""
    activity: Text63
    """loading, tokenizing, training, evaluating, saving or exporting."""
    display: Text63
    """Step of all steps, like 120/1000, and what is being done beside training, like 120/1000 saving; before the first
    step that alone, like tokenizing 40 %."""
    eta: Text63 | None = None
    """Time to the end of training, like 1h20m; absent while no attempt runs."""
    eta_seconds: Count | None = None
    """The same in seconds."""
    step: Count
    """Optimizer steps done."""
    total_steps: Count
    """Optimizer steps of the whole run."""
    percentage: Count | None = None
    """0 to 100; 100 means done."""
    epoch: Decimal | None = None
    """Passes over the training rows."""
    loss: Decimal | None = None
    """Training loss of the last log entry."""
    learning_rate: Decimal | None = None
    """Learning rate of the last log entry."""
    grad_norm: Decimal | None = None
    """Gradient norm of the last log entry."""
    tokens_per_second: Decimal | None = None
    """Tokens per second of all processes."""
    last_update_time: Time
    """When the trainer wrote the report."""
    metrics: Annotated[list[LoggedMetric], Field(max_length=24, json_schema_extra=list_map("name"))] = []
    """The last log entry."""
    warnings: Annotated[list[Text1024], Field(max_length=8)] = []
    """What the preflight found worth a look."""
    artifacts: Annotated[list[ReportedArtifact], Field(max_length=4, json_schema_extra=list_map("type"))] = []
    """What the last report says has come out, should nothing else be left that does."""
    cut: Annotated[list[Text63], Field(max_length=16)] = []
    """Fields of which reports have said more than is here: a status holds 12 KiB."""


class CheckpointStatus(Part):
    step: Count
    """Optimizer step."""
    path: Text1024
    """Folder, relative to the storage volume."""
    time: Time
    """When it was published."""
    metrics: Annotated[list[Metric], Field(max_length=8, json_schema_extra=list_map("name"))] = []
    """Metrics at that step."""


class SkippedStatus(Part):
    reason: Text63
    """Why nothing is evaluated, in one word."""
    message: Text1024
    """Why, for people."""


class EvaluationStatus(Part):
    before: Annotated[list[Metric], Field(max_length=24, json_schema_extra=list_map("name"))] = []
    """The base model on the held-out rows."""
    after: Annotated[list[Metric], Field(max_length=24, json_schema_extra=list_map("name"))] = []
    """The tuned model on the held-out rows."""
    display: Text256 | None = None
    """The first metric that was measured before and after, like eval_rewards/accuracies 0.25 → 1."""
    skipped: SkippedStatus | None = None
    """What the trainer found that leaves nothing to evaluate on; the condition EvaluationSkipped says it too."""

    def headline(self) -> str:
        """Return what training has changed: the first metric that was measured before and after; else empty."""
        before = {metric.name: metric.value for metric in self.before}
        after = next((metric for metric in self.after if metric.name in before), None)
        if after is None:
            return ""
        return f"{after.name} {short(float(before[after.name]))} → {short(float(after.value))}"


class UsageStatus(Part):
    """What the job has taken of the cluster, as far as its attempts have told."""

    attempt: Count
    """Attempt that attemptSeconds is of."""
    attempt_seconds: Count
    """From the start of its trainer to its last report."""
    earlier_seconds: Count = 0
    """The same of all attempts before."""
    training_seconds: Count = 0
    """Of the steps that the model has taken: what was lost with an attempt does not count."""
    gpus: Count = 0
    """GPUs of all pods of an attempt."""
    gpu_hours: Decimal | None = None
    """Hours of all attempts, times gpus; absent without GPUs."""
    goodput: Decimal
    """trainingSeconds of all seconds, 0 to 1: what is missing to 1 went into loading, saving, evaluating and lost
    steps."""


class WarningStatus(Part):
    reason: Annotated[str, Field(max_length=63)]
    """What it is about, in one CamelCase word that programs may rely on: UnusualLearningRate, SmallEffectiveBatch,
    FewGenerations, RewardCollapse, LossCollapse or UnstableLoss."""
    message: Annotated[str, Field(max_length=300)]
    """What was found, for people."""
    hint: Annotated[str, Field(max_length=300)]
    """What to do about it."""


class RewardStatus(Part):
    name: Annotated[str, Field(max_length=64)]
    """Name of the reward."""
    mean: Decimal
    """Mean of the last log entry."""
    std: Decimal
    """Standard deviation of the last log entry."""
    errors: Count = 0
    """Errors so far that counted as 0."""
