"""The job file: all that the trainer is told, written by the operator (or by `trl_trainer run`)."""

from typing import Annotated, Any, Generic, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator
from typing_extensions import TypeVar

from trl_contract.base import CONTRACT_VERSION, Kind, Model
from trl_contract.spec import SPECS, TrainingSpec
from trl_contract.upstreams import Place

Spec = TypeVar("Spec", bound=TrainingSpec, default=TrainingSpec, covariant=True)

JOB_UID = "TRL_JOB_UID"
"""Variable with the uid of the job that a pod is of, if it is a pod."""


class Paths(Model):
    """Where the launcher put things in the trainer's file system; None: not given, or fetched from the hub."""

    storage: str
    """Writable folder that outlives the attempt; the job works in `<storage>/<uid>`."""
    model: str | None = None
    """Folder of the base model."""
    reference_model: str | None = None
    """Folder of the explicit reference model."""
    train: str | None = None
    """File with the training rows."""
    mixture: dict[str, str] = {}
    """For each source of a mixture that is not on the hub, by its index: the file with its rows."""
    eval: str | None = None
    """File with the held-out rows."""
    resume_from: str | None = None
    """Folder of the earlier job whose checkpoints this one goes on from; only read."""
    rewards: dict[str, str] = {}
    """For each reward that needs one, by its name: its Python file or its model's folder."""

    def at(self, place: Place) -> str | None:
        """Return where the result of an earlier job is."""
        role, name = place
        if role == "reward":
            return self.rewards.get(name)
        return {"resume_from": self.resume_from, "model": self.model, "reference_model": self.reference_model}[role]


class AttemptFile(Model):
    """`attempt.json` beside the job file of a run: what changes from attempt to attempt."""

    attempt: Annotated[int, Field(ge=0)]
    per_device_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Of training, in this attempt: the job's, halved as often as runPolicy.onOutOfMemory has made it. Unset: the
    job's, and no attempt has run out of a GPU's memory."""


class JobFile(Model, Generic[Spec]):
    """`/etc/trl/job.json`. `spec` is the training part of the resource, of the class that `kind` says."""

    contract_version: Literal[1, 2] = CONTRACT_VERSION
    """1: the file is an attempt's own. 2: it is the same for all attempts of a run, and `attempt.json` beside it says
    the rest; a trainer that does not know this form refuses it."""
    kind: Kind
    namespace: str
    name: str
    uid: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[-a-zA-Z0-9]+$")]
    attempt: Annotated[int, Field(ge=0)] = 0
    num_nodes: Annotated[int, Field(ge=1)] = 1
    num_proc_per_node: Annotated[int, Field(ge=1)] = 1
    has_gpus: bool = False
    """Pods have GPUs: bf16 is the default precision and a missing CUDA device is an error."""
    stall_timeout_seconds: Annotated[int, Field(ge=1)] = 1800
    termination_grace_period_seconds: Annotated[int, Field(ge=1)] = 300
    shrunk: Annotated[bool, Field(exclude=True)] = False
    """An earlier attempt ran out of a GPU's memory, whatever was estimated; told by `attempt.json`."""
    paths: Paths
    digests: dict[str, str] | None = None
    """For each folder of `paths` that an earlier job has left: the digest of what it left (report.Artifact). Whoever
    loads it looks first whether it still is that."""
    origins: dict[str, str] | None = None
    """For each field of `spec` that neither the user nor the defaults of this version have set: who has."""
    spec: SerializeAsAny[Spec]
    """An instance of SPECS[kind]."""

    @property
    def world_size(self) -> int:
        """Processes of the job, on all nodes."""
        return self.num_nodes * self.num_proc_per_node

    @property
    def num_shards(self) -> int:
        """Processes over which each copy of the model is sharded: all, or with fsdp.hybrid those of one node."""
        return self.num_proc_per_node if self.spec.fsdp.hybrid else self.world_size

    @model_validator(mode="before")
    @classmethod
    def _parse_spec(cls, data: Any) -> Any:
        if isinstance(data, dict) and not isinstance(data.get("spec"), TrainingSpec):
            kind = data.get("kind")
            if kind not in SPECS:
                raise ValueError(f"kind: {kind!r} is not one of {', '.join(SPECS)}")
            data = {**data, "spec": SPECS[kind].model_validate(data.get("spec"))}
        return data

    @model_validator(mode="after")
    def _spec_fits_kind(self) -> Self:
        if type(self.spec) is not SPECS[self.kind]:
            raise ValueError(f"spec: a {self.kind} needs a {SPECS[self.kind].__name__}")
        return self

    @model_validator(mode="after")
    def _nodes_have_something_to_shard_over(self) -> Self:
        if self.spec.fsdp.hybrid and self.num_nodes > 1 and self.num_proc_per_node == 1:
            raise ValueError("spec.fsdp.hybrid: shards inside each node, and numProcPerNode is 1: remove it")
        return self
