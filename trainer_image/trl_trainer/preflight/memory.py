"""How much memory a rank needs, from numbers alone: no weights are loaded, and torch is not imported.

All sizes are bytes per process. What is certain (weights, gradients, optimizer, models beside the policy, the copy from
which a checkpoint is written) and what is a rough guess (activations) are kept apart: only the first is a reason to
refuse a job.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trl_contract.base import Model
from trl_contract.jobfile import JobFile
from trl_contract.training import DPOSpec

OPTIMIZER_BYTES: dict[str, float] = {
    "adamw_torch_fused": 8,
    "adamw_torch": 8,
    "adamw_bnb_8bit": 2,
    # Its pages move to host memory when the GPU is full, and adafactor keeps one number per row and column.
    "paged_adamw_8bit": 0,
    "adafactor": 0,
    "sgd": 0,
}
"""State of each optimizer in bytes per trained parameter."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per parameter in 4 bit: blocks of 64 share an 8-bit constant, 256 of those share an fp32 one (QLoRA, 3)."""

GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """What the estimate needs to know about models and rows; counts of parameters."""

    parameters: int
    """The base model's."""
    linear: int
    """Of these, the ones in linear layers of the blocks, which qlora keeps in 4 bit."""
    adapter: int
    """Of the adapter that the job trains or, with method none, would train with lora's defaults."""
    hidden: int
    layers: int
    vocabulary: int
    length: int
    """Tokens of the longest row that the model will see."""
    other_model: int = 0
    """Of the explicit reference model."""
    reward_models: int = 0
    """Bytes of all reward models."""


