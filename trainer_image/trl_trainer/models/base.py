"""The base model itself, for one process and for several."""

from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    set_seed,
)

from trl_trainer.distributed import loading
from trl_trainer.distributed.world import Run
from trl_trainer.launch.network import HUB, patiently
from trl_trainer.models import adapter, arguments, quantized, skeleton, source, vocabulary
from trl_trainer.stage import Stage

HEADS = ("classifier", "score")
"""Modules of a classifier that peft trains beside the adapter."""


def is_streamed(run: Run) -> bool:
    """Return whether the model is loaded and sharded by us: with several processes, unless peft must see quantized
    weights when it makes the adapter (DoRA takes their norms)."""
    peft = run.job.spec.peft
    return run.world > 1 and not (peft.method == "qlora" and peft.use_dora)


def is_ours(run: Run) -> bool:
    """Return whether TRL's trainer gets a model that we have made, not the place of one."""
    return is_streamed(run) or run.job.spec.model.add_tokens is not None


def trained(run: Run, stage: Stage, args: Any) -> str | PreTrainedModel:
    """Return what TRL's trainer gets as its model: where it is, for TRL to load, or the model for `loading.shard`."""
    where, peft = source.path(run.job), run.job.spec.peft
    if not is_ours(run):
        return where
    wanted = vocabulary.rows(run.job)
    kwargs = arguments.model_init(run.job, frozen=False)
    # TRL warns if it gets a model and these.
    args.model_init_kwargs = None

    def make() -> PreTrainedModel:
        # As TRL does: a reward model's head has random weights.
        set_seed(run.job.spec.training.seed)
        # DoRA begins with the norms of the weights.
        made = from_files(where, kwargs, stage, convert_later=run.world > 1 and not peft.use_dora)
        vocabulary.grow(made, wanted)
        if wanted and peft.method == "lora":
            # peft makes copies of their new rows, and trains them.
            for value in vocabulary.tables(made).values():
                loading.now(value)
        return made

    model = loading.load(run, make) if run.world > 1 else make()
    for name, module in model.named_modules():
        if name.endswith((*(peft.modules_to_save or ()), *(HEADS if stage.is_classifier else ()))):
            # peft makes copies of these, and trains them.
            for value in module.parameters():
                loading.now(value)
    if peft.method == "qlora":
        quantized.put_4_bit_layers(model, adapter.quantization(run.job))
    return model


def quantization(run: Run) -> BitsAndBytesConfig | None:
    """Return what TRL's trainer gets beside `trained`: the quantization of a model that it loads."""
    return None if is_streamed(run) else adapter.quantization(run.job)


def from_files(
    where: str, kwargs: dict[str, Any], stage: Stage | None = None, *, convert_later: bool
) -> PreTrainedModel:
    """Return the model in a folder or hub repository, on the CPU; without a stage it is one that is only asked.

    `convert_later`: where the files have another precision than is wanted, let sharding convert the weights.
    """
    kind, extra = _architecture(stage, where, kwargs.get("revision"))
    found = _unconverted(kind, where, kwargs) if convert_later else None
    made: PreTrainedModel = found or patiently(HUB, lambda: kind.from_pretrained(where, **kwargs, **extra))
    return made


def _unconverted(kind: Any, where: str, kwargs: dict[str, Any]) -> PreTrainedModel | None:
    """Return the model as `kind` loads it, but with weights that take no memory (loading.later); None where the files
    have the wanted precision, or transformers makes the weights of other tensors.

    It is loaded from stand-ins: one number for each tensor, which cannot be taken for a weight.
    """
    kwargs = dict(kwargs)
    revision, wanted = kwargs.pop("revision", None), getattr(torch, kwargs["dtype"])
    folder = source.weights(where, revision)
    stored = skeleton.tensors(folder)
    config = source.read_config(where, revision, "model")
    built = skeleton.build(config, kind is AutoModelForSequenceClassification)
    names = dict(built.named_parameters(remove_duplicate=False))
    same = {value.dtype for name, value in stored.items() if name in names} == {wanted}
    is_usual = kind in (AutoModelForCausalLM, AutoModelForSequenceClassification, type(built))
    if same or not is_usual or skeleton.is_converted(built, stored):
        return None
    nothing = torch.full((), torch.nan, dtype=wanted)
    state = {name: nothing.expand(value.shape) if name in names else value for name, value in stored.items()}
    model: PreTrainedModel = type(built).from_pretrained(
        None, config=config, state_dict=state, generation_config=skeleton.generation(folder), **kwargs
    )
    model.name_or_path = model.config._name_or_path = where
    for name, value in model.named_parameters(remove_duplicate=False):
        if name in stored:
            loading.later(value, stored[name])
    return model


def _architecture(stage: Stage | None, where: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """Return the class that TRL would take, and what it adds to its arguments."""
    if stage is not None and stage.is_classifier:
        return AutoModelForSequenceClassification, {"num_labels": 1}
    names = source.read_config(where, revision, "model").architectures or [""]
    return getattr(transformers, names[0], AutoModelForCausalLM), {}
