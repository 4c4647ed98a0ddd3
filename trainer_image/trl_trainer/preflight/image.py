"""What a job needs of this image and of its device: known before data are read."""

import torch

from trl_contract.jobfile import JobFile
from trl_contract.training import BITSANDBYTES_OPTIMIZERS
from trl_trainer.errors import UserError
from trl_trainer.models import skeleton, source
from trl_trainer.preflight import architecture
from trl_trainer.stage import Stage


def check(job: JobFile, stage: Stage, device: str) -> None:
    """Return if the job's arithmetic works in this image on `device` (cuda or cpu).

    UserError names the field, its value and the remedy. Looks at the model's config, at no weights and no rows.
    """
    _check_bitsandbytes(job, device)
    _check_gpu(job, device)
    _check_attention(job, stage)
    _check_offload(job, device)


def _check_bitsandbytes(job: JobFile, device: str) -> None:
    training, method = job.spec.training, job.spec.peft.method
    optimizer = training.optimizer if training.optimizer in BITSANDBYTES_OPTIMIZERS else None
    wants = [f"training.optimizer {optimizer}"] if optimizer else []
    wants += ["peft.method qlora"] if method == "qlora" else []
    if wants and device == "cpu":
        raise UserError("InvalidSpec", f"{' and '.join(wants)} needs a GPU: ask for one in resources, or use another")
    if optimizer and job.world_size > 1:
        # Its kernels take no DTensor, which FSDP2 makes of every parameter (bitsandbytes#1633).
        raise UserError(
            "InvalidSpec",
            f"training.optimizer: {optimizer} works with one process, and the job has {job.world_size}:"
            " use adamw_torch_fused, whose state is sharded, or adafactor",
        )
    if method == "qlora" and training.precision != "bf16":
        raise UserError(
            "InvalidSpec",
            f"peft.method qlora needs training.precision bf16, not {training.precision}: remove precision, or use lora",
        )


def _check_gpu(job: JobFile, device: str) -> None:
    wants = ["training.precision fp16"] if job.spec.training.precision == "fp16" else []
    wants += ["training.activationOffloading"] if job.spec.activation_offloading else []
    if wants and device == "cpu":
        raise UserError("InvalidSpec", f"{' and '.join(wants)}: needs a GPU, and there is none: remove it")


def _check_attention(job: JobFile, stage: Stage) -> None:
    """Make the model as it will be made, without weights: whether a kernel can be had is transformers' to say."""
    wanted, precision = job.spec.model.attn_implementation, job.spec.training.precision
    if wanted is None:
        return
    remedy = "remove it, and PyTorch's own kernels are used"
    if wanted.startswith("flash") and precision != "bf16":
        raise UserError(
            "InvalidSpec",
            f"model.attnImplementation: {wanted} works with training.precision bf16, not {precision}: {remedy}",
        )
    where = source.path(job)
    config = source.read_config(where, job.spec.model.revision, "model")
    architecture.check_kind(config, where, stage.is_classifier)
    try:
        skeleton.build(config, stage.is_classifier, attn_implementation=wanted, dtype=torch.bfloat16)
    except (ImportError, ValueError) as error:
        raise UserError(
            "InvalidSpec",
            f"model.attnImplementation: this image cannot load {wanted} here: {remedy}, or build an image that has it"
            f" (docs/images.md); {error}",
        ) from error


def _check_offload(job: JobFile, device: str) -> None:
    if not job.spec.fsdp.cpu_offload:
        return
    if device == "cpu" or job.world_size == 1:
        found = "there is no GPU" if device == "cpu" else "this job has one process"
        raise UserError("InvalidSpec", f"fsdp.cpuOffload needs GPUs and several processes, and {found}: remove it")
    if job.spec.peft.method == "qlora":
        raise UserError("InvalidSpec", "fsdp.cpuOffload does not go with peft.method qlora: remove it, or use lora")
