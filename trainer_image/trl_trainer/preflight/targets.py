"""What a job's adapter is put on, by the names that the model has."""

import difflib
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError
from trl_trainer.models import vocabulary
from trl_trainer.models.adapter import ALL_LINEAR
from trl_trainer.stage import Stage


def resolved(job: JobFile, stage: Stage, model: Any) -> JobFile:
    """Return the job with `all-linear` replaced by what it means for the model where it stands beside other names:
    peft understands it alone. UserError for a name that the model does not have, which peft passes over."""
    peft = job.spec.peft
    if peft.method == "none":
        return job
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    given = [name for name in peft.target_modules or [] if name != ALL_LINEAR]
    _check("targetModules", given, modules, parameters)
    _check("modulesToSave", peft.modules_to_save or [], modules, parameters)
    _check("targetParameters", peft.target_parameters or [], parameters, [])
    if job.spec.model.add_tokens:
        _check_tables(model, {"targetModules": given, "modulesToSave": peft.modules_to_save or []})
    if not given or ALL_LINEAR not in (peft.target_modules or []):
        return job
    adapted = get_peft_model(model, LoraConfig(target_modules=ALL_LINEAR, task_type=stage.task_type))
    linear = list(adapted.base_model.targeted_module_names)
    adapted.unload()
    # A name that is given may end like one of these.
    targets = [*linear, *(name for name in given if not any(_is(full, name) for full in linear))]
    return job.model_copy(
        update={"spec": job.spec.model_copy(update={"peft": peft.model_copy(update={"target_modules": targets})})}
    )


def _check_tables(model: Any, given: dict[str, list[str]]) -> None:
    """Raise UserError if the rows of new tokens cannot be trained beside the rest of the adapter."""
    for table, module in vocabulary.modules(model).items():
        if getattr(module, "bias", None) is not None:
            raise UserError(
                "InvalidSpec",
                f"model.addTokens: {table} has a bias, which peft leaves out where it trains rows: set peft.method to"
                " none, or remove addTokens",
            )
        for field, names in given.items():
            named = next((name for name in names if _is(table, name)), None)
            if named is not None:
                raise UserError(
                    "InvalidSpec",
                    f"peft.{field}: {named} cannot go with model.addTokens, which trains its new rows: remove it",
                )


LAYERS = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)
"""What peft puts an adapter on, beside ones that have one."""


def refusal(job: JobFile, stage: Stage, model: Any, error: ValueError) -> str:
    """Return what to say, from the field on, of an adapter that peft refuses to put on `model` for `error`."""
    peft, given = job.spec.peft, job.spec.peft.target_modules or []
    for name in given:
        for full, module in model.named_modules():
            if _is(full, name) and not isinstance(module, (*LAYERS, BaseTunerLayer)):
                inner = {part.rsplit(".", 1)[-1] for part, layer in module.named_modules() if isinstance(layer, LAYERS)}
                remedy = f"name layers in it, like {', '.join(sorted(inner))}" if inner else "remove it"
                kind = type(module).__name__
                return f"peft.targetModules: {name} is a {kind}, and peft puts an adapter on layers only: {remedy}"
    if stage.is_classifier and given == ["score"]:
        return "peft.targetModules: score is trained in full beside the adapter: name other layers, or all-linear"
    if peft.lora_dropout and set(given) <= {ALL_LINEAR}:
        remedy = "remove it, or name layers in peft.targetModules, like q_proj"
        return f"peft.dropout: {peft.lora_dropout} does not go with a mixture of experts ({error}): {remedy}"
    return f"peft: {error}"


def _is(full: str, name: str) -> bool:
    return full == name or full.endswith(f".{name}")


def _check(field: str, given: list[str], known: list[str], parameters: list[str]) -> None:
    """Raise UserError for the first name that is none of `known`."""
    for name in given:
        if any(_is(full, name) for full in known):
            continue
        if any(_is(full, name) for full in parameters):
            raise UserError(
                "InvalidSpec",
                f"peft.{field}: {name} is no module of the model, but a parameter: name it in peft.targetParameters",
            )
        last = {full.rsplit(".", 1)[-1] for full in known}
        near = difflib.get_close_matches(name.rsplit(".", 1)[-1], sorted(last - set("0123456789")), 3, 0.0)
        raise UserError(
            "InvalidSpec", f"peft.{field}: the model has no {name}; the nearest names are {', '.join(near)}"
        )
