"""The part of a spec that the cluster needs; of it the trainer's job file has processes and times only."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trl_contract.base import Int32, Key, LabelValue, Model, Name, QualifiedName, RelativePath, Rule
from trl_contract.pod import RESERVED_ENV, Pod
from trl_contract.quantity import Quantity, amount
from trl_contract.resources import Resources

MAX_CPU_PROCESSES_PER_NODE = 8
SHARED_STORAGE = "several nodes need storage.accessModes with ReadWriteMany"
"""What to do where `ClusterSpec.has_shared_storage` is false."""


class Storage(Model):
    """Where checkpoints and the model go: an existing claim, or one that the operator creates."""

    rules: ClassVar = (
        Rule(
            "has(self.claimName) != has(self.size)",
            "give exactly one of claimName, size",
            lambda self: (self.claim_name is None) != (self.size is None),
        ),
        Rule(
            "!has(self.subPath) || has(self.claimName)",
            "subPath goes with claimName: remove it",
            lambda self: self.sub_path is None or self.claim_name is not None,
        ),
        Rule(
            "has(self.size) || !(has(self.storageClassName) || has(self.accessModes) || has(self.retain))",
            "storageClassName, accessModes and retain go with size: remove them",
            lambda self: (
                self.size is not None
                or (self.storage_class_name is None and self.access_modes is None and self.retain is None)
            ),
        ),
        Rule(
            "!has(self.reuse) || has(self.size)",
            "reuse goes with size: remove it",
            lambda self: self.reuse is None or self.size is not None,
        ),
        Rule(
            "!has(self.size) || quantity(string(self.size)).isGreaterThan(quantity('0'))",
            "size must be above 0, like 100Gi",
            lambda self: self.size is None or amount(self.size) > 0,
        ),
        Rule(
            "!has(self.accessModes) || !('ReadWriteOncePod' in self.accessModes) || self.accessModes.size() == 1",
            "accessModes: ReadWriteOncePod must stand alone: remove the others",
            lambda self: "ReadWriteOncePod" not in (self.access_modes or []) or len(self.access_modes) == 1,
        ),
    )

    claim_name: Name | None = None
    """An existing PersistentVolumeClaim in the job's namespace; several nodes need ReadWriteMany."""
    sub_path: RelativePath | None = None
    """Folder in that claim."""
    size: Quantity | None = None
    """Size of a claim that the operator creates."""
    storage_class_name: Name | None = None
    """Its StorageClass; if unset the admin's (jobDefaults) or the cluster's default."""
    access_modes: (
        Annotated[
            list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]], Field(min_length=1, max_length=3)
        ]
        | None
    ) = None
    """Its access modes; [ReadWriteOnce] if unset, and the admin's jobDefaults say nothing. Several nodes need
    ReadWriteMany."""
    retain: bool | None = None
    """Keep that claim when the job is deleted; true if unset."""
    reuse: Literal["always", "ifFits", "never"] | None = None
    """What becomes of a claim that an earlier job of the same name has left. ifFits (if unset): it is used if it has at
    least the size, and the class and access modes that are given here; else, and with never, the job waits until it is
    deleted. always: it is used as it is. Several nodes need ReadWriteMany in any case."""


class Toleration(Model):
    rules: ClassVar = (
        Rule(
            "self.operator != 'Exists' || !has(self.value)",
            "value has no meaning with operator Exists",
            lambda self: self.operator != "Exists" or self.value is None,
        ),
        Rule(
            "has(self.key) || self.operator == 'Exists'",
            "without key, operator must be Exists",
            lambda self: self.key is not None or self.operator == "Exists",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds goes with effect NoExecute",
            lambda self: self.toleration_seconds is None or self.effect == "NoExecute",
        ),
    )

    key: QualifiedName | None = None
    """Taint key; every key if unset (with operator Exists)."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How value is compared."""
    value: LabelValue | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; every effect if unset."""
    toleration_seconds: Annotated[Int32, Field(ge=0)] | None = None
    """How long a NoExecute taint is tolerated; for ever if unset."""


class LocalObjectReference(Model):
    name: Name
    """Name of a Secret in the job's namespace."""


