"""A run that is killed and resumed ends as one that was never disturbed."""

import json
import os
import signal
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from trainer_kit import (
    KILL,
    Ended,
    Warm,
    at_step,
    conversations,
    job_file,
    metrics,
    mounted,
    preference_pairs,
    prompts,
    resumed,
    write_jsonl,
)

ROWS = {"SFTJob": conversations, "RewardJob": preference_pairs, "DPOJob": preference_pairs, "GRPOJob": prompts}
VOLATILE = {"time", "num_tokens", "step_time"}
CASES: dict[str, dict[str, Any]] = {
    "dpo-full-sharded": {"kind": "DPOJob", "spec": {}},
    "dpo-lora": {
        "kind": "DPOJob",
        # Three steps an epoch: it is resumed in the middle of the second one, as grpo-lora is.
        "spec": {"peft": {"method": "lora", "r": 4}, "dataset": {"maxExamples": 27}},
    },
    # One rank has no row of the new token's.
    "dpo-lora-added-token": {
        "kind": "DPOJob",
        "spec": {"model": {"addTokens": ["sent it"]}, "peft": {"method": "lora", "r": 4}},
        "forms": ["auto", "full"],
    },
    # Two ranks have no row of lora_A.
    "dpo-lora-more-ranks-than-r": {
        "kind": "DPOJob",
        "spec": {"peft": {"method": "lora", "r": 2}, "evaluation": {"enabled": False}},
        "world": 4,
    },
    "sft-packed": {"kind": "SFTJob", "spec": {"sft": {"packing": True}, "training": {"maxLength": 32}}},
    "reward-full": {"kind": "RewardJob", "spec": {}},
    # As a release wrote it that gathered adapters.
    "reward-lora": {"kind": "RewardJob", "spec": {"peft": {"method": "lora", "r": 4}}, "forms": ["full", "auto"]},
    "grpo-full": {
        "kind": "GRPOJob",
        "spec": {
            "grpo": {
                "numIterations": 2,
                "generation": {"maxCompletionLength": 12},
                "rewards": [
                    {"name": "short", "length": {"target": 5}},
                    {"name": "polite", "keyword": {"words": ["thank", "happy"]}, "weight": 2},
                ],
            },
            "evaluation": {"maxExamples": 4},
        },
    },
    "grpo-lora": {
        "kind": "GRPOJob",
        "spec": {
            "peft": {"method": "lora", "r": 4},
            "grpo": {
                "generation": {"maxCompletionLength": 12},
                "rewards": [{"name": "alike", "similarity": {"column": "answer"}}],
            },
            "dataset": {"maxExamples": 4, "evalSplit": 0.25},
            "evaluation": {"everySteps": 3, "maxExamples": 4},
        },
        "forms": ["auto", "full"],
    },
    "dpo-one-process": {"kind": "DPOJob", "spec": {}, "world": 1},
    "dpo-precomputed": {"kind": "DPOJob", "spec": {"dpo": {"referenceModel": {"mode": "precompute"}}}},
}


def start(folder: Path, model: Path, case: dict[str, Any], attempt: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "train.jsonl", ROWS[case["kind"]](60))
    spec = {**case["spec"], "fsdp": {"stateDictType": case.get("forms", ["auto", "auto"])[attempt]}}
    return job_file(folder, model, case["kind"], spec=spec, attempt=attempt, numProcPerNode=case.get("world", 2))


def curve(folder: Path) -> dict[int, dict[str, float]]:
    return {
        line["step"]: {name: value for name, value in line.items() if name not in VOLATILE}
        for line in metrics(folder)
        if "loss" in line
    }


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "storage" / "uid-1" / "final" / "model.safetensors")


def check_equal(whole: Path, killed: Path) -> None:
    """The same curve and the same weights."""
    assert curve(killed).keys() == curve(whole).keys() == set(range(1, 9))
    for step, expected in curve(whole).items():
        assert curve(killed)[step] == pytest.approx(expected, abs=1e-6), step
    expected_weights, found = weights(whole), weights(killed)
    assert expected_weights.keys() == found.keys()
    for key, tensor in expected_weights.items():
        assert (tensor - found[key]).abs().max().item() <= 1e-6, key
    assert os.listdir(whole / "storage" / "uid-1" / "final") == os.listdir(killed / "storage" / "uid-1" / "final")


GATHERED = [
    """
from torch.distributed.tensor import DTensor
from transformers import Trainer
save, redistribute, saving = Trainer._save_checkpoint, DTensor.redistribute, []
def gathered(self, *args, **kwargs):
    if saving:
        print("gathered", self.numel())
    return redistribute(self, *args, **kwargs)
def saved(*args, **kwargs):
    saving.append(True)
    save(*args, **kwargs)
    saving.pop()
Trainer._save_checkpoint, DTensor.redistribute = saved, gathered
"""
]
"""A prelude that tells the size of each tensor that is gathered for a checkpoint."""


