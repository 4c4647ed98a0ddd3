"""What the trainer says about itself: progress while it runs, and one record when it ends.

Whoever reads it may be older than the trainer: fields that are not known are passed over, and what is too long is cut.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field

from trl_contract.base import CONTRACT_VERSION, Int32, Model


def _cut(length: int) -> tuple[BeforeValidator, Any]:
    """Return what cuts a text or a list to `length`: one long name must not cost the whole report."""

    def cut(value: Any) -> Any:
        return value[:length] if isinstance(value, str | list) else value

    return BeforeValidator(cut), Field(max_length=length)


Count = Annotated[Int32, Field(ge=0)]
"""As much as the status can hold."""


class Told(Model):
    """What a trainer tells the operator: one that is newer may say more than this version knows."""

    model_config = ConfigDict(extra="ignore")


Activity = Literal["loading", "tokenizing", "training", "evaluating", "saving", "exporting"]
"""What this trainer says that it does."""

FailureReason = Literal[
    "InvalidSpec",
    "DataFormatError",
    "DatasetNotFound",
    "ModelNotFound",
    "ArtifactChanged",
    "AccessDenied",
    "OutOfGPUMemory",
    "OutOfHostMemory",
    "NonFiniteLoss",
    "RewardError",
    "RewardUnavailable",
    "RewardModelNotValidated",
    "NetworkUnavailable",
    "CheckpointCorrupt",
    "StorageFull",
    "StorageNotWritable",
    "CommunicationTimeout",
    "Stalled",
    "PeerLost",
    "Preempted",
    "Unknown",
]
"""Reasons that the trainer itself can tell; the operator adds those that only the cluster knows."""


def _known_reason(value: Any) -> Any:
    return "Unknown" if isinstance(value, str) and value not in get_args(FailureReason) else value


EXIT_CODES: dict[str, int] = {
    "OutOfGPUMemory": 11,
    "OutOfHostMemory": 137,
    "NonFiniteLoss": 12,
    "CheckpointCorrupt": 13,
    "RewardError": 14,
    "RewardUnavailable": 14,
    "NetworkUnavailable": 15,
    "Preempted": 143,
    "CommunicationTimeout": 137,
    "Stalled": 137,
    "PeerLost": 137,
    "Unknown": 1,
}
"""Exit code of the trainer's container by reason; every other reason is the user's to mend and exits 10."""

USER_ERROR_EXIT_CODE = 10

SECRET_VARIABLES = "TRL_SECRET_VARIABLES"
"""Variable with the names of the variables whose values come from Secrets, divided by spaces, or with how their names
begin and a *: no message tells them."""
CA_BUNDLE = "TRL_CA_BUNDLE"
"""Variable with the path of certificates that the trainer trusts beside the system's."""


class Metric(Told):
    name: Annotated[str, *_cut(64), Field(min_length=1)]
    """Exactly as TRL logs it, for example rewards/margins."""
    value: Annotated[str, Field(max_length=64)]
    """A finite decimal number."""


class CheckpointReport(Told):
    step: Count
    path: Annotated[str, Field(max_length=1024)]
    """Relative to the storage volume."""
    time: Annotated[str, Field(max_length=40)]
    """RFC 3339, UTC."""
    metrics: Annotated[list[Metric], *_cut(8)] = []


class RewardReport(Told):
    name: Annotated[str, *_cut(64)]
    mean: Annotated[str, Field(max_length=64)]
    std: Annotated[str, Field(max_length=64)]
    errors: Count = 0


class EvaluationReport(Told):
    before: Annotated[list[Metric], *_cut(24)] = []
    after: Annotated[list[Metric], *_cut(24)] = []


SkipReason = Literal["NoHeldOutRows", "HeldOutRowsDropped", "Unknown"]


class EvaluationSkipped(Told):
    """Why there is nothing to evaluate on, though the job asks for evaluation."""

    reason: Annotated[SkipReason, BeforeValidator(lambda value: value if value in get_args(SkipReason) else "Unknown")]
    message: Annotated[str, *_cut(1024)]


class Artifact(Told):
    type: Literal["model", "adapter"]
    uri: Annotated[str, Field(max_length=1024)]
    """Path relative to the storage volume."""
    digest: Annotated[str, Field(max_length=80)]
    """sha256:<hex> over the names and contents of the folder's files, in order of name."""
    size: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    """Bytes of all its files."""


