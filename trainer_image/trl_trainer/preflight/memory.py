"""How much memory a rank needs, from numbers alone: no weights are loaded, and torch is not imported.

All sizes are bytes per process. What is certain (weights, gradients, optimizer, what is gathered, models beside the
policy, the copy from which a checkpoint is written) and what depends on the rows and the model's inner workings
(activations) are kept apart: only the first is a reason to refuse a job. docs/memory.md compares the sum with what
torch counts, for models from 0.5B to 70B.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from trl_contract.base import Model
from trl_contract.jobfile import JobFile
from trl_contract.spec import DPOSpec, GRPOSpec
from trl_contract.training import BITSANDBYTES_OPTIMIZERS
from trl_trainer.launch.host_memory import GIB

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

NF4_CONSTANTS = 1 / 64 + 4 / (64 * 256)
"""Bytes per parameter beside the 4-bit values: blocks of 64 share an 8-bit constant, 256 of those an fp32 one (QLoRA,
3). They are no part of the sharded tensor: every process holds them all."""

HEAD_TILE = 4096 * 32768
"""Logits that TRL's fused head has in memory at a time: so many tokens times so much of the vocabulary (trl 1.16,
kernels/chunked_logprob.py); logits of the whole batch never exist."""

FITS = 0.92
"""A job fits when it needs so much of the GPU. The rest is for the CUDA context, NCCL's buffers and what the allocator
loses between tensors: what torch's tracker does not count either."""

KEPT = 0.85
"""Activations are kept where the job needs no more of the GPU than this in its worst micro-batch: recomputing them
costs a third of the time, running out of memory an attempt."""

LOADING, CONVERTING = 1.2, 2.1
"""Host memory of a node's processes together while weights are loaded and sharded: in sizes of the shards that stay
there, and in sizes of a model whose weights transformers makes of other tensors, all of which rank 0 then holds."""


@dataclass(frozen=True)
class Sizes:
    """What the estimate needs to know about models and rows; counts of parameters, or of values per token."""

    parameters: int
    """The base model's."""
    linear: int
    """Of these, the ones in linear layers of the blocks, which qlora keeps in 4 bit."""
    adapter: int
    """Of the adapter that the job trains or, with method none, would train with lora's defaults."""
    embedding: int
    """Of the input embedding."""
    head: int
    """Of the output head, also where it is the embedding; 0 for a classifier."""
    tied: bool
    """Head and embedding are one."""
    hidden: int
    layers: int
    vocabulary: int
    queries: int
    """Values per token of a block's queries."""
    keys: int
    """And of its keys, which its values have too."""
    wide: int
    """And inside its MLP; of a mixture of experts in all that work on a token."""
    norms: int
    """Values per token that the norms of a block see."""
    length: int
    """Tokens of the longest row that the model will see."""
    stored: int
    """Bytes of the model in its files."""
    largest: int
    """Parameters of its largest tensor."""
    unit: int
    """Parameters that are exported together at least: of the largest block, or of all that is in no block."""
    converted: bool
    """Whether transformers makes the weights of other tensors than the files hold."""
    prompt: int = 0
    """Tokens of the longest prompt that the trainer itself answers (grpo)."""
    other_model: int = 0
    """Of the explicit reference model."""
    reward_models: int = 0
    """Bytes of all reward models."""

    @property
    def block(self) -> float:
        """Parameters of a block: all are alike."""
        return (self.parameters - self.embedding - (0 if self.tied else self.head)) / self.layers


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
    for text, changed, share in _changes(job, device):
        if _works(changed, device) and _choose(changed, sizes, round(available * share), device).fits:
            return found.model_copy(update={"change": text})
    return found


def smallest_world(job: JobFile, sizes: Sizes, available: int, device: str) -> int | None:
    """Return the smallest number of processes, a power of 2 up to 128, with which the job fits on devices of
    `available` bytes; None if it does not fit with any."""
    for world in (2**power for power in range(8)):
        changed = job.model_copy(update={"num_nodes": 1, "num_proc_per_node": world})
        if _works(changed, device) and _choose(changed, sizes, available, device).fits:
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
    gathered, activations = _transient(job, sizes, recompute)
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


