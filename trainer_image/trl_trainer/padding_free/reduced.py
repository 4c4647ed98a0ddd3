"""A small model of the same kind: every kind of layer that a config has, a few units wide."""

import copy
from typing import Any

WINDOW = 8
"""So narrow that a sequence of the guard's is longer."""
WIDTH = 16
"""Of a head."""

WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size")
INNER = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
STATEFUL = ("mamba", "ssm", "linear_", "conv", "rwkv")
"""How the fields begin of layers that hand a state on from token to token, also to the next sequence of a row. A
reduced copy shows that, but takes half a minute on a CPU."""
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}


class Unknown(ValueError):
    """A model of which no small one can be made here."""


def config_of(config: Any) -> Any:
    """Return a copy of a text model's transformers config with which the model has some 10,000 parameters: its first
    layers up to one of every kind, its shares of heads, its dropout and scales as they are. Unknown for a model of
    several parts, or with a state."""
    if any(name.startswith(STATEFUL) for name in vars(config)):
        raise Unknown("it has layers that hand a state on from token to token")
    if config.get_text_config() is not config:
        raise Unknown("it is made of several models")
    small = copy.deepcopy(config)
    _narrow(small)
    _shorten(small)
    small.vocab_size = 64
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(small, name, 0)
    for name in WINDOWS:
        if isinstance(getattr(small, name, None), int):
            setattr(small, name, WINDOW)
    return small


def _narrow(small: Any) -> None:
    heads = small.num_attention_heads
    groups = getattr(small, "num_key_value_heads", None) or heads
    of_a_group = min(4, heads // groups)
    groups = min(2, groups)
    small.num_attention_heads = groups * of_a_group
    if getattr(small, "num_key_value_heads", None):
        small.num_key_value_heads = groups
    small.hidden_size = groups * of_a_group * WIDTH
    if getattr(small, "kv_lora_rank", None):
        for name, width in LATENT.items():
            if getattr(small, name, None):
                setattr(small, name, width)
    if getattr(small, "head_dim", None):
        small.head_dim = WIDTH
    for name in INNER:
        if isinstance(getattr(small, name, None), int):
            setattr(small, name, 2 * WIDTH)
    for name in EXPERTS:
        if isinstance(getattr(small, name, None), int):
            setattr(small, name, 4)
    if isinstance(getattr(small, "num_experts_per_tok", None), int):
        small.num_experts_per_tok = min(2, small.num_experts_per_tok)
    for name in ("n_group", "topk_group"):
        if isinstance(getattr(small, name, None), int):
            setattr(small, name, 1)
    for name in ("rope_parameters", "rope_scaling"):
        _cut_factors(getattr(small, name, None))


def _cut_factors(rope: Any) -> None:
    """Cut lists of one factor for each pair of a head's values."""
    if not isinstance(rope, dict):
        return
    pairs = int(WIDTH * rope.get("partial_rotary_factor", 1.0)) // 2
    for name, value in rope.items():
        if name in ("short_factor", "long_factor") and value is not None:
            rope[name] = list(value)[:pairs]
        _cut_factors(value)


def _shorten(small: Any) -> None:
    """Leave so many layers that each kind is there, and at least two."""
    total = small.num_hidden_layers
    lists = {name: value for name, value in vars(small).items() if isinstance(value, list) and len(value) == total}
    # Only what says something of each layer, not a list that happens to be as long.
    kinds = list(zip(*(map(str, value) for value in lists.values()), strict=True)) or [()] * total
    wanted = next(number for number in range(1, total + 1) if set(kinds[:number]) == set(kinds))
    dense = getattr(small, "first_k_dense_replace", None) or 0
    if dense:
        small.first_k_dense_replace = dense = 1
    number = min(total, max(2, wanted, dense + 1, getattr(small, "decoder_sparse_step", None) or 1))
    for name, value in lists.items():
        setattr(small, name, value[:number])
    small.num_hidden_layers = number
