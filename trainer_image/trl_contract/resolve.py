"""Defaults that depend on other fields, resolved once: the operator shows the result, the trainer runs it."""

from typing import Any

from trl_contract.evaluation import EvaluationBase
from trl_contract.jobfile import JobFile
from trl_contract.rewards import PRESETS
from trl_contract.spec import GRPOSpec
from trl_contract.stages import Grpo
from trl_contract.training import Peft, TrainingBase


def resolve(job: JobFile) -> JobFile:
    """Return `job` with every default filled in that depends on another field; what the user gave is kept.

    What depends on the memory estimate (`training.gradientCheckpointing`) or on the rows (`everyEpochs`, as steps) is
    left to the trainer, which knows these.
    """
    spec = job.spec
    changes: dict[str, Any] = {
        "training": _training(job, spec.training),
        "peft": _peft(spec.peft),
        "evaluation": _evaluation(job, spec.evaluation),
    }
    if isinstance(spec, GRPOSpec):
        changes["grpo"] = _grpo(spec.grpo)
    if spec.checkpoint.every_minutes is spec.checkpoint.every_steps is spec.checkpoint.every_epochs is None:
        changes["checkpoint"] = spec.checkpoint.model_copy(update={"every_minutes": 15.0})
    if spec.fsdp.state_dict_type == "auto":
        changes["fsdp"] = spec.fsdp.model_copy(update={"state_dict_type": "sharded"})
    return job.model_copy(update={"spec": spec.model_copy(update=changes)})


def _training(job: JobFile, training: TrainingBase) -> TrainingBase:
    changes: dict[str, Any] = {}
    if training.epochs is None and training.max_steps is None:
        changes["epochs"] = 1.0
    if training.warmup_steps is None and training.warmup_ratio is None:
        changes["warmup_ratio"] = 0.0 if training.lr_scheduler == "constant" else 0.1
    if training.learning_rate is None:
        full, adapter = job.spec.learning_rates
        changes["learning_rate"] = full if job.spec.peft.method == "none" else adapter
    if job.world_size > 1 and job.spec.peft.lora_dropout > 0 and training.gradient_checkpointing is None:
        changes["gradient_checkpointing"] = False
    if training.precision is None:
        changes["precision"] = "bf16" if job.has_gpus else "fp32"
    return training.model_copy(update=changes)


def _peft(peft: Peft) -> Peft:
    if peft.method == "none" or peft.target_modules is not None:
        return peft
    return peft.model_copy(update={"target_modules": ["all-linear"]})


def _grpo(grpo: Grpo) -> Grpo:
    preset = [] if grpo.reward_preset is None else PRESETS[grpo.reward_preset]
    rewards = [*preset, *grpo.rewards]
    total = sum(reward.weight for reward in rewards) if grpo.normalize_weights else 1.0
    weighed = [reward.model_copy(update={"weight": reward.weight / total}) for reward in rewards]
    return grpo.model_copy(update={"rewards": weighed, "reward_preset": None})


def _evaluation(job: JobFile, evaluation: EvaluationBase) -> EvaluationBase:
    if evaluation.per_device_batch_size is not None:
        return evaluation
    return evaluation.model_copy(update={"per_device_batch_size": job.spec.evaluation_batch_size(job.world_size)})
