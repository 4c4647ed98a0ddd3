"""How much memory a rank needs, from numbers alone: no weights are loaded, and torch is not imported.

All sizes are bytes per process. What is certain (weights, gradients, optimizer, what is gathered, models beside the
policy, the copy from which a checkpoint is written) and what depends on the rows and the model's inner workings
(activations) are kept apart: only the first is a reason to refuse a job. docs/memory.md compares the sum with what
torch counts, for models from 0.5B to 70B.
"""

from trl_contract.base import Model
from trl_contract.jobfile import JobFile
from trl_trainer.launch.host_memory import GIB
from trl_trainer.preflight.activations import transient
from trl_trainer.preflight.changes import changes, works
from trl_trainer.preflight.quantities import OPTIMIZER_BYTES, Sizes, compute_bytes

NF4_CONSTANTS = 1 / 64 + 4 / (64 * 256)
"""Bytes per parameter beside the 4-bit values: blocks of 64 share an 8-bit constant, 256 of those an fp32 one (QLoRA,
3). They are no part of the sharded tensor: every process holds them all."""

FITS = 0.92
"""A job fits when it needs so much of the GPU. The rest is for the CUDA context, NCCL's buffers and what the allocator
loses between tensors: what torch's tracker does not count either."""

KEPT = 0.85
"""Activations are kept where the job needs no more of the GPU than this in its worst micro-batch: recomputing them
costs a third of the time, running out of memory an attempt."""


