"""What the model is, from its config alone: kind, size, vocabulary, adapter. No weights are loaded."""

import json
from collections import Counter
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
)
from transformers.pytorch_utils import Conv1D

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError
from trl_trainer.models import adapter, skeleton, source, vocabulary
from trl_trainer.models.skeleton import Skeleton
from trl_trainer.preflight import targets
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
    looks_up_positions: bool
    """In a table that ends there."""
    stops: list[int]
    """Tokens at which the model stops to generate."""
    targets: list[str] | None
    """Modules that get the job's adapter; None where it has none."""
    bare_experts: list[str]
    """Parameters of experts that get nothing of the job's adapter, as peft.targetParameters would name them."""
    in_bare_experts: int
    """In those."""
    embedding: int
    """In the input embedding."""
    head: int
    """In the output head, also where it is the embedding; 0 for a classifier."""
    tied: bool
    """Head and embedding are one."""
    queries: int
    """Values per token of a block's queries."""
    keys: int
    """And of its keys, which its values have too."""
    wide: int
    """And inside its MLP; of a mixture of experts in all that work on a token."""
    norms: int
    """And of what the norms of a block see."""
    stored: int
    """Bytes of the weights in the files."""
    largest: int
    """In the largest tensor."""
    unit: int
    """In the largest block, or in all that is in no block if that is more (skeleton.parts)."""
    converted: bool
    """Whether transformers makes the weights of other tensors (skeleton.Skeleton)."""
    grown: int
    """Rows of the vocabulary that are new, for tokens that the job adds."""


def inspect(job: JobFile, stage: Stage) -> Architecture:
    """Return what the base model is. UserError when it is not there, of the wrong kind, or not in safetensors."""
    where = source.path(job)
    if Path(where).is_absolute():
        check_weights(Path(where), "model")
    config = source.read_config(where, job.spec.model.revision, "model")
    classifier = stage.is_classifier
    check_kind(config, where, classifier)
    check_unquantized(config, where, "model")
    found = covered(where, job.spec.model.revision, config, "model", classifier=classifier, new_head=classifier)
    grown = vocabulary.grow(found.model, vocabulary.rows(job))
    return of_model(job, stage, found.model, converted=found.converted, grown=grown)


def of_model(job: JobFile, stage: Stage, model: Any, *, converted: bool = False, grown: int = 0) -> Architecture:
    """Return the same of a model without weights; it gets the job's adapter."""
    parameters, linear = model.num_parameters(), _linear(model)
    counts = {name: value.numel() for name, value in model.named_parameters()}
    stored = sum(value.nbytes for value in model.parameters())
    units = Counter[str]()
    for name, count in counts.items():
        units[skeleton.block(name)] += count
    text = model.config.get_text_config()
    widths = _widths(model, text)
    positions = getattr(text, "max_position_embeddings", None)
    looks_up = _looks_up_positions(model, positions)
    job = targets.resolved(job, stage, model)
    adapter, bare = _adapter(job, stage, model)
    return Architecture(
        name=type(model).__name__,
        parameters=parameters,
        trainable=parameters if job.spec.peft.method == "none" else adapter,
        linear=linear,
        adapter=adapter,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        positions=positions,
        looks_up_positions=looks_up,
        stops=stops(model),
        targets=job.spec.peft.target_modules,
        bare_experts=sorted({name[len(skeleton.block(name)) + 1 :] for name in bare}),
        in_bare_experts=sum(counts[name] for name in bare),
        stored=stored,
        largest=max(counts.values()),
        unit=max(units.values()),
        converted=converted,
        grown=grown,
        **widths,
    )