def _compute(job: JobFile) -> int:
    """Return the bytes of a value of the arithmetic."""
    return 4 if job.spec.training.precision == "fp32" else 2


def _weights(job: JobFile, sizes: Sizes, shards: int) -> float:
    """Return the bytes of this process's weights: fp32 what is trained, frozen in the precision of the arithmetic."""
    world, others = job.num_shards, sizes.parameters - sizes.linear
    match job.spec.peft.method:
        case "none":
            return 4 * sizes.parameters / world
        case "qlora":
            base = (0.5 * sizes.linear + _compute(job) * others) / world + NF4_CONSTANTS * sizes.linear
        case _:
            base = _compute(job) * sizes.parameters / world
    return base + 4 * sizes.adapter / shards


def _reference(job: JobFile, sizes: Sizes) -> float:
    """Return this process's bytes of the model that the policy is compared with; 0 when the policy itself serves as it.
    It is only asked, so it has the precision of the arithmetic."""
    match job.spec.reference:
        case "explicit":
            return _compute(job) * sizes.other_model / job.num_shards
        case "base":
            return _compute(job) * sizes.parameters / job.num_shards
        case "precompute" | "none":
            # A precomputing reference is let go before gradients and optimizer come, which are larger.
            return 0


def _transient(job: JobFile, sizes: Sizes, recompute: bool) -> tuple[float, float]:
    """Return the bytes of gathered weights, and of all else that comes and goes, at the moment that needs most."""
    compute, training, method = _compute(job), job.spec.training, job.spec.peft.method
    alone, full = job.world_size == 1, method == "none"
    has_rows = job.spec.model.add_tokens is not None and not full
    tokens = training.per_device_batch_size * job.spec.sequences_per_row * sizes.length
    # With one process the weights stay fp32, and so does what runs between the blocks; autocast makes bf16 copies.
    fp32_between = alone and full and compute == 2
    copies = compute * sizes.linear if fp32_between else 0
    layer = tokens * _values(job, sizes) + (compute * sizes.queries * sizes.hidden if method == "qlora" else 0)
    between = tokens * (4 if fp32_between else compute) * sizes.hidden
    # The last hidden states, their norm in fp32 and a copy of the scored ones wait for the loss beside.
    held = sizes.layers * (between if recompute else layer) + 8 * tokens * sizes.hidden
    block = 0 if alone else compute * sizes.block
    if method == "qlora" and not alone:
        block -= (compute - 0.5) * sizes.linear / sizes.layers
    head = 0 if alone else compute * sizes.head
    tile = compute * min(HEAD_TILE, tokens * 32768) if sizes.head else 0
    # The fused head sums its gradients in fp32, and casts them.
    head_gradient = (4 if alone else 4 + compute) * sizes.head if full or has_rows else 0
    mlp = 2 * compute * sizes.wide * tokens
    block_gradients = compute * sizes.block if full and not alone else 0
    # fp32 copies on their way to the other processes: the head's, or the block's before.
    reducing = max(4 * sizes.head, 4 * sizes.block) if full and not alone else 0
    kept_copies = 0 if recompute else copies
    moments = [
        held + copies + head + tile,
        held + kept_copies + head + tile + 6 * tokens * sizes.hidden + head_gradient,
        held + kept_copies + 2 * block + reducing + max((layer if recompute else 0), block_gradients) + mlp,
    ]
    # Gathering takes the place twice: what comes in, and what it is copied to.
    embedding = 0 if alone else compute * sizes.embedding
    asked = 3 * compute * sizes.wide * tokens + 10 * tokens * sizes.hidden
    if isinstance(job.spec, DPOSpec) and job.spec.dpo.reference_model.mode != "precompute":
        # The reference answers while the policy's activations wait for their backward pass. It begins with embedding
        # and head (one group, or the policy's own embedding), and ends with the head.
        whole = embedding + (0 if sizes.tied or not full else head)
        moments.append(held + kept_copies + head + max(2 * whole + block, whole + head + 2 * block + max(asked, tile)))
    if sizes.prompt:
        moments.append(_generation(job, sizes, 2 * max(embedding, head) + block + copies))
    if has_rows:
        # An adapter's new rows are put into a copy of the head, and of the embedding, whose gradient comes whole.
        # Gathered, they stay (loading.py).
        moments.append(head + 2 * compute * sizes.embedding)
        beside = compute * sizes.head + (0 if sizes.tied else embedding)
        moments = [moment + beside for moment in moments]
    gathered = max(head, 2 * block)
    if not alone and not job.spec.fsdp.reshard_after_forward:
        gathered = sizes.layers * block + head
        moments = [moment + (sizes.layers - 2) * block for moment in moments]
    return gathered, max(0, max(moments) - gathered)


