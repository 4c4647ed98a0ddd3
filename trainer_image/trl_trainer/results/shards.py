"""A model's folder, written one safetensors file at a time, in the layout of save_pretrained."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import load_state_dict

from trl_trainer.files import fsync, sha256


class Shards:
    """Writes a model into `folder` in `count` files, each with the names that save_pretrained gives its weights."""

    def __init__(self, folder: Path, count: int) -> None:
        self.digests: dict[str, str] = {}
        """sha256 of each file that is on disk, by its name."""
        self._folder = folder
        self._count = count
        self._weight_map: dict[str, str] = {}
        self._metadata = {"total_parameters": 0, "total_size": 0}

    def add(self, model: Any, state: dict[str, torch.Tensor]) -> None:
        """Write the weights `state` of `model` as the next file, on disk when this returns; the config of the folder is
        that of the last one."""
        number, part = len(self.digests) + 1, self._folder / "part"
        name = f"model-{number:05}-of-{self._count:05}.safetensors" if self._count > 1 else "model.safetensors"
        model.save_pretrained(part, state_dict=state, max_shard_size="1000TB")
        for path in part.iterdir():
            os.replace(path, self._folder / (name if path.suffix == ".safetensors" else path.name))
        part.rmdir()
        path = self._folder / name
        # Read back at once, while it is in the page cache.
        self.digests[name] = sha256(path)
        fsync(path)
        for tensor, value in load_state_dict(path, map_location="meta").items():
            self._weight_map[tensor] = name
            self._metadata["total_parameters"] += value.numel()
            self._metadata["total_size"] += value.nbytes
        if number == self._count > 1:
            index = {"metadata": self._metadata, "weight_map": self._weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self._folder / "model.safetensors.index.json").write_text(text)
