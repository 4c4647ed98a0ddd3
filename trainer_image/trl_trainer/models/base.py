"""The base model itself, for one process and for several."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, set_seed

from trl_trainer.distributed import loading
from trl_trainer.distributed.world import Run
from trl_trainer.models import arguments, source
from trl_trainer.stage import Stage

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of precisions."""


def is_streamed(run: Run) -> bool:
    """Return whether the model is loaded and sharded by us: with several processes, unless its weights are quantized,
    which transformers does while it loads."""
    config = source.read_config(source.path(run.job), run.job.spec.model.revision, "model")
    quantized = run.job.spec.peft.method == "qlora" or getattr(config, "quantization_config", None) is not None
    return run.world > 1 and not quantized


def trained(run: Run, stage: Stage, args: Any) -> str | PreTrainedModel:
    """Return what TRL's trainer gets as its model: where it is, for TRL to load, or the model for `loading.shard`."""
    where = source.path(run.job)
    if not is_streamed(run):
        return where
    kwargs = arguments.model_init(run.job, frozen=False)
    # TRL warns if it gets a model and these.
    args.model_init_kwargs = None

    def make() -> PreTrainedModel:
        # As TRL does: a reward model's head has random weights.
        set_seed(run.job.spec.training.seed)
        # Adapters take their precision from the model when they are made.
        return from_files(where, kwargs, stage, convert_later=run.job.spec.peft.method == "none")

    return loading.load(run, make)


def from_files(
    where: str, kwargs: dict[str, Any], stage: Stage | None = None, *, convert_later: bool
) -> PreTrainedModel:
    """Return the model in a folder or hub repository, on the CPU; without a stage it is one that is only asked.

    With `convert_later` a model in fp32 whose files all have one lower precision is returned in theirs, mapped from
    them, and only its `config.dtype` says fp32: sharding converts it (loading.py).
    """
    wanted = getattr(torch, kwargs["dtype"])
    stored = file_dtype(where) if wanted == torch.float32 and convert_later else None
    kind, extra = _architecture(stage, where, kwargs.get("revision"))
    model: PreTrainedModel = kind.from_pretrained(where, **{**kwargs, "dtype": stored or wanted}, **extra)
    model.config.dtype = wanted
    return model


def _architecture(stage: Stage | None, where: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """Return the class that TRL would take, and what it adds to its arguments."""
    if stage is not None and stage.is_classifier:
        return AutoModelForSequenceClassification, {"num_labels": 1}
    names = source.read_config(where, revision, "model").architectures or [""]
    return getattr(transformers, names[0], AutoModelForCausalLM), {}


def file_dtype(where: str) -> torch.dtype | None:
    """Return the precision of all weights in a folder; None where they differ, or it is no folder."""
    found = set()
    for path in Path(where).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return FLOATS.get(found.pop()) if len(found) == 1 else None
