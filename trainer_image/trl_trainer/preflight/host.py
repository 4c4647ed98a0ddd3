"""How much memory of the host the processes of a node need, from numbers alone."""

from trl_contract.jobfile import JobFile
from trl_trainer.preflight.memory import MemoryEstimate
from trl_trainer.preflight.quantities import Sizes, compute_bytes

LOADING, CONVERTING = 1.2, 2.1
"""Host memory of a node's processes together while weights are loaded and sharded: in sizes of the shards that stay
there, and in sizes of a model whose weights transformers makes of other tensors, all of which rank 0 then holds."""


def of_node(job: JobFile, needs: MemoryEstimate, sizes: Sizes, checkpoint: int, part: int) -> dict[str, int]:
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
    model = sizes.parameters * (4 if peft.method == "none" else compute_bytes(job))
    if job.world_size == 1 or (peft.method == "qlora" and peft.use_dora):
        return processes * model
    beside = 0 if needs.device == "cuda" else processes * needs.beside
    # DoRA begins with the norms of the weights, in the precision that they will have.
    if sizes.converted or (peft.use_dora and sizes.stored != model):
        return CONVERTING * model + beside
    stay = needs.offloaded if needs.device == "cuda" else needs.weights
    # What is quantized is first brought to the precision of the arithmetic.
    tensor = processes * compute_bytes(job) * sizes.largest if peft.method == "qlora" else 0
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
