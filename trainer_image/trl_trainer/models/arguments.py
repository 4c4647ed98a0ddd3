"""The job's training section in TRL's words. Pure."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from trl_contract.jobfile import JobFile
from trl_contract.training import LrSchedulerArgs, TrainingBase
from trl_trainer.errors import UserError
from trl_trainer.padding_free import attention
from trl_trainer.reports import tracking
from trl_trainer.stage import Stage

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""torch's names of training.precision."""


def arguments(job: JobFile, stage: Stage, *, output_dir: str, world: int, device: str) -> dict[str, Any]:
    """Return the keyword arguments of the kind's TRL config for a resolved job (preflight has decided the rest).

    UserError as of `extra`.
    """
    return {
        **_common(job, output_dir=output_dir, world=world, device=device),
        **stage.settings(job),
        **extra(job.spec.training),
        "model_init_kwargs": model_init(job, frozen=False),
    }


def _common(job: JobFile, *, output_dir: str, world: int, device: str) -> dict[str, Any]:
    """What all kinds have in common.

    Saving and evaluating before training are ours (checkpoint.py, evaluation.py), so TRL's are off. A NaN loss is an
    error and not a number to be averaged away, so the filter that hides it is off.
    """
    training, evaluation, dataset = job.spec.training, job.spec.evaluation, job.spec.dataset
    found: dict[str, Any] = {
        "output_dir": output_dir,
        "per_device_train_batch_size": training.per_device_batch_size,
        "per_device_eval_batch_size": evaluation.per_device_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler,
        # A value below 1 is a share of all steps.
        "warmup_steps": training.warmup_steps if training.warmup_steps is not None else training.warmup_ratio,
        "lr_scheduler_kwargs": scheduler(training),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": training.optimizer,
        "bf16": training.precision == "bf16",
        "fp16": training.precision == "fp16",
        "seed": training.seed,
        "data_seed": dataset.seed,
        "dataloader_num_workers": dataset.workers,
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "torch_compile": training.torch_compile,
        "eval_strategy": "steps" if evaluation.is_repeated else "no",
        "eval_steps": evaluation.every_steps,
        "save_strategy": "no",
        "report_to": tracking.report_to(job),
        "run_name": job.name,
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
        "activation_checkpointing": bool(training.gradient_checkpointing) and world == 1,
        "trust_remote_code": False,
    }
    adam = {name: getattr(training, name) for name in ("adam_beta1", "adam_beta2", "adam_epsilon")}
    found |= {name: value for name, value in adam.items() if value is not None}
    if training.max_steps is not None:
        found["max_steps"] = training.max_steps
    else:
        found["num_train_epochs"] = training.epochs
    if world > 1:
        found |= {"fsdp": True, "fsdp_config": fsdp(job)}
    return found


def extra(training: TrainingBase) -> dict[str, Any]:
    """Return extraArgs with their values in the types of TRL's config. UserError has a line for each that is none."""
    found, wrong = {}, []
    for name, text in (training.extra_args or {}).items():
        try:
            found[name] = TypeAdapter(training.extra_arg_types[name]).validate_strings(text)
        except ValidationError as error:
            said = error.errors(include_url=False)[0]["msg"]
            wrong.append(f"training.extraArgs.{name}: {said}, or remove it; got {text!r}")
    if wrong:
        raise UserError("InvalidSpec", "\n".join(wrong))
    return found


def scheduler(training: TrainingBase) -> dict[str, Any]:
    """Return lr_scheduler_kwargs; num_decay_steps is a share of all steps (preflight.steps.decay)."""
    given = training.lr_scheduler_args or LrSchedulerArgs()
    if training.lr_scheduler == "cosine_with_min_lr":
        return {"min_lr_rate": 0.1 if given.min_lr_rate is None else given.min_lr_rate}
    if training.lr_scheduler == "warmup_stable_decay":
        return {
            "min_lr_ratio": given.min_lr_rate or 0.0,
            "num_decay_steps": given.decay_ratio or 0.1,
            "decay_type": given.decay_type or "cosine",
        }
    return {}


def fsdp(job: JobFile) -> dict[str, Any]:
    """Return the FSDP2 settings."""
    section = job.spec.fsdp
    return {
        "version": 2,
        "reshard_after_forward": section.reshard_after_forward,
        "state_dict_type": "SHARDED_STATE_DICT" if section.state_dict_type == "sharded" else "FULL_STATE_DICT",
        "activation_checkpointing": bool(job.spec.training.gradient_checkpointing),
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_offload": section.cpu_offload,
    }


def model_init(job: JobFile, *, frozen: bool) -> dict[str, Any]:
    """Return the keyword arguments of from_pretrained for the trained model, or for one that is only asked (frozen).

    Weights that are trained in full are fp32 (the optimizer works on them); frozen ones take the precision of the
    arithmetic. Only safetensors: unpickling foreign weights runs foreign code.
    """
    source = job.spec.model
    full = job.spec.peft.method == "none" and not frozen
    arguments: dict[str, Any] = {
        "dtype": "float32" if full else DTYPES[str(job.spec.training.precision)],
        "use_safetensors": True,
    }
    if source.attn_implementation is not None:
        arguments["attn_implementation"] = source.attn_implementation
    elif job.spec.training.padding_free == "auto":
        arguments["attn_implementation"] = attention.NAME
    if source.revision is not None:
        arguments["revision"] = source.revision
    return arguments
