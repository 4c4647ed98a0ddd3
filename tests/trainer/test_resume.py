"""A run that is killed and resumed ends as one that was never disturbed."""

import os
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from trainer_kit import KILL, Warm, at_step, conversations, job_file, metrics, preference_pairs, prompts, write_jsonl

ROWS = {"SFTJob": conversations, "RewardJob": preference_pairs, "DPOJob": preference_pairs, "GRPOJob": prompts}
VOLATILE = {"time", "num_tokens", "step_time"}
CASES: dict[str, dict[str, Any]] = {
    "dpo-full-sharded": {"kind": "DPOJob", "spec": {}},
    "dpo-lora": {
        "kind": "DPOJob",
        # Three steps an epoch: it is resumed in the middle of the second one, as grpo-lora is.
        "spec": {"peft": {"method": "lora", "r": 4}, "dataset": {"maxExamples": 27}},
    },
    "sft-packed": {"kind": "SFTJob", "spec": {"sft": {"packing": True}, "training": {"maxLength": 32}}},
    "reward-full": {"kind": "RewardJob", "spec": {}},
    "reward-lora": {"kind": "RewardJob", "spec": {"peft": {"method": "lora", "r": 4}}},
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
    },
    "dpo-one-process": {"kind": "DPOJob", "spec": {}, "world": 1},
    "dpo-precomputed": {"kind": "DPOJob", "spec": {"dpo": {"referenceModel": {"mode": "precompute"}}}},
}


def start(folder: Path, model: Path, case: dict[str, Any], attempt: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "train.jsonl", ROWS[case["kind"]](60))
    return job_file(
        folder, model, case["kind"], spec=case["spec"], attempt=attempt, numProcPerNode=case.get("world", 2)
    )


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


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_run_equals_the_undisturbed_one(
    name: str, warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    world = case.get("world", 2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = warm.run(start(whole, model_folder, case), world)
    assert ended.codes == [0] * world, ended.logs

    ended = warm.run(start(killed, model_folder, case), world, prelude=at_step(6, KILL, rank=world - 1, saved=4))
    assert ended.codes[world - 1] == -signal.SIGKILL
    if world > 1:
        assert ended.records[0].reason == "PeerLost"
    ended = warm.run(start(killed, model_folder, case, attempt=1), world)
    assert ended.codes == [0] * world, ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step == 4

    check_equal(whole, killed)


def test_run_that_is_killed_before_its_first_checkpoint_starts_over_exactly(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    """The first attempt evaluated the base model, the second one does not: the random numbers must be the same."""
    case = {**CASES["grpo-lora"], "spec": {**CASES["grpo-lora"]["spec"], "checkpoint": {"everySteps": 100}}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = warm.run(start(whole, model_folder, case))
    assert ended.codes == [0, 0], ended.logs
    ended = warm.run(start(killed, model_folder, case), prelude=at_step(3, KILL))
    assert -signal.SIGKILL in ended.codes
    ended = warm.run(start(killed, model_folder, case, attempt=1))
    assert ended.codes == [0, 0], ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step is None
    check_equal(whole, killed)


SLOW_DISK = """
import time
from torch.distributed.checkpoint import FileSystemWriter
write_data = FileSystemWriter.write_data
def slow(*args):
    time.sleep(1)
    return write_data(*args)
FileSystemWriter.write_data = slow
"""


def test_a_checkpoint_is_written_while_training_goes_on_and_is_of_its_own_step(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    case = {"kind": "DPOJob", "spec": {"checkpoint": {"everySteps": 3}}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = warm.run(start(whole, model_folder, case))
    assert ended.codes == [0, 0], ended.logs

    ended = warm.run(start(killed, model_folder, case), prelude=[SLOW_DISK, *at_step(6, KILL, saved=3)])
    assert -signal.SIGKILL in ended.codes, ended.logs
    published = (killed / "storage/uid-1/checkpoint-3/MANIFEST.json").stat().st_mtime
    trained = {line["step"]: datetime.fromisoformat(line["time"]).timestamp() for line in metrics(killed)}
    assert trained[5] < published
    ended = warm.run(start(killed, model_folder, case, attempt=1))
    assert ended.codes == [0, 0], ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.resumed_from_step == 3
    check_equal(whole, killed)


def test_a_run_that_fails_still_publishes_what_it_was_writing(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    case = {"kind": "DPOJob", "spec": {"checkpoint": {"everySteps": 3}}}
    broken = at_step(4, "raise RuntimeError('broken')", rank=0) + at_step(4, "raise RuntimeError('broken')")
    ended = warm.run(start(tmp_path / "job", model_folder, case), prelude=[SLOW_DISK, *broken])
    assert ended.codes == [1, 1], ended.logs
    published = (tmp_path / "job/storage/uid-1/checkpoint-3/MANIFEST.json").stat().st_mtime
    failed = [datetime.fromisoformat(record.time).timestamp() for record in ended.records.values()]
    assert max(failed) < published, "the first cause is told by when it happened"
    assert ended.records[0].progress is not None
    assert [report.step for report in ended.records[0].progress.checkpoints] == [3]
