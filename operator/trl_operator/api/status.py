"""The status of all four kinds. Numbers that are not integers are decimal strings; everything is bounded.

Each field is written by one field manager: trl-operator-status, but for those that say otherwise.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trl_contract.cluster import BackendName
from trl_operator.api.parts import (
    BY_ITS_FIELDS,
    BY_ITS_ITEMS,
    NO_LONGER_WRITTEN,
    REPORTED,
    Count,
    Int64,
    Part,
    Text63,
    Text256,
    Text1024,
    Text2048,
    Time,
    list_map,
)
from trl_operator.api.reported import (
    CheckpointStatus,
    EvaluationStatus,
    ProgressStatus,
    RewardStatus,
    UsageStatus,
    WarningStatus,
)

Phase = Literal[
    "Pending", "Blocked", "Queued", "Starting", "Running", "Restarting", "Stopping", "Suspended", "Succeeded", "Failed",
    "Cancelled",
]  # fmt: skip


UNSEEN = -1
"""observedGeneration of a job that no operator has looked at yet: kstatus takes one without a status for finished."""


class Condition(Part):
    type: Annotated[str, Field(max_length=63)]
    """Accepted, UpstreamReady, Queued, Running, Reconciling, Stalled, Suspended, EvaluationSkipped, KLPenaltyDisabled,
    Succeeded, Failed or Finished."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: Annotated[str, Field(min_length=1, max_length=256, pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, in one CamelCase word that programs may rely on."""
    message: Text2048
    """Why, for people."""
    last_transition_time: Time
    """When status changed last."""
    observed_generation: Int64 | None = None
    """Generation of the job that this was decided on."""


class WorkloadRef(Part):
    api_version: Text63
    """API version of what runs the attempt."""
    kind: Text63
    """Its kind."""
    name: Text63
    """Its name."""
    uid: Text63
    """Its uid."""


class PyTorchJobRef(Part):
    name: Text63
    """Name of the attempt's PyTorchJob."""
    uid: Text63
    """Its uid."""


class UpstreamRef(Part):
    kind: Text63
    """Kind of an earlier job whose result is used."""
    name: Text256
    """Its name."""
    uid: Text63
    """Its uid."""
    digest: Annotated[str, Field(max_length=80)]
    """Digest of the model that it left; empty if its checkpoints are used."""


class Run(Part):
    """What all attempts have in common, whatever changes around them."""

    image: Annotated[str, Field(max_length=500)]
    """Image of the trainer."""
    backend: BackendName = "pytorchjob"
    """What runs the attempts."""
    upstreams: Annotated[list[UpstreamRef], Field(max_length=16, json_schema_extra=list_map("uid"))] = []
    """Earlier jobs whose results are used."""
    digest: Annotated[str, Field(max_length=80)]
    """sha256 over the ConfigMap with the resolved spec, which has the name of the job and its kind's suffix."""


class DefaultsSet(Part):
    name: Text63
    """Name of a set of jobDefaults."""
    fields: Annotated[list[Text63], Field(max_length=16)]
    """Fields of the spec that it says, wholly or in part."""


class DefaultQueue(Part):
    name: Text63
    """LocalQueue that the attempts wait in."""
    priority_class: Text63 | None = None
    """Their WorkloadPriorityClass."""


class Defaults(Part):
    """What the jobDefaults of the operator's installation add to the spec, which says nothing of it."""

    sets: Annotated[list[DefaultsSet], Field(max_length=16, json_schema_extra=list_map("name"))] = []
    """Which of them say something, the first 16; resolved.json in the run's ConfigMap has what."""
    queue: DefaultQueue | None = None
    """queue, if it is of jobDefaults."""
    ttl_seconds_after_finished: Count | None = None
    """runPolicy.ttlSecondsAfterFinished, if it is of jobDefaults."""


class Retry(Part):
    """What decides about the next attempt."""

    counted: Count = 0
    """Restarts that count against runPolicy.maxRestarts."""
    free_in_a_row: Count = 0
    """Restarts in a row that did not count and brought no newer checkpoint."""
    in_a_row: Count = 0
    """Restarts in a row without a newer checkpoint; the pause grows with them."""
    checkpoint_step: Count = 0
    """Newest checkpoint when the last attempt ended."""
    not_before: Time | None = None
    """The next attempt starts at this time."""


