"""Rows of a model's embeddings for tokens that the job adds (model.addTokens)."""

from typing import Any

import torch

from trl_contract.jobfile import JobFile
from trl_trainer.distributed import loading
from trl_trainer.models.tokenizer import load_tokenizer


def rows(job: JobFile) -> int:
    """Return how many rows the embeddings must have for the job's tokenizer; 0 where it adds no tokens."""
    return len(load_tokenizer(job)) if job.spec.model.add_tokens else 0


def grow(model: Any, wanted: int) -> int:
    """Give the embedding and the head of a model, which may be on meta, at least `wanted` rows, and return how many are
    new. Each of them is the mean of all others, the same in every process."""
    had = int(model.get_input_embeddings().weight.shape[0])
    if wanted <= had:
        return 0
    for value in _tables(model):
        loading.now(value)
    model.resize_token_embeddings(wanted, mean_resizing=False)
    with torch.no_grad():
        for value in _tables(model):
            value[had:] = value[:had].float().mean(dim=0)
    return wanted - had


def _tables(model: Any) -> list[torch.nn.Parameter]:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = [model.get_input_embeddings().weight, *([] if head is None else [head.weight])]
    return list(dict.fromkeys(found))
