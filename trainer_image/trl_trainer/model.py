"""The base model's tokenizer and size, the adapter and the reference model."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trl_contract.jobfile import JobFile
from trl_trainer import arguments
from trl_trainer.errors import UserError
from trl_trainer.world import Run

LARGE = 1_000_000_000
"""From so many parameters on, gradient checkpointing is on by default on GPUs."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.", "spiece.model", "sentencepiece", "tekken.json")
"""How the names of the files begin that hold a vocabulary. Without one transformers makes an empty tokenizer."""


def path(job: JobFile) -> str:
    """Return the folder or the hub repository of the base model; UserError if there is no model there."""
    if job.paths.model is None:
        assert job.spec.model.hub is not None, "a model is on a volume or on the hub"
        return str(job.spec.model.hub.repo)
    return check_folder(job.paths.model, "model")


def check_folder(folder: str, field: str) -> str:
    """Return `folder` if it holds a model in safetensors, else raise UserError that names `field`."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if "config.json" not in names:
        adapter = "; it holds an adapter: give the folder of the merged model" if "adapter_config.json" in names else ""
        raise UserError("ModelNotFound", f"{field}: {folder} has no config.json, so it is no model folder{adapter}")
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            "ModelNotFound", f"{field}: {folder} has no safetensors; convert the weights with save_pretrained"
        )
    return folder


def check_hub(repo: str, revision: str | None, field: str) -> list[str] | None:
    """Return the names of the repository's files; None if the hub does not answer, and the cache may have them.

    UserError that names `field` if it is not there, or has only pickled weights: loading them runs foreign code.
    """
    try:
        names = HfApi().list_repo_files(repo, revision=revision)
    except GatedRepoError as error:
        raise UserError("AccessDenied", f"{field}: {repo} is gated: give tokenSecretRef and ask for access") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError("ModelNotFound", f"{field}: {repo} is not on the hub, or is private: {error}") from error
    except (HfHubHTTPError, OSError):
        return None
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError("ModelNotFound", f"{field}: {repo} has no safetensors, and pickle weights are not loaded")
    return names


def read_config(where: str, revision: str | None, field: str) -> Any:
    """Return the transformers config of a folder or hub repository. UserError names `field`."""
    is_folder = Path(where).is_absolute()
    if not is_folder:
        check_hub(where, revision, field)
    try:
        return AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        if isinstance(error, OSError) and not is_folder:
            raise  # the hub does not answer, which may pass
        raise UserError("InvalidSpec", f"{field}: the config.json of {where} is of no known model: {error}") from error


def tokenizer(job: JobFile) -> Any:
    """Return the base model's tokenizer, with the job's chat template if it gives one and with a padding token.

    UserError if there is no such model, or it has no tokenizer that can be read.
    """
    where, hub = path(job), job.spec.model.hub
    revision = hub.revision if hub else None
    names = os.listdir(where) if job.paths.model is not None else check_hub(where, revision, "model")
    if names is not None and not any(name.startswith(TOKENIZER_FILES) for name in names):
        raise UserError("ModelNotFound", f"model: {where} has no tokenizer: put the files of save_pretrained beside it")
    try:
        found = AutoTokenizer.from_pretrained(where, revision=revision)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and hub is not None:
            raise  # the hub does not answer, which may pass
        raise UserError("ModelNotFound", f"model: the tokenizer of {where} cannot be read: {error}") from error
    if job.spec.model.chat_template is not None:
        found.chat_template = job.spec.model.chat_template
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def gradient_checkpointing(job: JobFile) -> bool:
    """Return training.gradientCheckpointing, or its default: on with GPUs and large models."""
    given: bool | None = job.spec.training.gradient_checkpointing
    if given is not None:
        return given
    return job.has_gpus and num_parameters(job) > LARGE


def num_parameters(job: JobFile) -> int:
    """Return the number of the base model's parameters, from its config alone."""
    hub = job.spec.model.hub
    config = read_config(path(job), hub.revision if hub else None, "model")
    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


def lora(job: JobFile, task_type: str = "CAUSAL_LM") -> LoraConfig | None:
    """Return the adapter to train, or None for full fine-tuning."""
    given = arguments.lora(job, task_type)
    return None if given is None else LoraConfig(**given)


def check_extras(job: JobFile, device: str) -> None:
    """Raise UserError if the job needs bitsandbytes or a GPU and there is none."""
    wants = [f"training.optimizer {job.spec.training.optimizer}"] if "8bit" in job.spec.training.optimizer else []
    wants += ["peft.method qlora"] if job.spec.peft.method == "qlora" else []
    if wants and device == "cpu":
        raise UserError("InvalidSpec", f"{' and '.join(wants)} needs a GPU: ask for one in resources, or use another")
    if wants and find_spec("bitsandbytes") is None:
        raise UserError("InvalidSpec", f"{' and '.join(wants)} needs bitsandbytes, which this image does not have")
    if job.spec.peft.method == "qlora" and job.spec.training.precision != "bf16":
        raise UserError(
            "InvalidSpec", f"peft.method qlora needs training.precision bf16, not {job.spec.training.precision}"
        )


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


def explicit_reference(run: Run) -> Any:
    """Return DPO's reference model where TRL would not load it as we want it, else None.

    mode explicit: another model. mode auto without an adapter: the base model in the precision of the arithmetic;
    TRL would copy the policy's fp32.
    """
    job = run.job
    reference = job.spec.dpo.reference_model
    if reference.mode == "explicit":
        where = job.paths.reference_model or reference.source.hub.repo
        if Path(where).is_absolute():
            check_folder(where, "dpo.referenceModel.source")
        revision = reference.source.hub.revision if reference.source.hub else None
        kwargs = {**arguments.model_init(job, frozen=True), "revision": revision}
    elif reference.mode == "auto" and job.spec.peft.method == "none":
        where, kwargs = path(job), arguments.model_init(job, frozen=True)
    else:
        return None
    return AutoModelForCausalLM.from_pretrained(where, **kwargs)