def check_form(checkpoint: Path, ended: Ended, form: str, *, adapter: bool) -> None:
    """The checkpoint has the form that was asked for; of an adapter's nothing of the base model was gathered or is in
    it."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader

    gathered = [int(line.split()[1]) for line in ended.logs[0].splitlines() if line.startswith("gathered ")]
    if form == "auto":
        names = FileSystemReader(checkpoint / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata.keys()
        assert gathered == []
    else:
        whole = torch.load(checkpoint / "pytorch_model_fsdp.bin", weights_only=True)
        names = whole.keys()
        # For the file to resume from and for the adapter's own; and the optimizer's two averages. Two checkpoints.
        assert sum(gathered) == 2 * 4 * sum(tensor.numel() for tensor in whole.values())
        assert (checkpoint / "adapter_model.safetensors").exists()
    if adapter:
        assert {name for name in names if "lora_" not in name and ".trainable_tokens_delta" not in name} <= {
            "base_model.model.score.modules_to_save.default.weight"
        }
    assert any("lora_" in name for name in names) == adapter


@pytest.fixture(scope="module")
def undisturbed(warm: Warm, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """(name of a case) -> the folder of a run of it that nobody disturbed."""

    @cache
    def run(name: str) -> Path:
        folder, world = tmp_path_factory.mktemp("undisturbed") / name, CASES[name].get("world", 2)
        ended = warm.run(start(folder, model_folder, CASES[name]), world)
        assert ended.codes == [0] * world, ended.logs
        return folder

    return run


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_run_equals_the_undisturbed_one(
    name: str, undisturbed: Callable[[str], Path], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    world = case.get("world", 2)
    killed = tmp_path / "killed"
    hit = [*GATHERED, *at_step(6, KILL, rank=world - 1, saved=4)]
    ended = warm.run(start(killed, model_folder, case), world, prelude=hit)
    assert ended.codes[world - 1] == -signal.SIGKILL
    if world > 1:
        newest, form = killed / "storage/uid-1/checkpoint-4", case.get("forms", ["auto"])[0]
        check_form(newest, ended, form, adapter="peft" in case["spec"])
    if world > 1:
        assert ended.records[0].reason == "PeerLost"
    manifest = killed / "storage/uid-1/checkpoint-4/MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"trainingSeconds": 1000}))
    ended = warm.run(start(killed, model_folder, case, attempt=1), world)
    assert ended.codes == [0] * world, ended.logs
    progress = ended.records[0].progress
    assert progress is not None
    assert progress.resumed_from_step == 4
    assert progress.training_seconds is not None
    assert 1000 <= progress.training_seconds < 1300, "the steps before count, whichever attempt took them"
    later = json.loads((killed / "storage/uid-1/checkpoint-8/MANIFEST.json").read_text())
    assert 1000 < later["trainingSeconds"] < 1300

    check_equal(undisturbed(name), killed)


NO_ROOM = """
if rank == {rank}:
    import time
    import torch
    from pathlib import Path
    from transformers import Trainer
    training_step = Trainer.training_step
    def without_room(self, *given, **more):
        if self.state.global_step + 1 == 6 and self.args.per_device_train_batch_size > 2:
            end = time.monotonic() + 60
            while not Path(self.args.output_dir, "checkpoint-4/MANIFEST.json").exists():
                assert time.monotonic() < end
                time.sleep(0.01)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total of 79 GiB")
        return training_step(self, *given, **more)
    Trainer.training_step = without_room
"""
"""A prelude: in step 6 `rank` has no room for a micro-batch of more than two rows, and says it as torch does."""


@pytest.mark.parametrize("name", ["dpo-one-process", "grpo-full"])
def test_a_run_that_goes_on_with_half_the_micro_batch_equals_the_undisturbed_one(
    name: str, undisturbed: Callable[[str], Path], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    world = case.get("world", 2)
    full, hit = tmp_path / "full", world - 1
    ended = warm.run(start(full, model_folder, case), world, prelude=[NO_ROOM.format(rank=hit)])
    assert ended.codes[hit] == 11, ended.logs
    record = ended.records[hit]
    assert (record.reason, record.activity) == ("OutOfGPUMemory", "training")
    assert record.message.startswith("while training: out of GPU memory: CUDA out of memory. Tried to allocate 2.00")
    again = mounted(start(full, model_folder, case, attempt=1), 1, perDeviceBatchSize=2)
    ended = warm.run(again, world, prelude=[NO_ROOM.format(rank=hit)])
    assert ended.codes == [0] * world, ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step == 4
    resolved = json.loads((full / "storage/uid-1/final/resolved.json").read_text())["spec"]
    assert resolved["training"]["perDeviceBatchSize"] == resolved["training"]["gradientAccumulationSteps"] == 2
    assert resolved["evaluation"]["perDeviceBatchSize"] == 4
    check_alike(undisturbed(name), full)


NO_ROOM_TO_EVALUATE = """
import torch
from trl import DPOTrainer
prediction_step = DPOTrainer.prediction_step
def without_room(self, *given, **more):
    if self.state.global_step:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return prediction_step(self, *given, **more)
