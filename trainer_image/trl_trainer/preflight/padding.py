"""Whether a job computes without padding (padding_free/), as far as that is known before weights are loaded."""

from typing import Any

import torch

from trl_contract.jobfile import JobFile
from trl_trainer.launch.network import with_token
from trl_trainer.models import source
from trl_trainer.padding_free import guard
from trl_trainer.stage import Stage

DROPS = ("SFTJob", "GRPOJob")
"""In the others TRL switches dropout off."""

CAPABILITY = (8, 0)
WIDEST = 256
"""What torch.nn.attention.varlen takes: GPUs from Ampere on; heads up to so wide, of a multiple of 8, whose values are
as wide as their keys."""


def may_do_without(job: JobFile) -> bool:
    """Return whether the job has padding to leave out and allows it."""
    return job.spec.is_padded and job.spec.training.padding_free != "never"


def refusal(job: JobFile, stage: Stage, device: str) -> str | None:
    """Return why a job that may do without padding is padded all the same; None if it is not."""
    spec = job.spec
    if spec.model.attn_implementation is not None:
        return f"model.attnImplementation is {spec.model.attn_implementation}"
    if spec.training.torch_compile:
        return "training.torchCompile would compile each length anew"
    if "neftune_noise_alpha" in (spec.training.extra_args or {}):
        return "neftune_noise_alpha is scaled by the padded length"
    if device == "cuda" and spec.training.precision == "fp32":
        return "no kernel for a GPU computes so in training.precision fp32"
    asked = [(source.path(job), spec.model)]
    if spec.explicit_reference is not None:
        given = spec.explicit_reference
        asked.append((source.explicit_reference(job, given), given))
    for where, given in asked:
        with with_token(spec, given.hub):
            config = source.read_config(where, given.revision, "model")
        if device == "cuda" and (found := kernel_refusal(config, torch.cuda.get_device_capability())):
            return found
        found = guard.refusal(
            config, pairs=spec.sequences_per_row == 2, left=stage.pads_both_sides, drops=job.kind in DROPS
        )
        if found is not None:
            return found
    return None


def kernel_refusal(config: Any, capability: tuple[int, int]) -> str | None:
    """Return why a GPU of `capability` has no kernel for the attention of a model of `config`; None if it has.

    Known beforehand: a rank that fails within a sharded model would leave the others waiting.
    """
    if capability < CAPABILITY:
        return f"its kernel needs GPUs of compute capability 8.0, and this one has {capability[0]}.{capability[1]}"
    text = config.get_text_config()
    if getattr(text, "qk_rope_head_dim", None):
        keys = text.qk_nope_head_dim + text.qk_rope_head_dim
    else:
        keys = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    values = getattr(text, "v_head_dim", None) or keys
    if keys != values or keys > WIDEST or keys % 8:
        what = f"{keys} wide" if keys == values else f"{keys} wide for keys and {values} for values"
        return f"no kernel for a GPU takes {text.model_type}'s heads, {what}"
    return None