class Adaptation(Part):
    attempt: Count
    """The first attempt that runs so."""
    reason: Text63
    """Why the one before has failed."""
    per_device_batch_size: Count
    """training.perDeviceBatchSize from then on."""
    gradient_accumulation_steps: Count
    """training.gradientAccumulationSteps from then on."""
    gradient_checkpointing: bool | None = None
    """true: activations are recomputed from then on, which by the estimate was not needed."""


class Effective(Part):
    """What the job really runs with."""

    batch_size: Count | None = None
    """Rows per optimizer step: perDeviceBatchSize x worldSize x gradientAccumulationSteps."""
    world_size: Count | None = None
    """Processes of all nodes."""
    model: Text256 | None = None
    """The base model, for printing."""
    total_steps: Annotated[Count | None, REPORTED] = None
    """Optimizer steps of the whole run."""
    trainable_parameters: Annotated[Int64 | None, REPORTED] = None
    """Parameters that are trained."""
    gradient_checkpointing: Annotated[bool | None, REPORTED] = None
    """Whether activations are recomputed: training.gradientCheckpointing or, if unset, what the trainer has decided."""


class ArtifactStatus(Part):
    type: Annotated[str, Field(max_length=32)]
    """model or adapter."""
    claim_name: Text256 | None = None
    """PersistentVolumeClaim that it is in."""
    path: Text2048 | None = None
    """Folder in that claim."""
    uri: Text1024 | None = None
    """Folder, relative to the storage volume, as version 0.1 of the operator has written it; path says it now."""
    digest: Annotated[str, Field(max_length=80)]
    """sha256 over the folder's files."""
    size: Int64 | None = None
    """Bytes of all its files."""
    fetch_command: Text2048 | None = None
    """Shell command that copies it to the folder ./<name of the job>-<type>; by a pod that it starts and deletes."""


class Waiting(Part):
    reason: Annotated[str, Field(max_length=256)]
    """Why the job does not run, in one word: the reason of the condition that says so."""
    message: Text2048
    """Why it does not run, with names and numbers."""


class Failure(Part):
    reason: Text63
    """Why the job failed, in one word."""
    message: Text1024
    """Why the job failed."""
    hint: Text1024
    """What to do about it."""
    pod: Text256 | None = None
    """Pod whose failure came first."""
    rank: Count | None = None
    """Global rank whose failure came first."""
    exit_code: Count | None = None
    """Exit code of its container."""
    log: Text2048 | None = None
    """The end of its log."""