class SecretKeySelector(Model):
    name: Name
    """Name of a Secret in the job's namespace."""
    key: Key
    """Key in that Secret."""


class FieldSelector(Model):
    field_path: Annotated[
        str,
        Field(
            max_length=340,
            pattern=r"^(metadata\.(name|namespace|uid|(labels|annotations)\['[-A-Za-z0-9_./]+'\])|spec\.nodeName"
            r"|spec\.serviceAccountName|status\.(hostIPs?|podIPs?))$",
        ),
    ]
    """What of the pod, like spec.nodeName, status.hostIP or metadata.labels['example.com/team']."""


class EnvVarSource(Model):
    rules: ClassVar = (
        Rule(
            "has(self.secretKeyRef) != has(self.fieldRef)",
            "give exactly one of secretKeyRef, fieldRef",
            lambda self: (self.secret_key_ref is None) != (self.field_ref is None),
        ),
    )

    secret_key_ref: SecretKeySelector | None = None
    """A key of a Secret in the job's namespace."""
    field_ref: FieldSelector | None = None
    """A field of the pod itself."""


BackendName = Literal["pytorchjob", "trainjob"]


SECRET_ENV = r"^.*(_TOKEN|_KEY|_SECRET|_PASSWORD)$"


class EnvVar(Model):
    rules: ClassVar = (
        Rule(
            "has(self.value) != has(self.valueFrom)",
            "give exactly one of value, valueFrom",
            lambda self: (self.value is None) != (self.value_from is None),
        ),
        Rule(
            f"!self.name.matches('{RESERVED_ENV}')",
            "this variable is set by the operator or changes how the trainer starts: remove it",
            lambda self: re.fullmatch(RESERVED_ENV, self.name) is None,
        ),
        Rule(
            f"!has(self.value) || !self.name.matches('{SECRET_ENV}') || self.name == 'HF_HUB_DISABLE_IMPLICIT_TOKEN'",
            "a variable that holds a secret must not have a literal value: use valueFrom.secretKeyRef",
            lambda self: (
                self.value is None
                or re.fullmatch(SECRET_ENV, self.name) is None
                or self.name == "HF_HUB_DISABLE_IMPLICIT_TOKEN"
            ),
        ),
    )

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Its value, taken literally."""
    value_from: EnvVarSource | None = None
    """Where its value comes from."""


class QueueTopology(Model):
    """How close to each other Kueue places the pods: exactly one of three."""

    rules: ClassVar = (
        Rule(
            "[has(self.required), has(self.preferred), has(self.unconstrained)].filter(x, x).size() == 1",
            "give exactly one of required, preferred, unconstrained",
            lambda self: [self.required, self.preferred, self.unconstrained].count(None) == 2,
        ),
    )

    required: QualifiedName | None = None
    """All pods go into one domain of this node label, a level of the flavor's Topology; the job waits for it."""
    preferred: QualifiedName | None = None
    """They go into one domain of this node label if they can, else into one of a wider level, else into several."""
    unconstrained: Literal[True] | None = None
    """They go wherever the Topology has room."""


class Queue(Model):
    """The queue of Kueue's that the job waits in for its nodes."""

    name: Annotated[Name, Field(max_length=63)]
    """A LocalQueue in the job's namespace; the job's label kueue.x-k8s.io/queue-name says the same."""
    priority_class: Annotated[Name, Field(max_length=63)] | None = None
    """A WorkloadPriorityClass; if unset, Kueue takes the priority of the pods' priorityClassName."""
    topology: QueueTopology | None = None
    """How close to each other the pods are to be; only for flavors with a Topology."""