DPOTrainer.prediction_step = without_room
"""


def test_the_first_batch_of_an_evaluation_that_finds_no_room_is_told_as_evaluating(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    """A smaller micro-batch of training would not help."""
    case = CASES["dpo-one-process"]
    spec = {**case.get("spec", {}), "evaluation": {"everySteps": 2}}
    ended = warm.run(start(tmp_path, model_folder, {**case, "spec": spec}), 1, prelude=[NO_ROOM_TO_EVALUATE])
    assert ended.codes == [11], ended.logs
    assert (ended.records[0].reason, ended.records[0].activity) == ("OutOfGPUMemory", "evaluating")


def check_alike(whole: Path, smaller: Path) -> None:
    """The same curve and the same weights, but for metrics that average over the tokens of a micro-batch."""
    import torch

    assert curve(smaller).keys() == curve(whole).keys() == set(range(1, 9))
    for step, expected in curve(whole).items():
        for name in ("loss", "grad_norm", "learning_rate", "rewards/margins", "reward"):
            if name in expected:
                assert curve(smaller)[step][name] == pytest.approx(expected[name], abs=1e-6), (step, name)
    found = weights(smaller)
    for key, tensor in weights(whole).items():
        assert torch.allclose(tensor, found[key], rtol=0, atol=1e-6), key


def go_on(folder: Path, model: Path, case: dict[str, Any], earlier: Path, **asked: int) -> Path:
    """A job that goes on from the job in `earlier`; it is uid-1 too, in a storage of its own."""
    path = start(
        folder, model, {**case, "spec": {**case["spec"], "checkpoint": {"resumeFrom": {"job": "first", **asked}}}}
    )
    return resumed(path, earlier / "storage" / "uid-1")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_new_job_goes_on_from_a_step_of_an_earlier_one_as_that_one_did(
    undisturbed: Callable[[str], Path], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    earlier = undisturbed("dpo-full-sharded")
    before = snapshot(earlier)
    ended = warm.run(go_on(tmp_path / "new", model_folder, CASES["dpo-full-sharded"], earlier, step=4))
    assert ended.codes == [0, 0], ended.logs
    assert snapshot(earlier) == before, "it is only read"
    progress = ended.records[0].progress
    assert progress is not None
    assert progress.resumed_from_step == 4
    assert [saved.step for saved in progress.checkpoints] == [6, 8]
    assert curve(tmp_path / "new") == {step: pytest.approx(curve(earlier)[step], abs=1e-6) for step in (5, 6, 7, 8)}
    expected, found = weights(earlier), weights(tmp_path / "new")
    assert max((expected[key] - found[key]).abs().max().item() for key in expected) <= 1e-6
    evaluated = [json.loads((each / "storage/uid-1/before.json").read_text()) for each in (earlier, tmp_path / "new")]
    assert evaluated[0] == evaluated[1]


def test_a_job_that_goes_on_trains_more_steps_by_its_own_schedule(
    undisturbed: Callable[[str], Path], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    case, earlier = CASES["dpo-one-process"], undisturbed("dpo-one-process")
    longer = {"maxSteps": 13, "learningRate": 1.3e-3, "lrScheduler": "linear", "warmupSteps": 0, "loggingSteps": 5}
    ended = warm.run(go_on(tmp_path / "new", model_folder, {**case, "spec": {"training": longer}}, earlier), 1)
    assert ended.codes == [0], ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step == 8
    rates = {step: line["learning_rate"] for step, line in curve(tmp_path / "new").items()}
    # With what each step was made: the new schedule's, and not what the checkpoint has. Nor is each step logged, as the
    # earlier job's were: the fifth, the last, and those that are saved.
    assert rates == {10: pytest.approx(4e-4), 12: pytest.approx(2e-4), 13: pytest.approx(1e-4)}


def test_a_job_that_is_to_end_before_the_step_that_it_goes_on_from_is_refused(
    undisturbed: Callable[[str], Path], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    case, earlier = CASES["dpo-one-process"], undisturbed("dpo-one-process")
    shorter = {**case, "spec": {"training": {"maxSteps": 4}}}
    ended = warm.run(go_on(tmp_path / "new", model_folder, shorter, earlier), 1)
    assert ended.codes == [10], ended.logs
    record = ended.records[0]
    assert (record.reason, "is of step 8, and this job ends at step 4" in record.message) == ("InvalidSpec", True)


def test_another_shape_and_other_rows_are_refused_before_weights_are_loaded(
    undisturbed: Callable[[str], Path], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    earlier = undisturbed("dpo-one-process")
    case = {**CASES["dpo-one-process"], "spec": {"training": {"seed": 7}}}
    path = go_on(tmp_path / "new", model_folder, case, earlier)
    write_jsonl(tmp_path / "new" / "train.jsonl", preference_pairs(60, seed=8))
    ended = warm.run(path, 1)
    assert ended.codes == [10], ended.logs
    record = ended.records[0]
    assert (record.reason, record.activity) == ("InvalidSpec", "preparing the data")
    assert record.message.startswith("checkpoint.resumeFrom: training.seed is 7, and was 42 there; dataset gives 54 ")
    assert "training rows that are not the 54 that were trained on there" in record.message


def test_run_that_is_killed_before_its_first_checkpoint_starts_over_exactly(
    undisturbed: Callable[[str], Path], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    """The first attempt evaluated the base model, the second one does not: the random numbers must be the same."""
    case = {**CASES["grpo-lora"], "spec": {**CASES["grpo-lora"]["spec"], "checkpoint": {"everySteps": 100}}}
    killed = tmp_path / "killed"
    ended = warm.run(start(killed, model_folder, case), prelude=at_step(3, KILL))
    assert -signal.SIGKILL in ended.codes
    ended = warm.run(start(killed, model_folder, case, attempt=1))
    assert ended.codes == [0, 0], ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step is None
    check_equal(undisturbed("grpo-lora"), killed)


SLOW_DISK = """
import time
from torch.distributed.checkpoint import FileSystemWriter
write_data = FileSystemWriter.write_data
def slow(self, *args):
    end = time.monotonic() + 60
    while not {until} and time.monotonic() < end:
        time.sleep(0.01)
    return write_data(self, *args)