def _values(job: JobFile, sizes: Sizes) -> float:
    """Return the bytes per token that one block keeps for its backward pass.

    Norms: their input in fp32 and, where they are trained, the normalized values. Attention without a score matrix:
    queries, keys and values repeated for all heads, the output, and its row of the mask. MLP: gate, its activation, up,
    their product. What goes into the linear layers: once; with one process autocast casts it for each.
    """
    compute, alone, full = _compute(job), job.world_size == 1, job.spec.peft.method == "none"
    inputs = 2 * sizes.hidden
    if alone and compute == 2:
        inputs = 5 * sizes.hidden + (0 if full else sizes.queries)
    norms = 4 * sizes.norms + ((4 if alone else compute) * sizes.norms if full else 0)
    return norms + compute * (inputs + 4 * sizes.queries + sizes.length + 4 * sizes.wide)


def _generation(job: JobFile, sizes: Sizes, gathered: float) -> float:
    """Return the bytes of answering the prompts of all micro-steps at once that TRL samples for: keys and values
    of all tokens, one block's work on the prompts, and a few copies of the next token's logits in fp32."""
    assert isinstance(job.spec, GRPOSpec), "the others do not generate"
    compute = _compute(job)
    sequences = job.spec.training.per_device_batch_size * job.spec.steps_per_generation
    cache = sequences * sizes.length * sizes.layers * 2 * sizes.keys * compute
    reading = sequences * sizes.prompt * (3 * compute * sizes.wide + 10 * sizes.hidden)
    # No gradients are there then, but they are counted beside.
    return gathered + max(cache, cache * sizes.prompt / sizes.length + reading) + 16 * sequences * sizes.vocabulary


