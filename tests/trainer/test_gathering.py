"""Whole tensors on rank 0, however they are cut, and nothing on the others."""

from pathlib import Path

from trainer_kit import Warm

CHECK = """
import os
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from trl_trainer.distributed import gathering, world

dist.init_process_group("cpu:gloo")
world._gloo = dist.new_group(backend="gloo")
run = world.Run(None, None, rank, 4, "cpu")
flat, hybrid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
# Five rows on four ranks: two, two, one, none.
for rows in (8, 5, 1):
    whole = torch.arange(rows * 6, dtype=torch.float32).reshape(rows, 6)
    for mesh, placements in (
        (flat, [Shard(0)]),
        (flat, [Shard(1)]),
        (flat, [Replicate()]),
        (hybrid, [Replicate(), Shard(0)]),
    ):
        found = gathering.to_main(run, distribute_tensor(whole, mesh, placements), torch.bfloat16)
        assert (found is None) == (rank != 0), (rank, placements)
        assert found is None or (found.dtype == torch.bfloat16 and found.float().equal(whole)), (placements, found)
counts = gathering.to_main(run, torch.tensor([rank]), torch.bfloat16)
assert counts is None if rank else counts.equal(torch.tensor([0])), counts
dist.barrier()
print("as expected", flush=True)
os._exit(0)
"""


def test_a_tensor_is_whole_on_rank_0_however_it_is_cut(warm: Warm, tmp_path: Path) -> None:
    ended = warm.run(tmp_path / "none.json", 4, prelude=[CHECK])
    assert ended.codes == [0, 0, 0, 0], ended.logs
    assert all("as expected" in log for log in ended.logs)
