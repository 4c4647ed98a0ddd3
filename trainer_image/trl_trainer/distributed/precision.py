"""In which precision several processes compute: FSDP2's policy, ours instead of accelerate's."""

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy


def policy(precision: str | None) -> MixedPrecisionPolicy:
    """Return the policy of every FSDP2 module of a job (training.precision), the trained model's and its reference's.

    bf16: forward and backward pass in bf16, gradients reduced in fp32, outputs as the model returns them. accelerate's
    own also rounds outputs: TRL's head returns log-probabilities in fp32, and a sum of hundreds would be cut to steps
    of 2, which is 0.2 of DPO's reward at beta 0.1. fp32: everything stays as it is.
    """
    if precision != "bf16":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None)