def _changes(job: JobFile, device: str) -> Iterator[tuple[str, JobFile, float]]:
    """Yield changes of the job, the one that costs least first, with the factor by which the available memory grows."""
    training, peft = job.spec.training, job.spec.peft
    decided = training.gradient_checkpointing or (device == "cuda" and training.gradient_checkpointing is None)
    recompute = "" if decided else "gradientCheckpointing: true"
    if recompute:
        yield f"training.{recompute}", _with(job, "training", gradient_checkpointing=True), 1
    size = training.per_device_batch_size
    while size > 1 and size % 2 == 0:
        size //= 2
        steps = training.gradient_accumulation_steps * (training.per_device_batch_size // size)
        if isinstance(job.spec, GRPOSpec) and (job.spec.grpo.steps_per_generation or steps) % steps:
            break
        smaller = {"per_device_batch_size": size, "gradient_accumulation_steps": steps, "gradient_checkpointing": True}
        text = f"perDeviceBatchSize: {size} and gradientAccumulationSteps: {steps}"
        yield f"training.{f'{recompute} with ' if recompute else ''}{text}", _with(job, "training", **smaller), 1
    if isinstance(job.spec, DPOSpec) and job.spec.dpo.reference_model.mode != "precompute":
        reference = job.spec.dpo.reference_model.model_copy(update={"mode": "precompute", "source": None})
        yield "dpo.referenceModel.mode: precompute", _with(job, "dpo", reference_model=reference), 1
    if OPTIMIZER_BYTES[training.optimizer] > 2:
        yield "training.optimizer: adamw_bnb_8bit", _with(job, "training", optimizer="adamw_bnb_8bit"), 1
    if peft.method == "none":
        yield "peft.method: lora", _with(job, "peft", method="lora"), 1
    if peft.method != "qlora":
        yield "peft.method: qlora", _with(job, "peft", method="qlora"), 1
    if job.num_shards < job.world_size:
        yield "fsdp.hybrid: false", _with(job, "fsdp", hybrid=False), 1
    for factor in (2, 4, 8, 16, 32):
        nodes = job.num_nodes * factor
        yield f"numNodes: {nodes}", job.model_copy(update={"num_nodes": nodes}), 1
    if device == "cpu" and job.num_proc_per_node > 1:
        alone = job.model_copy(update={"num_proc_per_node": 1})
        yield "numProcPerNode: 1", alone, job.num_proc_per_node


def _works(job: JobFile, device: str) -> bool:
    """Return whether such a job would be accepted (image.py has the reasons)."""
    training = job.spec.training
    if training.optimizer in BITSANDBYTES_OPTIMIZERS and (device == "cpu" or job.world_size > 1):
        return False
    if job.spec.peft.method == "qlora" and (device == "cpu" or training.precision != "bf16"):
        return False
    if job.spec.peft.method == "qlora" and job.spec.model.add_tokens:
        return False
    try:
        # The default of evaluation.perDeviceBatchSize follows.
        _with(job, "evaluation", per_device_batch_size=None).spec.check_world(job.world_size)
    except ValueError:
        return False
    return True


def _with(job: JobFile, section: str, **values: object) -> JobFile:
    changed = getattr(job.spec, section).model_copy(update=values)
    return job.model_copy(update={"spec": job.spec.model_copy(update={section: changed})})


def host(job: JobFile, needs: MemoryEstimate, sizes: Sizes, checkpoint: int, part: int) -> dict[str, int]:
    """Return, for what the processes of one node do in the host's memory, the bytes that it may take there; they do one
    at a time. `checkpoint` is the size of one, of all nodes together; `part` that of a part of an exported model."""
    # Without GPUs what is trained lies there too, and is not let go for the export.
    there = needs.offloaded if needs.device == "cuda" else needs.weights + needs.optimizer
    trained = job.num_proc_per_node * there
    sharded = job.world_size > 1 and job.spec.fsdp.state_dict_type == "sharded"
    return {
        "loading the model": round(_loading(job, needs, sizes)),
        "saving a checkpoint": trained + (checkpoint * job.num_proc_per_node // job.num_shards if sharded else 0),
        "exporting the model": trained + round(_exporting(job, sizes, part)),
    }


def _loading(job: JobFile, needs: MemoryEstimate, sizes: Sizes) -> float:
    """Return the bytes that loading takes of a node: its shards, where they stay there; but a whole model in the one
    process that there is, and in each that loads one by itself (models/base.py)."""
    peft, processes = job.spec.peft, job.num_proc_per_node
    model = sizes.parameters * (4 if peft.method == "none" else _compute(job))
    if job.world_size == 1 or (peft.method == "qlora" and peft.use_dora):
        return processes * model
    beside = 0 if needs.device == "cuda" else processes * needs.beside
    # DoRA begins with the norms of the weights, in the precision that they will have.
    if sizes.converted or (peft.use_dora and sizes.stored != model):
        return CONVERTING * model + beside
    stay = needs.offloaded if needs.device == "cuda" else needs.weights
    # What is quantized is first brought to the precision of the arithmetic.
    tensor = processes * _compute(job) * sizes.largest if peft.method == "qlora" else 0
    return LOADING * (processes * stay + beside) + tensor


def _exporting(job: JobFile, sizes: Sizes, part: int) -> float:
    """Return the bytes that rank 0 takes for the final model: a part of it, in the precision of its files, and the
    tensor that comes in, or the adapter twice and one layer's difference in fp32. Converted back, a part is there up to
    three times."""
    width = sizes.stored / sizes.parameters
    held = min(sizes.stored, max(part, width * sizes.unit)) * (3 if sizes.converted else 1)
    if job.spec.peft.method == "none":
        return held + width * sizes.largest
    return held + 2 * 4 * sizes.adapter + 4 * sizes.largest
