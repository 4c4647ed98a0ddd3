"""When several processes reduce gradients: after every micro-step where whole ones do not fit, else once a step."""

import json
from pathlib import Path

import pytest
from trainer_kit import Warm, job_file, metrics, preference_pairs, write_jsonl

# After the first micro-step of the first step: bytes of gradients that are no shards. Nothing public tells.
COUNT = """
from torch.distributed.fsdp import FSDPModule
from trl_trainer.checkpoints.schedule import Schedule
def count(self, args, state, control, model, **kwargs):
    states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)]
    params = {id(p): p for s in states for group in s._fsdp_param_groups for p in group.fsdp_params}.values()
    grads = [getattr(p, "_unsharded_param", None) for p in params]
    whole = sum(p.grad.numel() * p.grad.element_size() for p in grads if p is not None and p.grad is not None)
    shards = sum(p.grad.to_local().numel() * 4 for p in model.parameters() if p.grad is not None)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print("substep", whole, shards, trained, flush=True)
Schedule.on_substep_end = count
"""
# As much memory as the job needs at least.
TIGHT = """
from trl_trainer.preflight import memory
estimate = memory.estimate
def tight(job, sizes, available, device):
    return estimate(job, sizes, estimate(job, sizes, 0, device).total, device)
memory.estimate = tight
"""


def test_no_whole_gradient_is_left_between_micro_steps_where_they_do_not_fit(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    curves = []
    for name, prelude in (("roomy", [COUNT]), ("tight", [COUNT, TIGHT])):
        folder = tmp_path / name
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", preference_pairs(60))
        spec = {
            "training": {
                "maxSteps": 2, "perDeviceBatchSize": 1, "gradientAccumulationSteps": 4, "precision": "bf16",
            },
            "evaluation": {"enabled": False},
        }  # fmt: skip
        ended = warm.run(job_file(folder, model_folder, spec=spec), prelude=prelude)
        assert ended.codes == [0, 0], ended.logs
        known = json.loads((folder / "storage/uid-1/preflight.json").read_text())["memory"]
        assert known["syncEachBatch"] is (name == "tight")
        said = [[line.split()[1:] for line in log.splitlines() if line.startswith("substep")] for log in ended.logs]
        assert len(said[0]) == 6, "three of four micro-steps, twice"
        for numbers in zip(*said, strict=True):
            whole, shards, trained = zip(*(map(int, of_rank) for of_rank in numbers), strict=True)
            size = 4 * trained[0]
            # In fp32 also in bf16: so they are reduced.
            assert whole == ((0, 0) if name == "tight" else (size, size))
            assert sum(shards) == (size if name == "tight" else 0)
        curves.append([line["loss"] for line in metrics(folder) if "loss" in line])
    assert curves[0] == pytest.approx(curves[1], abs=1e-2)
