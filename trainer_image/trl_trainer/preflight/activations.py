"""The bytes of what comes and goes in a micro-step, for the memory estimate (memory.py)."""

from trl_contract.jobfile import JobFile
from trl_contract.spec import DPOSpec, GRPOSpec
from trl_trainer.preflight.quantities import Sizes, compute_bytes

HEAD_TILE = 4096 * 32768
"""Logits that TRL's fused head has in memory at a time: so many tokens times so much of the vocabulary (trl 1.16,
kernels/chunked_logprob.py); logits of the whole batch never exist."""


def transient(job: JobFile, sizes: Sizes, recompute: bool) -> tuple[float, float]:
    """Return the bytes of gathered weights, and of all else that comes and goes, at the moment that needs most."""
    compute, training, method = compute_bytes(job), job.spec.training, job.spec.peft.method
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
    compute, alone, full = compute_bytes(job), job.world_size == 1, job.spec.peft.method == "none"
    inputs = 2 * sizes.hidden
    if alone and compute == 2:
        inputs = 5 * sizes.hidden + (0 if full else sizes.queries)
    norms = 4 * sizes.norms + ((4 if alone else compute) * sizes.norms if full else 0)
    return norms + compute * (inputs + 4 * sizes.queries + sizes.length + 4 * sizes.wide)


def _generation(job: JobFile, sizes: Sizes, gathered: float) -> float:
    """Return the bytes of answering the prompts of all micro-steps at once that TRL samples for: keys and values
    of all tokens, one block's work on the prompts, and a few copies of the next token's logits in fp32."""
    assert isinstance(job.spec, GRPOSpec), "the others do not generate"
    compute = compute_bytes(job)
    sequences = job.spec.training.per_device_batch_size * job.spec.steps_per_generation
    cache = sequences * sizes.length * sizes.layers * 2 * sizes.keys * compute
    reading = sequences * sizes.prompt * (3 * compute * sizes.wide + 10 * sizes.hidden)
    # No gradients are there then, but they are counted beside.
    return gathered + max(cache, cache * sizes.prompt / sizes.length + reading) + 16 * sequences * sizes.vocabulary
