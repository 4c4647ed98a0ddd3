"""The two hooks around a decoder, between which there is no padding."""

from typing import Any

import torch
from torch import nn

from trl_trainer.padding_free import rows
from trl_trainer.padding_free.rows import Rows

ARGUMENT = "padding_free"
"""The argument in which a row passes through a model's layers to attention.py: an argument, since checkpointing calls
the layers again when the hooks are long past."""

KNOWN = frozenset({"input_ids", "attention_mask", "use_cache", "output_router_logits", "num_items_in_batch"})
"""What a decoder may be called with to be called with a row instead."""


class PaddingFree:
    """A decoder that computes each padded batch without padding; `is_on` turns it off and on again.

    With `pairs` what the second half of a batch has in common with the first is computed once. What is no padded batch
    of training (generation, given positions or embeddings, an odd number of sequences where pairs are expected) is
    computed as it comes.
    """

    def __init__(self, decoder: nn.Module, *, pairs: bool) -> None:
        self.is_on = True
        self._pairs = pairs
        decoder.register_forward_pre_hook(self._pack, with_kwargs=True)
        decoder.register_forward_hook(self._pad, with_kwargs=True)

    def _pack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_on:
            return None
        # The heads of classifiers give them by place.
        kwargs = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}
        row = self._row(kwargs) if len(args) <= 1 else None
        if row is None:
            return None
        changed = {
            "input_ids": row.pack(kwargs["input_ids"]),
            # Of four dimensions, so that transformers makes none of its own. Nobody reads it.
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=row.tokens.device),
            "position_ids": row.positions,
            "use_cache": False,
            ARGUMENT: row,
        }
        return (), {**kwargs, **changed}

    def _row(self, kwargs: dict[str, Any]) -> Rows | None:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if any(value is not None and name not in KNOWN for name, value in kwargs.items()) or kwargs.get("use_cache"):
            return None
        if ids is None or not isinstance(mask, torch.Tensor) or mask.shape != ids.shape or mask.ndim != 2:
            return None
        if self._pairs and len(ids) % 2:
            return None
        found = rows.of(ids, mask, self._pairs)
        return found if found.saves else None

    def _pad(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        row = kwargs.get(ARGUMENT)
        if row is not None:
            output.last_hidden_state = row.pad(output.last_hidden_state[0])
            if getattr(output, "router_logits", None):
                # Padded, too, they are one row for each layer.
                output.router_logits = tuple(row.pad(logits).flatten(0, 1) for logits in output.router_logits)
        return output
