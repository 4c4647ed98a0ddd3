"""A model of which only the shapes, or a part of the weights, is in memory: on torch's meta device.

Names, shapes and dtypes come from the headers of the safetensors files, so a skeleton costs seconds and no memory at
any size. transformers itself says how the names in the files become those of the model (experts that lie one by one in
the files are one tensor in the model), and back.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig, load_state_dict, str_to_torch_dtype

from trl_trainer.errors import TrainerError, UserError

PART_BYTES = 5 * 10**9
"""Size of a part of a model, and of a file that is written: so much of a model is in memory at a time."""

_BLOCK = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Skeleton:
    """What the files of a folder hold of a model."""

    model: Any
    """The model on the meta device, in the dtype of the files."""
    missing: list[str]
    """Weights of the model that the files do not have, or have in another shape; in order of name."""
    converted: bool
    """Whether the files hold other tensors than the model, and transformers makes its weights of them."""


def build(config: Any, classifier: bool, **options: Any) -> Any:
    """Return the model of `config` on the meta device; a classifier has one label. `options` go to from_config."""
    with torch.device("meta"):
        if classifier:
            config.num_labels = 1
            return AutoModelForSequenceClassification.from_config(config, **options)
        return AutoModelForCausalLM.from_config(config, **options)


def of_folder(folder: Path, config: Any, classifier: bool) -> Skeleton:
    """Return the skeleton of the model in `folder`, as from_pretrained would load it."""
    return of_headers(headers(folder), config, classifier, generation_config=generation(folder))


def generation(folder: Path) -> GenerationConfig | None:
    """Return the folder's settings of generation, if it has some. UserError if they cannot be read."""
    path = folder / "generation_config.json"
    if not path.exists():
        return None
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError("InvalidSpec", f"model: {path} cannot be read: {error}; mend or remove it") from error


def of_headers(headers: dict[str, torch.Tensor], config: Any, classifier: bool, **options: Any) -> Skeleton:
    """Return the skeleton of a model whose files hold `headers`. `options` go to from_pretrained."""
    model, info = type(build(config, classifier)).from_pretrained(
        None,
        config=config,
        state_dict=headers,
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    return Skeleton(model, sorted({*info["missing_keys"], *mismatched}), is_converted(model, headers))


def is_converted(model: Any, headers: Mapping[str, torch.Tensor]) -> bool:
    """Return whether files with `headers` hold tensors that the model does not have. Pure."""
    return not headers.keys() <= model.state_dict().keys()


def files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor in `folder`, of those files that from_pretrained reads."""
    single = folder / "model.safetensors"
    if single.exists():
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), single)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return {name: folder / path for name, path in index["weight_map"].items()}


def headers(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of those files, on meta: nothing but their headers is read."""
    return _read(folder, "meta")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of those files, mapped from them: they take no memory of this process."""
    return _read(folder, "cpu")


def _read(folder: Path, device: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(set(files(folder).values())):
        found |= load_state_dict(path, map_location=device)
    return found


def hub_headers(repo: str, revision: str | None) -> dict[str, torch.Tensor]:
    """Return the same of a repository of the hub; nothing else is downloaded."""
    metadata = HfApi().get_safetensors_metadata(repo, revision=revision)
    tensors = {name: info for file in metadata.files_metadata.values() for name, info in file.tensors.items()}
    return {
        name: torch.empty(info.shape, dtype=str_to_torch_dtype[info.dtype], device="meta")
        for name, info in tensors.items()
    }


def parts(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Return the names of `sizes` (bytes of each) in parts of at most `limit` bytes. Pure.

    What belongs together stays together, though it be more than `limit`: a block of the model, where the files may
    hold as several tensors what the model holds as one, and all that is in no block (it may be tied), which comes last.
    """
    units: dict[str, list[str]] = {}
    for name in sizes:
        units.setdefault(block(name), []).append(name)
    rest = units.pop("", [])
    found: list[list[str]] = []
    filled = limit
    for names in [*units.values(), *([rest] if rest else [])]:
        size = sum(sizes[name] for name in names)
        if filled + size > limit:
            found.append([])
            filled = 0
        found[-1] += names
        filled += size
    return found


def block(name: str) -> str:
    """Return the block that `name` belongs to: all up to its first number; "" if it has none. Pure."""
    match = _BLOCK.match(name)
    return match[1] if match else ""


def with_weights(skeleton: Skeleton, folder: Path, names: Sequence[str]) -> Any:
    """Return a copy of the model in which the tensors `names` of the files, one of `parts`, are loaded, on the CPU; the
    rest is on meta. What the files lack, a new classifier's head, comes with the last part, and holds anything.

    TrainerError if they do not make whole weights of the model.
    """
    model, where = copy.deepcopy(skeleton.model), files(folder)
    tensors: dict[str, Any] = {}
    for name in names:
        with safe_open(where[name], "pt") as file:
            # A slice is not read before it is used.
            tensors[name] = file.get_slice(name)
    _load(model, tensors)
    if any(block(name) == "" for name in names):
        for name in skeleton.missing:
            model.get_submodule(name.rpartition(".")[0]).to_empty(device="cpu")
    real = {name for name, value in model.state_dict().items() if not value.is_meta}
    tied = model.all_tied_weights_keys
    if real & {*tied.keys(), *tied.values()}:
        model.tie_weights(missing_keys=set(model.state_dict()) - real, recompute_mapping=False)
    return model


def _load(model: Any, tensors: Mapping[str, Any]) -> None:
    """Load a part of a model's files into it.

    transformers has this as a function, but documents only from_pretrained, which wants all of the files. The merge of
    every form (tests/trainer/test_merge.py) fails when it changes.
    """
    mapping = get_model_conversion_mapping(model)
    info, _ = convert_and_load_state_dict_in_model(
        model, dict(tensors), LoadStateDictConfig(weight_mapping=mapping), None
    )
    wrong = [*info.error_msgs, *info.conversion_errors.values(), *(str(item) for item in info.mismatched_keys)]
    if wrong:
        raise TrainerError("Unknown", f"the weights of the base model cannot be read in parts: {wrong[0]}")