class JobStatus(Part):
    """Observed state; written by the operator only."""

    observed_generation: Annotated[int, Field(ge=UNSEEN, json_schema_extra={"format": "int64"})] | None = None
    """Generation of the job that this status was decided on; -1 before the first decision."""
    conditions: Annotated[list[Condition], Field(max_length=16, json_schema_extra=list_map("type"))] = []
    """Accepted, UpstreamReady, Queued, Running, Suspended, EvaluationSkipped, KLPenaltyDisabled; Reconciling and
    Stalled as kstatus means them; and at the end Finished (True), Succeeded and Failed (True or False; both False if
    cancelled)."""
    phase: Phase | None = None
    """Summary for printing."""
    waiting: Waiting | None = None
    """Why the job does not run; absent while it does, and when it has ended."""
    attempt: Count | None = None
    """The attempt that runs, or runs next; the first is 0."""
    workload: WorkloadRef | None = None
    """What runs the attempt."""
    pytorch_job: Annotated[PyTorchJobRef | None, NO_LONGER_WRITTEN] = None
    """The attempt's PyTorchJob, as version 0.1 of the operator has written it; workload says it now."""
    run: Run | None = None
    """What the run is pinned to, from its first attempt on."""
    defaults: Defaults | None = None
    """What the admin's jobDefaults add; once an attempt has begun it stays as it is, whatever becomes of them."""
    restarts: Count = 0
    """How often a failed attempt was followed by another one."""
    retry: Retry | None = None
    """What decides about the next attempt."""
    adaptations: Annotated[list[Adaptation], Field(max_length=16, json_schema_extra=list_map("attempt"))] = []
    """What attempts do otherwise than the first, oldest first, since a GPU's memory was too small:
    runPolicy.onOutOfMemory."""
    start_time: Time | None = None
    """When the operator first took the job up, not suspended; runPolicy.activeDeadlineSeconds counts from here."""
    suspended_seconds: Count | None = None
    """How long the job was suspended, for the deadline."""
    completion_time: Time | None = None
    """When the job ended for good."""
    took: Text63 | None = None
    """From startTime to completionTime, like 1h20m; absent before the end."""
    effective: Annotated[Effective | None, BY_ITS_FIELDS] = None
    """What the job really runs with."""
    progress: Annotated[ProgressStatus | None, REPORTED] = None
    """The last report."""
    checkpoints: Annotated[
        list[CheckpointStatus], Field(max_length=5, json_schema_extra=list_map("step")), REPORTED
    ] = []
    """Published checkpoints, newest last."""
    resumed_from_step: Annotated[Count | None, REPORTED] = None
    """Step of the checkpoint that the current attempt resumed from."""
    warnings: Annotated[
        list[WarningStatus], Field(max_length=8, json_schema_extra=list_map("reason")), BY_ITS_ITEMS
    ] = []
    """What somebody should look at: in the spec, by trl-operator-status, and in the metrics of training, by
    trl-operator-progress. Each reason is told once, and stays."""
    usage: Annotated[UsageStatus | None, REPORTED] = None
    """What the job has taken of the cluster."""
    evaluation: Annotated[EvaluationStatus | None, REPORTED] = None
    """Metrics on held-out rows, before and after."""
    rewards: Annotated[list[RewardStatus], Field(max_length=16, json_schema_extra=list_map("name")), REPORTED] = []
    """The rewards one by one."""
    artifacts: Annotated[list[ArtifactStatus], Field(max_length=4, json_schema_extra=list_map("type"))] = []
    """What came out."""
    failure: Failure | None = None
    """Why the job failed."""

    @model_validator(mode="before")
    @classmethod
    def _take_over(cls, data: Any) -> Any:
        return {**data, "workload": workload(data) or None} if isinstance(data, dict) else data

    def condition(self, kind: str) -> Condition | None:
        """Return a condition; None if it is not there."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: str) -> bool:
        found = self.condition(kind)
        return found is not None and found.status == "True"

    def reason(self, kind: str) -> str:
        """Return the reason of a condition; empty if it is not there."""
        found = self.condition(kind)
        return found.reason if found else ""

    def why_not(self) -> Waiting | None:
        """Return why the job does not run, by its conditions: the first one that keeps it from going on."""
        if self.completion_time is not None:
            return None
        found = [(each, needed) for kind, needed in _NEEDED.items() if (each := self.condition(kind)) is not None]
        if (first := next((each for each, needed in found if each.status != needed), None)) is None:
            # A job that has never run has no condition that says it does not.
            rests = self.is_true("Suspended") and not self.is_true("Running")
            first = self.condition("Suspended") if rests else None
        return Waiting(reason=first.reason, message=first.message) if first else None


_NEEDED = {"Accepted": "True", "UpstreamReady": "True", "Queued": "False", "Running": "True"}
"""What the conditions of a job that runs are, in the order in which it comes to them."""


def workload(status: dict[str, Any]) -> dict[str, Any]:
    """Return apiVersion, kind, name and uid of the attempt's workload; empty if a stored status names none.

    Version 0.1 of the operator has written `pytorchJob` with name and uid instead; one that is left of an earlier
    attempt says nothing.
    """
    old = status.get("pytorchJob", {})
    if "workload" not in status and old.get("name", "").endswith(f"-{status.get('attempt')}"):
        return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", **old}
    found: dict[str, Any] = status.get("workload", {})
    return found
