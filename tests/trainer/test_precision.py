"""Several processes compute in bf16 what one does: log-probabilities keep their precision."""

import json
import math
import random
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainer_kit import SEED, TRAIN_ONLY, Warm, conversations, job_file, metrics, prompts, write_jsonl

from trl_trainer.checkpoints import checkpoint
from trl_trainer.checkpoints.publisher import FiniteGuard
from trl_trainer.errors import TrainerError

# The evaluation before training is at fixed weights; what TRL notes of each of its batches is kept. What comes after
# training, and our own accuracy, are left out for time.
KEEP = """
from trl import DPOTrainer
from trl_trainer.stages import dpo
dpo.STAGE.measures.clear()
log = DPOTrainer.log
def keep(self, logs, *args):
    noted = list(self._metrics["eval"]["rewards/margins"])
    if noted and self.state.global_step == 0 and rank == 0:
        import json, pathlib
        pathlib.Path(self.args.output_dir, "fixed.json").write_text(json.dumps(noted))
    log(self, logs, *args)
DPOTrainer.log = keep
"""
# An adapter that is no zero, so that policy and reference differ from the start.
GROWN = """
from trl_trainer.models import adapter
arguments = adapter.lora_arguments
adapter.lora_arguments = lambda *given: {**arguments(*given), "init_lora_weights": False}
"""


def long_pairs(count: int) -> list[dict[str, str]]:
    """Return pairs of 70 to 100 words, whose log-probabilities are sums of about -300."""
    rng = random.Random(SEED)
    words = sorted({word for row in prompts(40) for word in row["answer"].split()})

    def reply() -> str:
        return " ".join(rng.choices(words, k=rng.randint(70, 100)))

    return [{"prompt": "where is my order", "chosen": reply(), "rejected": reply()} for _ in range(count)]


def margins(
    warm: Warm, model: Path, other: Path, folder: Path, method: str, world: int
) -> tuple[list[float], list[float]]:
    """Return the margin of each batch before training, and of each step of training."""
    folder.mkdir()
    pairs = long_pairs(320)
    write_jsonl(folder / "train.jsonl", pairs[:160])
    write_jsonl(folder / "eval.jsonl", pairs[160:])
    source = {"volume": {"claimName": "model", "path": "other"}}
    full = method == "none"
    spec: dict[str, Any] = {
        "peft": {"method": method},
        "training": {
            "maxSteps": 20, "perDeviceBatchSize": 8 // world, "precision": "bf16", "learningRate": 1e-4,
        },
        "dataset": {"shuffle": False, "eval": {"volume": {"claimName": "data", "path": "eval.jsonl"}}},
        "evaluation": {"maxExamples": 160},
        "checkpoint": {"everySteps": 100},
        "dpo": {"referenceModel": {"mode": "explicit", "source": source} if full else {"mode": "auto"}},
    }  # fmt: skip
    paths = {
        "storage": str(folder / "storage"), "model": str(model), "train": str(folder / "train.jsonl"),
        "eval": str(folder / "eval.jsonl"), "referenceModel": str(other),
    }  # fmt: skip
    job = job_file(folder, model, spec=spec, paths=paths, numProcPerNode=world)
    ended = warm.run(job, world, prelude=[KEEP, TRAIN_ONLY, *([] if full else [GROWN])])
    assert set(ended.codes) == {0}, ended.logs
    trained = [line["rewards/margins"] for line in metrics(folder) if "loss" in line]
    return json.loads((folder / "storage/uid-1/fixed.json").read_text()), trained


@pytest.fixture(scope="module")
def other_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with other weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("other")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    torch.manual_seed(SEED)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.01)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["none", "lora"])
def test_two_processes_in_bf16_see_the_margins_of_one(
    method: str, warm: Warm, model_folder: Path, other_model: Path, tmp_path: Path
) -> None:
    fixed_alone, alone = margins(warm, model_folder, other_model, tmp_path / "1", method, 1)
    fixed_both, both = margins(warm, model_folder, other_model, tmp_path / "2", method, 2)
    assert len(fixed_alone) == len(alone) == 20
    assert max(abs(value) for value in fixed_alone) > 0.1, "policy and reference must differ"
    assert max(abs(a - b) for a, b in zip(fixed_alone, fixed_both, strict=True)) < 0.002
    assert median(abs(a - b) for a, b in zip(alone, both, strict=True)) < 0.005


