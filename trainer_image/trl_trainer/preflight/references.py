"""Whether the reference of a preference job is asked once, or in every step. Pure."""

from trl_contract.jobfile import JobFile
from trl_contract.spec import DPOSpec

EPOCHS = 2
"""From so many on each pair is asked for at least twice."""


def decided(job: JobFile, number: int) -> JobFile:
    """Return the resolved job, on `number` training rows, with dpo.referenceModel.mode precompute in place of auto
    where that saves time. It needs no memory that training does not need: the reference is gone when gradients come.

    Quantized weights of several processes are sharded too late for it (stages/dpo.py).
    """
    spec = job.spec
    if not isinstance(spec, DPOSpec) or spec.dpo.reference_model.mode != "auto":
        return job
    if (spec.peft.method == "qlora" and job.world_size > 1) or _epochs(job, number) < EPOCHS:
        return job
    reference = spec.dpo.reference_model.model_copy(update={"mode": "precompute"})
    dpo = spec.dpo.model_copy(update={"reference_model": reference})
    return job.model_copy(update={"spec": spec.model_copy(update={"dpo": dpo})})


def _epochs(job: JobFile, number: int) -> float:
    training = job.spec.training
    if training.max_steps is None:
        assert training.epochs is not None, "resolved"
        return training.epochs
    rows = training.per_device_batch_size * training.gradient_accumulation_steps * job.world_size
    return training.max_steps * rows / number
