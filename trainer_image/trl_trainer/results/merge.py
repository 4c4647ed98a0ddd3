"""The base model with the adapter merged into it, a part at a time: no two copies of the model are ever in memory."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from trl_trainer.models import skeleton, vocabulary
from trl_trainer.models.skeleton import Skeleton

State = dict[str, torch.Tensor]


def merge(base: Skeleton, folder: Path, adapter: Path, names: Sequence[str], rows: int = 0) -> tuple[Any, State]:
    """Return the model (on meta but for this part) and the merged weights of one part of `skeleton.parts`; `rows`: what
    its vocabulary has grown to (vocabulary.rows).

    They are those of peft's merge_and_unload on the whole model: peft itself merges, on a model whose other weights
    are on meta, where that costs nothing. All on the CPU, in the dtype of the base model's files.
    """
    model = skeleton.with_weights(base, folder, names)
    vocabulary.grow(model, rows)
    with warnings.catch_warnings():
        # What the adapter holds for weights on meta is not copied, and torch says so for each.
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        adapted = PeftModel.from_pretrained(model, adapter, torch_device="cpu")
    merged = adapted.merge_and_unload()
    return merged, {name: value for name, value in merged.state_dict().items() if not value.is_meta}
