"""Changes of a job with which it may fit into memory."""

from collections.abc import Iterator

from trl_contract.jobfile import JobFile
from trl_contract.spec import DPOSpec, GRPOSpec
from trl_contract.training import BITSANDBYTES_OPTIMIZERS
from trl_trainer.preflight.quantities import OPTIMIZER_BYTES


def changes(job: JobFile, device: str) -> Iterator[tuple[str, JobFile, float]]:
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


def works(job: JobFile, device: str) -> bool:
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
