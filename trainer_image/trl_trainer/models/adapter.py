"""The adapter that a job trains, and the quantization of the weights below it."""

from typing import Any

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from trl_contract.jobfile import JobFile
from trl_trainer.models import vocabulary

ALL_LINEAR = "all-linear"
"""peft's own word for all linear layers but the output head."""


def lora(job: JobFile, task_type: str, model: Any) -> LoraConfig | None:
    """Return the adapter of `model` to train, with the rows of the tokens that the job adds, or None for full
    fine-tuning. `model` may be the place of one where the job adds none."""
    given = lora_arguments(job, task_type)
    if given is None:
        return None
    targets = given["target_modules"]
    assert targets == ALL_LINEAR or ALL_LINEAR not in targets, "preflight says what it means beside other names"
    return LoraConfig(**given, trainable_token_indices=vocabulary.trained_rows(job, model))


def lora_arguments(job: JobFile, task_type: str) -> dict[str, Any] | None:
    """Return the keyword arguments of peft.LoraConfig, or None for full fine-tuning."""
    peft = job.spec.peft
    if peft.method == "none":
        return None
    targets = peft.target_modules
    return {
        "task_type": task_type,
        "r": peft.r,
        "lora_alpha": peft.alpha,
        "lora_dropout": peft.lora_dropout,
        # peft knows the word alone, not in a list.
        "target_modules": ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        "target_parameters": peft.target_parameters,
        "modules_to_save": peft.modules_to_save,
        "use_dora": peft.use_dora,
        "use_rslora": peft.use_rslora,
    }


def quantization(job: JobFile) -> BitsAndBytesConfig | None:
    """Return the 4-bit quantization of qlora, or None.

    The storage type is bf16: with bitsandbytes' own (uint8) accelerate leaves the weights unsharded on every GPU.
    """
    if job.spec.peft.method != "qlora":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16,
    )
