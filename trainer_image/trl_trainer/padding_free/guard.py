"""Whether a model computes the same without padding: asked of a reduced copy, in fp32 on the CPU, before weights are
loaded. What a small batch of the whole model in bf16 would not show (a narrow window, a soft cap) shows here."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from trl_trainer.padding_free import reduced
from trl_trainer.padding_free.attention import NAME, OWN, Refused
from trl_trainer.padding_free.compared import FLOORS, batch, derive, difference, gradient_difference, without_dropout
from trl_trainer.padding_free.hooks import PaddingFree

HIDDEN, GRADIENT = 1e-5, 5e-5
"""By so much of its greatest value a hidden state or a gradient may differ; or by FLOORS times what it differs by with
more padding, if that is more."""
RANDOM = 1e-3
"""A model of which a state or a gradient differs by more, with more padding alone, says nothing of what is equal."""
SPREAD = 0.5
"""Of what norms, biases and sinks are changed by: at their first values some would do nothing."""

LARGEST = 5_000_000
"""Parameters of a reduced copy: one that is larger has parts that reduced.py does not know."""

Found = tuple[torch.Tensor, list[torch.Tensor]]
"""Hidden states without padding, and the gradient of each parameter."""


def refusal(config: Any, *, pairs: bool, left: bool, drops: bool) -> str | None:
    """Return why models of `config` must not compute without padding; None if they may. It takes a part of a second.

    pairs: with common prompts once; left: with padding on both sides, as grpo has it; drops: with the dropout that
    the config asks for, as TRL trains some kinds.
    """
    name = config.model_type
    try:
        with _seeded(), torch.enable_grad():
            return _compare(_model(reduced.config_of(config)), name, pairs=pairs, left=left, drops=drops)
    except (Refused, reduced.Unknown) as refused:
        return f"{name} cannot do without: {refused}"
    except Exception as error:
        # Of a model that is not known here; whatever a reduced copy does not take, the guard cannot vouch for.
        said = (str(error).splitlines() or [""])[0][:120]
        return f"{name} cannot be tried without: {type(error).__name__}: {said}"


def _model(config: Any) -> Any:
    with torch.device("meta"):
        number = AutoModelForCausalLM.from_config(copy.deepcopy(config)).num_parameters()
    if number > LARGEST:
        raise reduced.Unknown(f"a reduced copy still has {number:,} parameters")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if model.config._attn_implementation != OWN:
        raise Refused(f"its attention is {model.config._attn_implementation}")
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim < 2:
                value.add_(SPREAD * torch.randn_like(value))
            else:
                value.normal_(std=1.5 * value.shape[-1] ** -0.5)
    return model.train()


def _compare(model: Any, name: str, *, pairs: bool, left: bool, drops: bool) -> str | None:
    decoder = model.base_model
    vocabulary, pad = model.config.vocab_size, model.config.pad_token_id
    batches = [batch(vocabulary, pad, left=side) for side in ((False, True) if left else (False,))]
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise Refused("its attention cannot be chosen")
    hooks = PaddingFree(decoder, pairs=pairs)
    if drops:
        # Attention would refuse to. All other dropout is each token's own, whatever lies beside it.
        decoder(input_ids=batches[0][0], attention_mask=batches[0][1], use_cache=False)
    hooks.is_on = False
    model.set_attn_implementation(OWN)
    random = torch.get_rng_state()
    with without_dropout(model):
        own = [(_pass(decoder, ids, mask), _pass(decoder, *_wider(ids, mask))) for ids, mask in batches]
        model.set_attn_implementation(NAME)
        hooks.is_on = True
        without = [_pass(decoder, ids, mask) for ids, mask in batches]
    if not torch.equal(random, torch.get_rng_state()):
        # Dropout that is no module, jitter of a router, layers left out: passes may agree by chance, or all differ.
        raise Refused("it is random while it trains")
    for free, (first, again) in zip(without, own, strict=True):
        for what, bound, of in (("hidden states", HIDDEN, _hidden), ("gradients", GRADIENT, _gradients)):
            differs, floor = of(free, first), of(again, first)
            if floor > RANDOM:
                raise Refused(f"its own {what} differ by {floor:.1e} of their size with more padding")
            if differs > max(bound, FLOORS * floor):
                return f"{name} would compute other {what} without, by {differs:.1e} of their size"
    return None


def _wider(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return nn.functional.pad(ids, (0, 6)), nn.functional.pad(mask, (0, 6))


def _pass(decoder: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> Found:
    hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    tokens = hidden[mask.bool()]
    derive(tokens)
    gradients = [torch.zeros_like(v) if v.grad is None else v.grad.clone() for v in decoder.parameters()]
    decoder.zero_grad()
    return tokens.detach(), gradients


def _hidden(found: Found, other: Found) -> float:
    return difference(found[0], other[0])


def _gradients(found: Found, other: Found) -> float:
    return gradient_difference(found[1], other[1])


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
