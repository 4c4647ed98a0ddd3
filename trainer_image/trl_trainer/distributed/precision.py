"""In which precision several processes compute: FSDP2's policy, ours instead of accelerate's."""

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Of two bytes, by training.precision."""


def policy(precision: str | None) -> MixedPrecisionPolicy:
    """Return the policy of every FSDP2 module of a job (training.precision), the trained model's and its reference's.

    bf16, fp16: forward and backward pass in it, gradients reduced in fp32, outputs as the model returns them.
    accelerate's own also rounds outputs: TRL's head returns log-probabilities in fp32, and a sum of hundreds would be
    cut to steps of 2, which is 0.2 of DPO's reward at beta 0.1. fp32: everything stays as it is.
    """
    if precision not in HALF:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=HALF[precision], reduce_dtype=torch.float32, output_dtype=None)


def keep_trained_in_fp32(model: torch.nn.Module) -> None:
    """Make fp32 of what is trained and was loaded in fp16, as the modules that peft copies: its gradients cannot be
    scaled back."""
    for value in model.parameters():
        if value.requires_grad and value.dtype == torch.float16:
            value.data = value.data.float()