FileSystemWriter.write_data = slow
"""
"""A prelude: nothing of a checkpoint is written before {until}, or in a minute."""


def test_a_checkpoint_is_written_while_training_goes_on_and_is_of_its_own_step(
    undisturbed: Callable[[str], Path], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    case = {"kind": "DPOJob", "spec": {"checkpoint": {"everySteps": 3}}}
    killed = tmp_path / "killed"
    trained = f"""'"step": 5' in open({str(killed / "storage/uid-1/metrics.jsonl")!r}).read()"""
    slow = SLOW_DISK.format(until=trained)
    ended = warm.run(start(killed, model_folder, case), prelude=[slow, *at_step(6, KILL, saved=3)])
    assert -signal.SIGKILL in ended.codes, ended.logs
    published = (killed / "storage/uid-1/checkpoint-3/MANIFEST.json").stat().st_mtime
    trained_at = {line["step"]: datetime.fromisoformat(line["time"]).timestamp() for line in metrics(killed)}
    assert trained_at[5] < published
    ended = warm.run(start(killed, model_folder, case, attempt=1))
    assert ended.codes == [0, 0], ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step == 3
    check_equal(undisturbed("dpo-full-sharded"), killed)


def test_a_run_that_fails_still_publishes_what_it_was_writing(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    case = {"kind": "DPOJob", "spec": {"checkpoint": {"everySteps": 3}}}
    broken = at_step(4, "raise RuntimeError('broken')", rank=0) + at_step(4, "raise RuntimeError('broken')")
    failed = """
import traceback
told, show = [], traceback.print_exception
traceback.print_exception = lambda error: (told.append(error), show(error))
traceback.told = told
"""
    slow = SLOW_DISK.format(until='__import__("traceback").told')
    ended = warm.run(start(tmp_path / "job", model_folder, case), prelude=[failed, slow, *broken])
    assert ended.codes == [1, 1], ended.logs
    published = (tmp_path / "job/storage/uid-1/checkpoint-3/MANIFEST.json").stat().st_mtime
    times = [datetime.fromisoformat(record.time).timestamp() for record in ended.records.values()]
    assert max(times) < published, "the first cause is told by when it happened"
    assert ended.records[0].progress is not None
    assert [report.step for report in ended.records[0].progress.checkpoints] == [3]
