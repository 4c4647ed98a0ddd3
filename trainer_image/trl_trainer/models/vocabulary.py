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
    for value in tables(model).values():
        loading.now(value)
    model.resize_token_embeddings(wanted, mean_resizing=False)
    with torch.no_grad():
        for value in tables(model).values():
            value[had:] = value[:had].float().mean(dim=0)
    return wanted - had


def trained_rows(job: JobFile, model: Any) -> dict[str, list[int]] | None:
    """Return which rows of which modules an adapter trains, as peft wants them: those of the tokens that the job adds,
    in the embedding, and in the head if it is another table; None where the job adds none."""
    if not job.spec.model.add_tokens:
        return None
    found = sorted(set(load_tokenizer(job).convert_tokens_to_ids(job.spec.model.add_tokens)))
    return dict.fromkeys(tables(model), found)


def complete_head(model: Any) -> None:
    """Let TRL read the bias of a head some of whose rows an adapter trains.

    TRL's fused head asks the module for it, and peft's wrapper (TrainableTokensWrapper) answers for `weight` alone.
    There is none: preflight refuses a head with one, which peft would leave out.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and not hasattr(head, "bias"):
        head.bias = None


def tables(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the weights of the embedding and of the head by the names of their modules; a tied head is no other."""
    found = {module.weight: name for name, module in reversed(modules(model).items())}
    return {name: value for value, name in found.items()}


def modules(model: Any) -> dict[str, torch.nn.Module]:
    """Return the embedding and the head, if there is one, by name."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = {module: name for name, module in model.named_modules()}
    return {names[module]: module for module in (model.get_input_embeddings(), head) if module is not None}
