"""fsdp.hybrid with two nodes of two ranks each: sharded inside a node, one copy per node, trained as one model."""

import json
from pathlib import Path

import pytest
from trainer_kit import KILL, Warm, at_step, job_file, metrics, preference_pairs, write_jsonl

from trl_contract.jobfile import JobFile
from trl_trainer.checkpoints import checkpoint

PLACES = """
import json
from trl_trainer.distributed import sharding
check = sharding.check
def say(trainer, world):
    check(trainer, world)
    from torch.distributed import get_process_group_ranks as ranks
    for model in (trainer.model, trainer.ref_model):
        value = model.lm_head.weight
        mesh = value.device_mesh
        groups = [sorted(ranks(mesh.get_group(i))) for i in range(mesh.ndim)]
        options = [mesh.get_group(i)._get_backend(value.device).options for i in range(mesh.ndim)]
        said = {
            "groups": groups, "placements": [str(placement) for placement in value.placements],
            "share": sum(value.to_local().numel() for value in model.parameters()) / model.num_parameters(),
            "timeouts": [o._timeout.total_seconds() for o in options],
        }
        print("sharded", json.dumps(said), flush=True)
sharding.check = say
"""


def test_two_nodes_of_two_ranks_shard_inside_and_resume(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = {
        "training": {"maxSteps": 5, "perDeviceBatchSize": 2, "gradientAccumulationSteps": 2},
        "evaluation": {"enabled": False},
    }
    for name, hybrid in (("plain", False), ("hybrid", True)):
        folder = tmp_path / name
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", preference_pairs(60))
        options = {"spec": {**spec, "fsdp": {"hybrid": hybrid}}, "numNodes": 2, "numProcPerNode": 2}
        if hybrid:
            ended = warm.run(
                job_file(folder, model_folder, **options), 4, prelude=[PLACES, *at_step(4, KILL, rank=3, saved=2)]
            )
            for rank, log in enumerate(ended.logs):
                # The policy and the reference, when they are loaded and when the training begins.
                said, *others = [json.loads(line[8:]) for line in log.splitlines() if line.startswith("sharded ")]
                assert others == [said] * 3
                # Across nodes the rank's twin, inside the node its neighbour.
                assert said["groups"] == [[rank % 2, rank % 2 + 2], [rank // 2 * 2, rank // 2 * 2 + 1]]
                assert said["placements"][0].startswith("R")
                assert said["placements"][1].startswith("S")
                assert said["timeouts"] == [3600, 3600], "twice stallTimeoutSeconds, not torch's own"
                assert said["share"] == pytest.approx(0.5, abs=0.05)
        ended = warm.run(job_file(folder, model_folder, attempt=int(hybrid), **options), 4)
        assert ended.codes == [0, 0, 0, 0], ended.logs
    works = [tmp_path / name / "storage/uid-1" for name in ("plain", "hybrid")]
    last = [{line["step"]: line for line in metrics(tmp_path / name) if "loss" in line} for name in ("plain", "hybrid")]
    for step in range(1, 6):
        for value in ("loss", "grad_norm", "rewards/margins"):
            assert last[1][step][value] == pytest.approx(last[0][step][value], abs=1e-5), (step, value)
    finals = [load_file(work / "final/model.safetensors") for work in works]
    assert all(finals[1][name].allclose(value, atol=1e-6) for name, value in finals[0].items())
    # Each half of the state is written once, by either of its two ranks.
    sizes = []
    for work in works:
        manifest = checkpoint.verify(work / "checkpoint-4", "uid-1")
        sizes.append(sum(file.size for file in manifest.files if "distcp" in file.path))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_one_process_per_node_is_refused(model_folder: Path, tmp_path: Path) -> None:
    path = job_file(tmp_path, model_folder, spec={"fsdp": {"hybrid": True}}, numNodes=2, numProcPerNode=1)
    with pytest.raises(ValueError, match=r"spec.fsdp.hybrid: shards inside each node, and numProcPerNode is 1"):
        JobFile.model_validate_json(path.read_text())