def stops(model: Any) -> list[int]:
    """Return the tokens at which the model stops to generate; none for a classifier."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if given is None else [given] if isinstance(given, int) else list(given)


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


def check_unquantized(config: Any, where: str, field: str) -> None:
    """Raise UserError if the weights are stored in fewer bits than they are computed in: nothing could be merged into
    them, and what transformers 5.23 saves of a dequantized model is not what it then loads."""
    quantization = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if not quantization:
        return
    given = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = str(getattr(given.get("quant_method"), "value", given.get("quant_method", "by a method it does not name")))
    remedy = "give the model that it was made from; peft.method qlora brings that to 4 bit while it is loaded"
    if method == "mxfp4":
        remedy = (
            "dequantize it with AutoModelForCausalLM.from_pretrained(FOLDER, quantization_config=Mxfp4Config("
            "dequantize=True)).save_pretrained(NEW, save_original_format=False), and save its tokenizer there"
        )
    raise UserError("InvalidSpec", f"{field}: {where} is quantized ({method}): {remedy}")


def covered(
    where: str, revision: str | None, config: Any, field: str, *, classifier: bool, new_head: bool = False
) -> Skeleton:
    """Return the model without weights; UserError if the files of a folder or hub repository lack weights of it, which
    would start at random.

    new_head: a classifier's head may be missing, since the job trains one.
    """
    try:
        found = _skeleton(where, revision, config, classifier)
    except source.ODD as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(
            "InvalidSpec", f"{field}: transformers makes no model of the config.json of {where}: {said}; mend it"
        ) from error
    trained = f"{found.model.base_model_prefix}." if new_head else ""
    missing = [name for name in found.missing if name.startswith(trained)]
    if missing:
        raise UserError(
            "ModelNotFound",
            f"{field}: the files in {where} lack {len(missing)} weights of a {type(found.model).__name__}, or have them"
            f" in another shape ({', '.join(missing[:5])}); they would start at random: copy the model again, or mend"
            " its config.json",
        )
    return found


def _skeleton(where: str, revision: str | None, config: Any, classifier: bool) -> Skeleton:
    if Path(where).is_absolute():
        return skeleton.of_folder(Path(where), config, classifier)
    try:
        return skeleton.of_headers(skeleton.hub_headers(where, revision), config, classifier)
    except Exception as error:
        if not source.may_pass(error):
            raise
        # The cache may have it all.
        return Skeleton(skeleton.build(config, classifier), [], converted=False)


def check_kind(config: Any, where: str, reward: bool) -> None:
    """Raise UserError unless the model was trained as a language model or, for a reward model, also as a classifier."""
    families = [MODEL_FOR_CAUSAL_LM_MAPPING] + ([MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING] if reward else [])
    wanted = "causal language model" + (" or sequence classifier" if reward else "")
    known = {name for family in families if type(config) in family for name in _names(family[type(config)])}
    given = config.architectures or list(known)
    if not known & set(given) or (reward and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING):
        found = ", ".join(given) or config.model_type
        raise UserError("InvalidSpec", f"model: {where} is a {found}, but this job needs a {wanted}")


def classifier_config(where: str, revision: str | None, field: str) -> Any:
    """Return the config of a reward model's folder or hub repository; UserError unless it is a classifier with one
    label, sound and whole."""
    if Path(where).is_absolute():
        source.check_folder(where, field)
        check_weights(Path(where), field)
    config = source.read_config(where, revision, field)
    known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) not in known or not set(config.architectures or []) & set(_names(known[type(config)])):
        found = ", ".join(config.architectures or []) or config.model_type
        raise UserError("InvalidSpec", f"{field}: {where} is a {found}, but a reward model is a sequence classifier")
    if config.num_labels != 1:
        raise UserError("InvalidSpec", f"{field}: {where} has {config.num_labels} labels; a reward model has one")
    check_unquantized(config, where, field)
    covered(where, revision, config, field, classifier=True)
    return config


def _names(classes: Any) -> list[str]:
    return [item.__name__ for item in (classes if isinstance(classes, list | tuple) else [classes])]


def _widths(model: Any, text: Any) -> dict[str, Any]:
    """Return how wide the model is inside: what its config says, and what its norms show."""
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    experts = getattr(text, "num_experts_per_tok", None) or 1
    inner = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None)
    norms = [module for module in model.modules() if "Norm" in type(module).__name__ and hasattr(module, "weight")]
    # A norm of the size of one head works on each: on queries or on keys, in equal numbers.
    seen = [
        (heads + groups) * head_dim / 2 if norm.weight.numel() == head_dim else norm.weight.numel() for norm in norms
    ]
    return {
        "embedding": embedding.numel(),
        "head": 0 if output is None else output.weight.numel(),
        "tied": output is not None and output.weight is embedding,
        "queries": heads * head_dim,
        "keys": groups * head_dim,
        "wide": experts * (inner or 4 * text.hidden_size),
        "norms": round(sum(seen) / text.num_hidden_layers),
    }


def _looks_up_positions(model: Any, positions: int | None) -> bool:
    """Return whether the model has learnt one vector for each position; some tables have two more rows."""
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not model.get_input_embeddings()]
    return positions is not None and any(0 <= table.num_embeddings - positions <= 2 for table in tables)


def _linear(model: Any) -> int:
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not output]
    return sum(layer.weight.numel() for layer in layers)


def _adapter(job: JobFile, stage: Stage, model: Any) -> tuple[int, list[str]]:
    """Return the number of parameters of the adapter, made by peft itself, and the experts that get nothing of the
    job's; UserError if it cannot be put on."""
    # peft finds layers, and the weights of all experts are one parameter.
    experts = [name for name, value in model.named_parameters() if ".experts." in name and value.ndim == 3]
    task = stage.task_type
    config = adapter.lora(job, task, model) or LoraConfig(
        r=job.spec.peft.r, target_modules="all-linear", task_type=task
    )
    try:
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    except ValueError as error:
        raise UserError("InvalidSpec", targets.refusal(job, stage, model, error)) from error
    if not stage.adapts_head and isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            "InvalidSpec", f"peft.targetModules: {job.kind} trains no adapter on the output head: remove it"
        )
    number = int(adapted.get_nb_trainable_parameters()[0])
    if job.spec.peft.method == "none":
        return number, []
    trained = [name for name, value in adapted.base_model.model.named_parameters() if value.requires_grad]
    whole = {name.replace(".modules_to_save.default.", ".") for name in trained}
    return number, [name for name in experts if name not in {*whole, *adapted.base_model.targeted_parameter_names}]
