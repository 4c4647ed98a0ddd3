"""Attention within each sequence of a row (rows.Rows), under a name of its own in transformers' registries."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trl_trainer.padding_free.rows import Rows

NAME = "padding_free"
"""attn_implementation of a model that may compute without padding."""
OWN = "sdpa"
"""That which it stands for: whatever is no row of ours is computed by it."""

OF_THE_MODEL = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "num_items_in_batch",
    }
)
"""Arguments that decoders pass through their layers and that do not change what is attended to."""


class Refused(ValueError):
    """A layer asks for attention that is not known here."""


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    padding_free: Rows | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return [1, N, heads, width] of query [1, heads, N, width] and keys and values of as many or fewer heads; without
    `padding_free` what transformers' sdpa returns.

    Each token attends to itself and what is before it in its sequence, with a sliding_window to so many in all.
    Refused for any argument that says more.
    """
    if padding_free is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            sliding_window=sliding_window,
            **others,
        )
    _check(module, dropout, is_causal, others)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    if padding_free.gather is not None:
        key, value = (part.index_select(0, padding_free.gather) for part in (key, value))
    compute = _on_cuda if query.is_cuda else _on_cpu
    return compute(query, key, value, scaling, sliding_window, padding_free)[None], None


def _check(module: nn.Module, dropout: float, is_causal: bool | None, others: dict[str, Any]) -> None:
    if dropout:
        raise Refused(f"its attention drops {dropout:g} of what it sees")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise Refused("its attention is not causal")
    unknown = sorted(name for name, value in others.items() if value is not None and name not in OF_THE_MODEL)
    if unknown:
        raise Refused(f"its attention takes {', '.join(unknown)}")


def _on_cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None, rows: Rows
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if torch.is_autocast_enabled("cuda"):
        # As scaled_dot_product_attention does by itself.
        query, key, value = (part.to(torch.get_autocast_dtype("cuda")) for part in (query, key, value))
    found: Any = varlen_attn(
        query,
        key,
        value,
        rows.query_starts,
        rows.key_starts,
        max(rows.queries),
        max(rows.keys),
        scale=scale,
        # To the left so many besides itself, to the right none; shorter queries lie at the end of their keys.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )
    return found


def _on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None, rows: Rows
) -> torch.Tensor:
    """One sequence after the other: torch has no attention over many on a CPU."""
    parts = zip(query.split(rows.queries), key.split(rows.keys), value.split(rows.keys), strict=True)
    found = []
    for q, k, v in parts:
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        mask = _mask(rows, q.shape[2], k.shape[2], window)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)


def _mask(rows: Rows, queries: int, keys: int, window: int | None) -> torch.Tensor | None:
    """Return [queries, keys], True where one attends; None where plain causal attention says the same."""
    if window is not None and keys <= window:
        window = None
    if queries == keys and window is None:
        return None
    found = rows.masks.get((queries, keys, window))
    if found is None:
        found = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        if window is not None:
            found = found.triu(keys - queries - window + 1)
        rows.masks[queries, keys, window] = found
    return found


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
