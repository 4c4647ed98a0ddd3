"""What another job has written is looked at before it is loaded: nothing in it may run code.

Checkpoints in shards are pickles in two places, which torch 2.15 loads without a limit: `.metadata`, and the values in
shards that are no tensors (FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes). Everything else in a
checkpoint is safetensors, JSON, or is loaded with torch.load(weights_only=True) by transformers and accelerate;
tests/trainer/test_foreign.py fails when one of both becomes otherwise.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

_METADATA = "torch.distributed.checkpoint.metadata"
_PLAIN = {
    *((_METADATA, name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
}  # fmt: skip
"""What `.metadata` is made of, beside torch's names of types of numbers: classes that only hold values."""


class _Metadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no part of a checkpoint")
        return super().find_class(module, name)


def check(checkpoint: Path) -> None:
    """Return if loading the checkpoint runs nothing that its writer has put there; ValueError says what would."""
    for path in sorted(checkpoint.rglob("*.metadata")):
        try:
            _check(path)
        except pickle.UnpicklingError as error:
            said = str(error).splitlines()[0]
            raise ValueError(f"{path.relative_to(checkpoint)} may not be loaded: {said}") from None


def _check(metadata: Path) -> None:
    """Raise UnpicklingError for a `.metadata`, or a value in the shards beside it, that is more than data."""
    with metadata.open("rb") as file:
        found = _Metadata(file).load()
    for index, place in (found.storage_data or {}).items():
        if isinstance(found.state_dict_metadata[index.fqn], BytesStorageMetadata):
            with (metadata.parent / place.relative_path).open("rb") as file:
                file.seek(place.offset)
                torch.load(io.BytesIO(file.read(place.length)), weights_only=True)
