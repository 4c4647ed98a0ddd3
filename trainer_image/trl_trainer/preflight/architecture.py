"""What the model is, from its config alone: kind, size, vocabulary, adapter. No weights are loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError
from trl_trainer.models import adapter, source
from trl_trainer.stage import Stage


@dataclass(frozen=True)
class Architecture:
    """The base model in numbers; counts of parameters."""

    name: str
    """Class of the model, for example Qwen3ForCausalLM."""
    parameters: int
    trainable: int
    """What the job trains: all of it, or the adapter."""
    linear: int
    """In linear layers of the blocks."""
    adapter: int
    """Of the job's adapter; with method none of the one that lora would train by default."""
    hidden: int
    layers: int
    vocabulary: int
    positions: int | None
    """Longest sequence that the model was made for."""


def inspect(job: JobFile, stage: Stage) -> Architecture:
    """Return what the base model is. UserError when it is not there, of the wrong kind, or not in safetensors."""
    where = source.path(job)
    if Path(where).is_absolute():
        check_weights(Path(where), "model")
    config = source.read_config(where, job.spec.model.revision, "model")
    check_kind(config, where, stage.is_classifier)
    skeleton = build(config, stage.is_classifier)
    parameters, linear = skeleton.num_parameters(), _linear(skeleton)
    adapter = _adapter(job, stage, skeleton)
    text = config.get_text_config()
    return Architecture(
        name=type(skeleton).__name__,
        parameters=parameters,
        trainable=parameters if job.spec.peft.method == "none" else adapter,
        linear=linear,
        adapter=adapter,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        positions=getattr(text, "max_position_embeddings", None),
    )


def check_weights(folder: Path, field: str) -> None:
    """Raise UserError if a safetensors file of `folder` is cut, or one that the index names is missing."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        wanted = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(name for name in wanted if not (folder / name).exists())
        if missing:
            raise UserError("ModelNotFound", f"{field}: {folder} lacks {', '.join(missing)}; copy the model again")
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise UserError("ModelNotFound", f"{field}: {path} is not sound ({error}); copy it again") from error


def check_kind(config: Any, where: str, reward: bool) -> None:
    """Raise UserError unless the model was trained as a language model or, for a reward model, also as a classifier."""
    families = [MODEL_FOR_CAUSAL_LM_MAPPING] + ([MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING] if reward else [])
    wanted = "causal language model" + (" or sequence classifier" if reward else "")
    known = {name for family in families if type(config) in family for name in _names(family[type(config)])}
    given = config.architectures or list(known)
    if not known & set(given) or (reward and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING):
        found = ", ".join(given) or config.model_type
        raise UserError("InvalidSpec", f"model: {where} is a {found}, but this job needs a {wanted}")


def classifier_config(folder: str, field: str) -> Any:
    """Return the config of a reward model's folder; UserError unless it is a classifier with one label, sound."""
    source.check_folder(folder, field)
    check_weights(Path(folder), field)
    config = source.read_config(folder, None, field)
    known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) not in known or not set(config.architectures or []) & set(_names(known[type(config)])):
        found = ", ".join(config.architectures or []) or config.model_type
        raise UserError("InvalidSpec", f"{field}: {folder} is a {found}, but a reward model is a sequence classifier")
    if config.num_labels != 1:
        raise UserError("InvalidSpec", f"{field}: {folder} has {config.num_labels} labels; a reward model has one")
    return config


def _names(classes: Any) -> list[str]:
    return [item.__name__ for item in (classes if isinstance(classes, list | tuple) else [classes])]


def build(config: Any, classifier: bool, **options: Any) -> Any:
    """Return the model without weights (on the meta device). `options` go to from_config."""
    with torch.device("meta"):
        if classifier:
            config.num_labels = 1
            return AutoModelForSequenceClassification.from_config(config, **options)
        return AutoModelForCausalLM.from_config(config, **options)


def _linear(skeleton: Any) -> int:
    output = skeleton.get_output_embeddings() if hasattr(skeleton, "get_output_embeddings") else None
    layers = [m for m in skeleton.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not output]
    return sum(layer.weight.numel() for layer in layers)


def _adapter(job: JobFile, stage: Stage, skeleton: Any) -> int:
    """Return the number of parameters of the adapter, made by peft itself; UserError if it cannot be put on."""
    task = stage.task_type
    config = adapter.lora(job, task) or LoraConfig(r=job.spec.peft.r, target_modules="all-linear", task_type=task)
    try:
        adapted = get_peft_model(skeleton, config, low_cpu_mem_usage=True)
    except ValueError as error:
        raise UserError("InvalidSpec", f"peft: {error}") from error
    if not stage.adapts_head and isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            "InvalidSpec", f"peft.targetModules: {job.kind} trains no adapter on the output head: remove it"
        )
    return int(adapted.get_nb_trainable_parameters()[0])
