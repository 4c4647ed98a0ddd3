"""What the preflight says about long rows and steps is what the pinned TRL does."""

import json
import math

import datasets
import pytest
from transformers import AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer import data, preflight
from trl_trainer.preflight.clock import Clock
from trl_trainer.stages import STAGES, tokenizing

MAX_LENGTH = 14
"""Cuts some of the rows below, drops others, and leaves the rest."""

WORDS = [2, 5, 8, 11, 14, 17]


def talk(role, words):
    return [{"role": role, "content": "order " * words}]


PAIRS = [
    {"prompt": talk("user", p), "chosen": talk("assistant", a), "rejected": talk("assistant", 1)}
    for p in WORDS
    for a in WORDS
]
ROWS = {
    "SFTJob": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS],
    "RewardJob": PAIRS,
    "DPOJob": PAIRS,
    "GRPOJob": [{"prompt": row["prompt"]} for row in PAIRS],
}
TRAINERS = {
    "SFTJob": (SFTTrainer, SFTConfig, {"max_length": MAX_LENGTH}),
    "RewardJob": (RewardTrainer, RewardConfig, {"max_length": MAX_LENGTH}),
    "DPOJob": (DPOTrainer, DPOConfig, {"max_length": MAX_LENGTH}),
    "GRPOJob": (GRPOTrainer, GRPOConfig, {"num_generations": 4, "num_iterations": 2}),
}


@pytest.mark.parametrize("kind", list(ROWS))
def test_rows_and_steps_are_those_of_trl(kind, tmp_path, model_folder):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    spec = {
        "model": {"volume": {"claimName": "models", "path": "tiny"}},
        "dataset": {"train": {"configMap": {"name": "data", "key": "train.jsonl"}}, "evalSplit": 0},
        "training": {"perDeviceBatchSize": 4, "gradientAccumulationSteps": 2},
    }
    if kind == "GRPOJob":
        spec["grpo"] = {"numIterations": 2, "rewards": [{"name": "length", "length": {"target": 3}}]}
    else:
        spec["training"]["maxLength"] = MAX_LENGTH
    paths = {"storage": str(tmp_path), "train": str(tmp_path / "train.jsonl"), "model": str(model_folder)}
    wire = {"kind": kind, "namespace": "a", "name": "b", "uid": "u", "paths": paths, "spec": spec}
    job = resolve(JobFile.model_validate(wire))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = data.write(job, STAGES[kind], tokenizer, tmp_path / "u/data")
    tokenize = tokenizing(job, STAGES[kind], tokenizer)
    known = preflight.run(job, STAGES[kind], tokenizer, tokenize, rows, tmp_path / "u", "cpu", Clock())

    trainer, config, options = TRAINERS[kind]
    arguments = config(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, gradient_accumulation_steps=2, bf16=False,
        use_cpu=True, report_to=[], **options,
    )  # fmt: skip
    extra = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)} if kind == "GRPOJob" else {}
    made = trainer(
        model=str(model_folder),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows.train.take(range(len(rows.train)))),
        processing_class=tokenizer,
        **extra,
    )
    assert known.lengths.kept == len(made.train_dataset)
    assert known.total_steps == math.ceil(len(made.get_train_dataloader()) / 2)
    if kind in ("RewardJob", "DPOJob", "SFTJob"):
        assert 0 < known.lengths.dropped < len(PAIRS), "the rows show the difference"