def test_grpo_weighs_tokens_by_log_probabilities_in_fp32(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    note = """
from trl import GRPOTrainer
compute = GRPOTrainer._get_per_token_logps_and_entropies
def noted(self, *given, **named):
    found = compute(self, *given, **named)
    rounded = bool((found[0].bfloat16().float() == found[0]).all())
    print("log-probabilities", found[0].dtype, "rounded" if rounded else "whole", flush=True)
    return found
GRPOTrainer._get_per_token_logps_and_entropies = noted
"""
    write_jsonl(tmp_path / "train.jsonl", prompts(20))
    grpo = {"generation": {"maxCompletionLength": 8}, "rewards": [{"name": "short", "length": {"min": 0, "max": 5}}]}
    spec = {
        "grpo": grpo, "training": {"maxSteps": 1, "precision": "bf16"}, "evaluation": {"enabled": False},
    }  # fmt: skip
    ended = warm.run(job_file(tmp_path, model_folder, "GRPOJob", spec=spec), prelude=[note])
    assert ended.codes == [0, 0], ended.logs
    for log in ended.logs:
        said = [line for line in log.splitlines() if line.startswith("log-probabilities")]
        # Of the reference and of the policy.
        assert said == ["log-probabilities torch.float32 whole"] * 2


# What accelerate has where there is a GPU, with a scale that no gradient bears at first.
SCALER = """
import torch
from accelerate import Accelerator
from trl_trainer.preflight import image
image._check_gpu = lambda job, device: None
made = Accelerator.__init__
def init(self, *given, **named):
    made(self, *given, **named)
    self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**23)
Accelerator.__init__ = init
"""


@pytest.mark.parametrize("world", [1, 2])
def test_fp16_leaves_steps_out_until_its_scale_is_found(
    world: int, warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    """No GPU is here: accelerate's part is stood in for by the same scaler on the CPU."""
    write_jsonl(tmp_path / "train.jsonl", conversations(32))
    spec: dict[str, Any] = {
        "peft": {"method": "lora", "modulesToSave": ["norm"]}, "evaluation": {"enabled": False},
        "training": {"maxSteps": 10, "precision": "fp16", "warmupSteps": 0},
        "checkpoint": {"everySteps": 2, "keep": 5},
    }  # fmt: skip
    job = job_file(tmp_path, model_folder, "SFTJob", spec=spec, numProcPerNode=world)
    ended = warm.run(job, world, prelude=[SCALER, TRAIN_ONLY])
    assert set(ended.codes) == {0}, ended.logs
    steps = [line for line in metrics(tmp_path) if "loss" in line]
    finite = [math.isfinite(line["grad_norm"]) for line in steps]
    assert 1 < finite.index(True) < 8, steps
    assert all(finite[finite.index(True) :]), steps
    assert steps[-1]["loss"] < min(line["loss"] for line in steps[: finite.index(True)])
    saved = checkpoint.published_paths(tmp_path / "storage/uid-1")
    assert sorted(step for step, _ in saved) == [2, 4, 6, 8, 10]
    manifests = [(folder / checkpoint.MANIFEST).read_text() for _, folder in saved]
    # Each is one that can be read again.
    seen = {found.step: found.metrics for found in map(checkpoint.Manifest.model_validate_json, manifests)}
    assert "grad_norm" in seen[10]
    assert "grad_norm" not in seen[2]


def test_a_gradient_that_no_scale_bears_ends_the_run() -> None:
    for scale, logs, ends in (
        (2.0**10, {"loss": 1.0, "grad_norm": math.nan}, False),
        (2.0**10, {"loss": math.nan, "grad_norm": math.nan}, True),
        (0.5, {"loss": 1.0, "grad_norm": math.inf}, True),
        (None, {"loss": 1.0, "grad_norm": math.inf}, True),
    ):
        guard = FiniteGuard(scale and torch.amp.GradScaler("cpu", init_scale=scale))
        with pytest.raises(TrainerError) if ends else nullcontext():
            guard.on_log(None, SimpleNamespace(global_step=1), None, logs)
        assert guard.last.keys() <= {"loss"}