class MemoryEstimate(Model):
    """Bytes per process."""

    weights: int
    gradients: int
    """Also the whole ones that are kept between the micro-steps of a step, unless sync_each_batch."""
    optimizer: int
    offloaded: int
    """Weights, gradients and optimizer state that fsdp.cpuOffload keeps in the host's memory instead of the GPU's."""
    gathered: int
    """Weights of other processes that are here while they are used: the head's, or two blocks', of which one is on its
    way while the other works."""
    beside: int
    """Reference model, sharded as the policy is, and reward models, which are whole on every process."""
    saving: int
    """The copy from which a sharded checkpoint is written while training goes on (writer.py). Of several CPU processes
    only: with GPUs it is in the host's memory."""
    activations: int
    """What comes and goes beside all that, for the longest row."""
    available: int
    """Memory of the GPU, or this process's share of the pod's memory limit."""
    device: str
    """cuda or cpu."""
    gradient_checkpointing: bool
    """Whether activations are recomputed: as given; by default with GPUs where it does not fit without, with 15 % of
    the GPU to spare."""
    sync_each_batch: bool
    """Whether gradients are reduced, and sharded, after every micro-step (accelerate's word for it): where whole ones,
    kept until the last, do not fit."""
    change: str | None = None
    """The smallest change of the job that fits, when it does not fit."""

    @property
    def certain(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.gathered + self.beside + self.saving

    @property
    def total(self) -> int:
        return self.certain + self.activations

    @property
    def fits(self) -> bool:
        return self.total <= self.available * (FITS if self.device == "cuda" else 1)

    def describe(self) -> str:
        """Return one sentence with all numbers in GiB."""
        parts = ", ".join(
            f"{name} {getattr(self, name) / GIB:.1f}"
            for name in ("weights", "gradients", "optimizer", "gathered", "beside", "saving")
            if getattr(self, name) >= GIB / 20
        )
        return (
            f"{self.certain / GIB:.1f} GiB per process{f' ({parts})' if parts else ''} and about"
            f" {self.activations / GIB:.1f} GiB of activations; the {'GPU' if self.device == 'cuda' else 'process'}"
            f" has {self.available / GIB:.1f} GiB"
        )


def estimate(job: JobFile, sizes: Sizes, available: int, device: str) -> MemoryEstimate:
    """Return the estimate for a resolved job, with the smallest change that fits if it does not."""
    found = _choose(job, sizes, available, device)
    if found.fits:
        return found
    for text, changed, share in changes(job, device):
        if works(changed, device) and _choose(changed, sizes, round(available * share), device).fits:
            return found.model_copy(update={"change": text})
    return found


def smallest_world(job: JobFile, sizes: Sizes, available: int, device: str) -> int | None:
    """Return the smallest number of processes, a power of 2 up to 128, with which the job fits on devices of
    `available` bytes; None if it does not fit with any."""
    for world in (2**power for power in range(8)):
        changed = job.model_copy(update={"num_nodes": 1, "num_proc_per_node": world})
        if works(changed, device) and _choose(changed, sizes, available, device).fits:
            return world
    return None


def _choose(job: JobFile, sizes: Sizes, available: int, device: str) -> MemoryEstimate:
    """Return the estimate with what the trainer decides by it: the cheapest way that fits, or that needs least. Where
    the device ran out of memory before, the estimate is not asked: the way that needs least.

    Recomputing activations costs a third of the time, reducing at every micro-step only messages. Where neither the job
    nor an earlier attempt says, activations are kept only with room to spare (KEPT).
    """
    given = job.spec.training.gradient_checkpointing
    open_to_both = given is None and device == "cuda"
    recompute = [False, True] if open_to_both else [bool(given)]
    several = job.world_size > 1 and job.spec.training.gradient_accumulation_steps > 1
    ways = [(keep, each) for keep in recompute for each in ((False, True) if several else (False,))]
    for keep, each in ways[-1:] if job.shrunk else ways:
        found = _estimate(job, sizes, available, device, recompute=keep, sync_each_batch=each)
        if found.fits and (keep or not open_to_both or found.total <= KEPT * available):
            break
    return found


def _estimate(
    job: JobFile, sizes: Sizes, available: int, device: str, *, recompute: bool, sync_each_batch: bool
) -> MemoryEstimate:
    spec, world = job.spec, job.world_size
    full = spec.peft.method == "none"
    trained = sizes.parameters if full else sizes.adapter
    # An adapter's first matrix has r rows, and a row is the least that a process can hold.
    shards = job.num_shards if full else min(job.num_shards, spec.peft.r)
    kept_whole = world > 1 and spec.training.gradient_accumulation_steps > 1 and not sync_each_batch
    whole = 4 * trained if kept_whole else 0
    weights, gradients = _weights(job, sizes, shards), 4 * trained / shards
    optimizer = OPTIMIZER_BYTES[spec.training.optimizer] * trained / shards
    offloaded = weights + gradients + optimizer if spec.fsdp.cpu_offload else 0
    copied = device == "cpu" and world > 1 and spec.fsdp.state_dict_type == "sharded"
    gathered, activations = transient(job, sizes, recompute)
    return MemoryEstimate(
        weights=0 if offloaded else round(weights),
        gradients=whole if offloaded else round(gradients + whole),
        optimizer=0 if offloaded else round(optimizer),
        offloaded=round(offloaded),
        gathered=round(gathered),
        beside=round(_reference(job, sizes)) + sizes.reward_models,
        saving=round(4 * trained / shards + optimizer) if copied else 0,
        activations=round(activations),
        available=available,
        device=device,
        gradient_checkpointing=recompute,
        sync_each_batch=sync_each_batch,
    )


def _weights(job: JobFile, sizes: Sizes, shards: int) -> float:
    """Return the bytes of this process's weights: fp32 what is trained, frozen in the precision of the arithmetic."""
    world, others = job.num_shards, sizes.parameters - sizes.linear
    match job.spec.peft.method:
        case "none":
            return 4 * sizes.parameters / world
        case "qlora":
            base = (0.5 * sizes.linear + compute_bytes(job) * others) / world + NF4_CONSTANTS * sizes.linear
        case _:
            base = compute_bytes(job) * sizes.parameters / world
    return base + 4 * sizes.adapter / shards


def _reference(job: JobFile, sizes: Sizes) -> float:
    """Return this process's bytes of the model that the policy is compared with; 0 when the policy itself serves as it.
    It is only asked, so it has the precision of the arithmetic."""
    match job.spec.reference:
        case "explicit":
            return compute_bytes(job) * sizes.other_model / job.num_shards
        case "base":
            return compute_bytes(job) * sizes.parameters / job.num_shards
        case "precompute" | "none":
            # A precomputing reference is let go before gradients and optimizer come, which are larger.
            return 0