class MemoryEstimate(Model):
    """Bytes per process."""

    weights: int
    gradients: int
    """Also the whole ones that are kept between the micro-steps of a step, unless sync_each_batch."""
    sync_each_batch: bool
    """Whether gradients are reduced, and sharded, after every micro-step (accelerate's word for it). Once a step is
    faster, and is what happens where whole gradients in fp32 fit beside everything else."""
    optimizer: int
    beside: int
    """Reference model and reward models; they are not sharded."""
    saving: int
    """The copy from which a sharded checkpoint is written while training goes on (writer.py). Of several CPU processes
    only: with GPUs it is in the host's memory."""
    offloaded: int
    """Weights, gradients and optimizer state that fsdp.cpuOffload keeps in the host's memory instead of the GPU's."""
    activations: int
    """A rough guess for the longest row."""
    available: int
    """Memory of the GPU, or this process's share of the pod's memory limit."""
    device: str
    """cuda or cpu."""
    change: str | None = None
    """The smallest change of the job that fits, when it does not fit."""

    @property
    def certain(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.beside + self.saving

    @property
    def total(self) -> int:
        return self.certain + self.activations

    def describe(self) -> str:
        """Return one sentence with all numbers in GiB."""
        parts = ", ".join(
            f"{name} {getattr(self, name) / GIB:.1f}"
            for name in ("weights", "gradients", "optimizer", "beside", "saving")
            if getattr(self, name) >= GIB / 20
        )
        return (
            f"{self.certain / GIB:.1f} GiB per process{f' ({parts})' if parts else ''} and about"
            f" {self.activations / GIB:.1f} GiB of activations; the {'GPU' if self.device == 'cuda' else 'process'}"
            f" has {self.available / GIB:.1f} GiB"
        )


def estimate(job: JobFile, sizes: Sizes, available: int, device: str) -> MemoryEstimate:
    """Return the estimate for a resolved job, with the smallest change that fits if it does not."""
    found = _estimate(job, sizes, available, device)
    if found.sync_each_batch:
        whole = 4 * _trained(job, sizes)
        if found.total + whole <= available:
            return found.model_copy(update={"gradients": found.gradients + whole, "sync_each_batch": False})
    if found.total <= available:
        return found
    needed = "certain" if found.certain > available else "total"
    for text, changed, share in _changes(job, sizes, device):
        if getattr(_estimate(changed, sizes, available, device), needed) <= available * share:
            return found.model_copy(update={"change": text})
    return found


def _estimate(job: JobFile, sizes: Sizes, available: int, device: str) -> MemoryEstimate:
    spec, world, shards = job.spec, job.world_size, job.num_shards
    method = spec.peft.method
    compute = 2 if spec.training.precision == "bf16" else 4
    trained = _trained(job, sizes)
    if method == "none":
        weights = 4.0 * sizes.parameters
    elif method == "lora":
        weights = compute * sizes.parameters + 4.0 * trained
    else:
        weights = NF4_BYTES * sizes.linear + compute * (sizes.parameters - sizes.linear) + 4.0 * trained
    optimizer = OPTIMIZER_BYTES[spec.training.optimizer] * trained / shards
    copied = device == "cpu" and world > 1 and spec.fsdp.state_dict_type == "sharded"
    offloaded = spec.fsdp.cpu_offload
    gathered = 0.0 if world == 1 or spec.fsdp.reshard_after_forward else compute * sizes.parameters
    return MemoryEstimate(
        weights=round(gathered if offloaded else weights / shards + gathered),
        gradients=0 if offloaded else round(4 * trained / shards),
        sync_each_batch=world > 1 and spec.training.gradient_accumulation_steps > 1,
        optimizer=0 if offloaded else round(optimizer),
        offloaded=round((weights + 4 * trained) / shards + optimizer) if offloaded else 0,
        beside=round(_reference(job, sizes, compute)) + sizes.reward_models,
        saving=round(4 * trained / shards + optimizer) if copied else 0,
        activations=round(_activations(job, sizes, compute)),
        available=available,
        device=device,
    )


def _trained(job: JobFile, sizes: Sizes) -> int:
    return sizes.parameters if job.spec.peft.method == "none" else sizes.adapter


def _reference(job: JobFile, sizes: Sizes, compute: int) -> int:
    """Return the bytes of the model that the policy is compared with; 0 when the policy itself serves as it."""
    match job.spec.reference:
        case "explicit":
            return compute * sizes.other_model
        case "base":
            return compute * sizes.parameters
        case "precompute":
            # Under FSDP TRL 1.16 precomputes with a copy of its own, in the policy's fp32, whole on every process.
            return 4 * sizes.parameters if job.world_size > 1 else 0
        case "none":
            return 0


def _activations(job: JobFile, sizes: Sizes, compute: int) -> float:
    """Return a guess: 17 values per token, hidden unit and layer (Korthikanti et al. 2022, without attention scores),
    or with checkpointing one per layer and one layer's 17; and the logits in fp32 where TRL holds them whole (sft)."""
    training = job.spec.training
    sequences = training.per_device_batch_size * job.spec.sequences_per_row
    tokens = sequences * sizes.length
    values = sizes.layers + 17 if training.gradient_checkpointing else 17 * sizes.layers
    logits = 8 * tokens * sizes.vocabulary if job.kind == "SFTJob" else 0
    return compute * tokens * sizes.hidden * values + logits


def _changes(job: JobFile, sizes: Sizes, device: str) -> Iterator[tuple[str, JobFile, float]]:
    """Yield changes of the job, the one that costs least first, with the factor by which the available memory grows."""
    training, peft = job.spec.training, job.spec.peft
    if not training.gradient_checkpointing:
        yield "training.gradientCheckpointing: true", _with(job, "training", gradient_checkpointing=True), 1
    size = training.per_device_batch_size
    while size > 1 and size % 2 == 0:
        size //= 2
        steps = training.gradient_accumulation_steps * (training.per_device_batch_size // size)
        changed = _with(job, "training", per_device_batch_size=size, gradient_checkpointing=True)
        yield (
            "training.gradientCheckpointing: true"
            f" with perDeviceBatchSize: {size} and gradientAccumulationSteps: {steps}",
            changed,
            1,
        )
    if isinstance(job.spec, DPOSpec) and job.spec.dpo.reference_model.mode != "precompute":
        reference = job.spec.dpo.reference_model.model_copy(update={"mode": "precompute", "source": None})
        yield "dpo.referenceModel.mode: precompute", _with(job, "dpo", reference_model=reference), 1
    if device == "cuda" and OPTIMIZER_BYTES[training.optimizer] > 2:
        yield "training.optimizer: adamw_bnb_8bit", _with(job, "training", optimizer="adamw_bnb_8bit"), 1
    if peft.method == "none":
        yield "peft.method: lora", _with(job, "peft", method="lora"), 1
    if device == "cuda" and peft.method != "qlora":
        yield "peft.method: qlora", _with(job, "peft", method="qlora"), 1
    if job.num_shards < job.world_size:
        yield "fsdp.hybrid: false", _with(job, "fsdp", hybrid=False), 1
    for factor in (2, 4, 8, 16, 32):
        nodes = job.num_nodes * factor
        yield f"numNodes: {nodes}", job.model_copy(update={"num_nodes": nodes}), 1
    if device == "cpu" and job.num_proc_per_node > 1:
        alone = job.model_copy(update={"num_proc_per_node": 1})
        yield "numProcPerNode: 1", alone, job.num_proc_per_node


def _with(job: JobFile, section: str, **values: object) -> JobFile:
    changed = getattr(job.spec, section).model_copy(update=values)
    return job.model_copy(update={"spec": job.spec.model_copy(update={section: changed})})


def host_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this container may use: the lowest memory limit of its control groups, or the machine's
    memory. `root` is where the file systems of /proc and /sys/fs/cgroup are looked for."""
    meminfo = (root / "proc/meminfo").read_text().split("\n", 1)[0]
    limits = [int(meminfo.split()[1]) * 1024]
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the file system starts at its own group, so the path may not be there.
        folder = base / group.lstrip("/")
        for parent in (folder, *folder.parents):
            if (parent / name).exists():
                text = (parent / name).read_text().strip()
                limits += [int(text)] if text != "max" else []
            if parent == base:
                break
    return min(limits)
