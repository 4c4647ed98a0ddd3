"""Whole tensors out of FSDP's shards, one at a time, in the memory of rank 0's host and nowhere else.

torch's own full_tensor() and full_state_dict put the whole tensor on every rank's device before they move it.
"""

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from trl_trainer.distributed import world
from trl_trainer.distributed.world import Run


def to_main(run: Run, value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor | None:
    """Return the whole of `value` on rank 0, on the CPU; None on the others. All ranks call it.

    `dtype`: what it is cast to if it is floating point, each shard by its own rank before it is sent.
    """
    wanted = dtype if dtype is not None and value.is_floating_point() else value.dtype
    if not isinstance(value, DTensor):
        # The device's memory is full of training state: cast on the CPU.
        return value.detach().cpu().to(wanted) if run.is_main else None
    holders, axis = _shards(value)
    own = value.to_local().detach().cpu().to(wanted)
    if not run.is_main:
        if run.rank in holders and own.numel() > 0:
            dist.send(own.contiguous(), dst=0, group=world.flags())
        return None
    whole = torch.empty(value.shape, dtype=wanted)
    # As FSDP cut it: the last ranks may have less, or nothing.
    for rank, place in zip(holders, whole.chunk(len(holders), axis), strict=False):
        if rank == run.rank:
            place.copy_(own)
            continue
        found = place if place.is_contiguous() else torch.empty(place.shape, dtype=wanted)
        dist.recv(found, src=rank, group=world.flags())
        if found is not place:
            place.copy_(found)
    return whole


def _shards(value: DTensor) -> tuple[list[int], int]:
    """Return the ranks that hold the shards of one whole `value`, in order, and the dimension along which it is cut."""
    mesh, cut = value.device_mesh.mesh, 0
    for axis, placement in reversed(list(enumerate(value.placements))):
        if placement.is_replicate():
            mesh = mesh.select(axis, 0)
        else:
            cut = placement.dim
    return mesh.reshape(-1).tolist(), cut