class JobWarning(Told):
    """What somebody should look at, in a job's spec or in what its training shows, and what to do about it."""

    reason: Annotated[str, Field(max_length=63, pattern="^[A-Z][A-Za-z0-9]*$")]
    """In one word, which stays the same."""
    message: Annotated[str, *_cut(300)]
    hint: Annotated[str, *_cut(300)]


class Progress(Told):
    """One report of rank 0. All numbers are finite; a number that is not known is absent."""

    attempt: Count = 0
    activity: Annotated[str, *_cut(63), Field(min_length=1)] = "loading"
    """One of Activity; the operator shows whatever a newer trainer says."""
    activity_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    """How much of an activity that is no training is done; absent where that is not known."""
    step: Count = 0
    total_steps: Count = 0
    epoch: float | None = None
    eta_seconds: Count | None = None
    """Seconds to the end of training, from this attempt's own step times."""
    elapsed_seconds: Count | None = None
    """Since this attempt began on rank 0's node."""
    training_seconds: Count | None = None
    """Of all steps up to this one, whichever attempt took them; steps that were lost with an attempt do not count."""
    gpus: Count = 0
    """GPUs of all its processes."""
    tokens_per_second: float | None = None
    trainable_parameters: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    gradient_checkpointing: bool | None = None
    """Whether activations are recomputed; known before weights are loaded."""
    last_update_time: Annotated[str, Field(max_length=40)]
    """RFC 3339, UTC."""
    metrics: Annotated[list[Metric], *_cut(64)] = []
    """loss, learning_rate, grad_norm and the rest of the last log entry."""
    resumed_from_step: Count | None = None
    checkpoints: Annotated[list[CheckpointReport], *_cut(5)] = []
    evaluation: EvaluationReport | None = None
    evaluation_skipped: EvaluationSkipped | None = None
    """Known before weights are loaded."""
    rewards: Annotated[list[RewardReport], *_cut(16)] = []
    artifacts: Annotated[list[Artifact], *_cut(4)] = []
    """What came out; only in the last report of an attempt that has succeeded, and in no exit record's progress."""
    warnings: Annotated[list[Annotated[str, *_cut(300)]], *_cut(8)] = []
    """What the preflight found worth a look: cut or dropped rows, duplicates, a tight memory estimate."""
    training_warnings: Annotated[list[JobWarning], *_cut(4)] = []
    """What this attempt's metrics warn of, each reason once."""


class TrainerStatus(Told):
    """Kubeflow Trainer's TrainJob status (KEP-2779); a stock transformers script sends just this."""

    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    estimated_remaining_seconds: Count | None = None
    metrics: Annotated[list[Metric], *_cut(256)] = []
    last_updated_time: Annotated[str, Field(max_length=40)]


class ProgressReport(Told):
    """Body of a POST to the receiver: `trainerStatus` for everyone, `trl` beside it from our trainer."""

    trainer_status: TrainerStatus
    trl: Progress | None = None


class ExitRecord(Told):
    """The termination message: how the attempt ended on this pod, and everything the status still needs."""

    contract_version: int = CONTRACT_VERSION
    outcome: Literal["Succeeded", "Failed", "Preempted"]
    attempt: Count = 0
    reason: Annotated[FailureReason | None, BeforeValidator(_known_reason)] = None
    message: Annotated[str, *_cut(1024)] = ""
    rank: Count | None = None
    """Global rank whose failure came first."""
    time: Annotated[str, Field(max_length=40)]
    """RFC 3339 with microseconds: the first cause wins."""
    activity: Annotated[str, *_cut(63)] = ""
    """What that rank was at, in the words of its watchdog, like training; empty: not known."""
    step: Count | None = None
    checkpoint: Annotated[str, Field(max_length=1024)] | None = None
    """Newest published checkpoint, relative to the storage volume."""
    log: Annotated[str, *_cut(2048)] = ""
    """Tail of the failing rank's own traceback, secrets masked."""
    artifacts: Annotated[list[Artifact], *_cut(4)] = []
    progress: Progress | None = None
    """The last report, cut to what fits; only on the pod of rank 0."""
