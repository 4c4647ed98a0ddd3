"""FSDP2 over gloo for CPU processes, which accelerate 1.15 turns into DDP without a word.

accelerate maps MULTI_GPU and friends to FSDP when a plugin is given, but never MULTI_CPU: two CPU ranks with
`fsdp=True` train replicas and exit 0. Demo, tests and laptops train on CPU, and they must run the very code that a
GPU cluster runs. This is the one place that reaches into accelerate's state; on CUDA it does nothing.
tests/trainer/test_faults.py (training without sharding) fails on the day that accelerate does it by itself.
"""

from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def enable() -> None:
    """Make accelerate take its FSDP path on CPU in this process; nothing changes where CUDA is available."""
    if torch.cuda.is_available() or getattr(AcceleratorState.__init__, "takes_fsdp_path", False):
        return
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        first = AcceleratorState._shared_state == {}
        original(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if first and plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    init.takes_fsdp_path = True  # type: ignore[attr-defined]
    AcceleratorState.__init__ = init