class RunPolicy(Model):
    """How the job runs. The only part of a spec that may be edited."""

    suspend: bool = False
    """Stop the job, with a checkpoint, and keep it; false lets it go on from there at no cost."""
    cancel: bool = False
    """Stop the job for good, with a checkpoint."""
    max_restarts: Annotated[Int32, Field(ge=0, le=100)] = 3
    """How often a failed attempt is followed by another one; preemption and lost nodes are not counted."""
    start_timeout_seconds: Annotated[Int32, Field(ge=30, le=604800)] = 900
    """An attempt of which some pods have a node and others find none gives its nodes back after so long, and starts
    again later; the oldest of the jobs in this state waits twice as long. Pulling an image counts as having a node."""
    active_deadline_seconds: Annotated[Int32, Field(ge=1)] | None = None
    """The job fails when it is not done so long after its start; the clock stands still while it is suspended."""
    ttl_seconds_after_finished: Annotated[Int32, Field(ge=0)] | None = None
    """The finished job is deleted after so long; it stays if unset."""
    stall_timeout_seconds: Annotated[Int32, Field(ge=30, le=604800)] = 1800
    """A rank that makes no step for so long ends its attempt; so does one whose reports say for so long that it trains
    at the same step."""
    termination_grace_period_seconds: Annotated[Int32, Field(ge=30, le=86400)] = 300
    """Time to publish a checkpoint when the attempt is stopped."""
    on_out_of_memory: Literal["Fail", "ShrinkMicroBatch"] = "Fail"
    """What follows when a GPU's memory is too small for training, and activations are recomputed already (where
    training.gradientCheckpointing is unset, the next attempt begins with that). Fail: the job fails. ShrinkMicroBatch:
    the next attempt goes on from the newest checkpoint with half of training.perDeviceBatchSize and twice
    gradientAccumulationSteps, the same rows per optimizer step; status.adaptations says so. That does not count against
    maxRestarts, and ends where the batch is odd. Needs an even perDeviceBatchSize."""


class ClusterSpec(Model):
    """What all four kinds have in common beside their training part."""

    num_nodes: Annotated[Int32, Field(ge=1, le=1024)] = 1
    """Number of pods, one per node."""
    num_proc_per_node: Annotated[Int32, Field(ge=1, le=64)] | None = None
    """Processes per pod. Default: the number of GPUs in resources.limits, to which it must be equal, or 1 without GPUs,
    where it is at most 8."""
    resources: Resources = Resources()
    """Resources of each pod."""
    storage: Storage
    """Where checkpoints and the model go."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm; it counts against the memory limit, and is bounded by it if unset."""
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=16)] | None = None
    """Node labels that the pods need."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = None
    """Node taints that the pods tolerate."""
    priority_class_name: Name | None = None
    """PriorityClass of the pods."""
    queue: Queue | None = None
    """A queue of Kueue's to wait in; name and priorityClass may be changed while no attempt runs."""
    scheduler_name: Name | None = None
    """Scheduler of the pods; the cluster's default if unset."""
    one_pod_per_node: bool | None = None
    """No two pods of the job share a node. If unset or false, they only stay apart where they can."""
    pod: Pod | None = None
    """What else the pods need of the cluster."""
    pod_group_policy: Literal["coscheduling", "volcano"] | None = None
    """Pods get nodes all together or not at all, by a pod group of the scheduler plugins (coscheduling) or of Volcano.
    The training-operator makes pod groups of the kind that its flag --gang-scheduler-name says."""
    backend: BackendName | None = None
    """What runs the pods: pytorchjob (Kubeflow's training-operator) or trainjob (Kubeflow Trainer with JobSet); as the
    operator is installed if unset."""
    image: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[!-~]+$")] | None = None
    """Trainer image; the operator's own trainer image if unset."""
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=8)] | None = None
    """Secrets for pulling the image."""
    env: Annotated[list[EnvVar], Field(max_length=64)] | None = None
    """More environment variables of the trainer."""
    run_policy: RunPolicy = RunPolicy()
    """How the job runs."""

    @property
    def gpus_per_node(self) -> int:
        """The number of GPUs in resources.limits; 0 without."""
        return sum(int(count) for count in self.resources.gpus.values())

    @property
    def processes_per_node(self) -> int:
        """numProcPerNode: as given, else the number of GPUs, else 1."""
        return self.num_proc_per_node or self.gpus_per_node or 1

    @property
    def has_shared_storage(self) -> bool:
        """Whether all nodes can write to the claim that the operator makes; true if it makes none."""
        storage = self.storage
        return self.num_nodes == 1 or storage.size is None or "ReadWriteMany" in (storage.access_modes or [])

    @property
    def world_size(self) -> int:
        """The number of processes of all nodes."""
        return self.num_nodes * self.processes_per_node
