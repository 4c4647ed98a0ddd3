"""Whole runs without padding: they have the losses of padded ones, also over many steps, and are padded where the check
on the device says so."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trainer_kit import TRAIN_ONLY, Warm, conversations, job_file, metrics, preference_pairs, prompts, write_jsonl
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import DPOTrainer, RewardTrainer, SFTTrainer

from trl_contract.base import Kind
from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer.distributed.world import Run
from trl_trainer.models.arguments import arguments
from trl_trainer.models.tokenizer import load_tokenizer
from trl_trainer.padding_free import attention
from trl_trainer.padding_free.check import PaddingCheck
from trl_trainer.stages import STAGES

pytestmark = pytest.mark.usefixtures("one_thread")

FAULT = """
from trl_trainer.padding_free import attention, check
begin, real = check.PaddingCheck.on_train_begin, attention._on_cpu
def fails(*given):
    raise RuntimeError('FlashAttention only supports Ampere GPUs or newer.')
def fails_backward(*given):
    found = real(*given)
    if found.requires_grad:
        found.register_hook(fails)
    return found
def differs_in_the_reference(query, *given):
    return real(query, *given) * (1.01 if query.shape[1] == 2 else 1)
def begun(self, *given, **named):
    attention._on_cpu = FAULT
    begin(self, *given, **named)
check.PaddingCheck.on_train_begin = begun
"""
"""A prelude: from the check on attention within a row is another one; the guard still sees ours."""

SEEN = """
import functools
from transformers import Trainer
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model
step, forward, steps = Trainer.training_step, Qwen3Model.forward, []
def training_step(self, *given, **named):
    steps.append(1)
    return step(self, *given, **named)
@functools.wraps(forward)
def seen(self, *given, **named):
    if steps and not named.get("use_cache"):
        print("decoder got", *(named["input_ids"] if "input_ids" in named else given[0]).shape, flush=True)
    return forward(self, *given, **named)
Trainer.training_step, Qwen3Model.forward = training_step, seen
"""
"""A prelude: the shapes of what decoders compute in training, but for what GRPO samples, are in the log."""
SHAPES = re.compile(r"decoder got (\d+) (\d+)")

STEPS, MORE_PADDING, TIMES = 20, 64, 3
TRLS: dict[Kind, Any] = {"DPOJob": DPOTrainer, "RewardJob": RewardTrainer, "SFTJob": SFTTrainer}


def made(
    kind: Kind, choice: str, rows: list[dict[str, Any]], model: Path, folder: Path, **more: Any
) -> tuple[Any, Any, list[str]]:
    """Return TRL's own trainer, the check in it if `choice` is auto, and what it warns of; `more`: of its config."""
    spec = {"training": {"maxSteps": STEPS, "paddingFree": choice}, "evaluation": {"enabled": False}}
    file = job_file(folder, model, kind, spec=spec, numProcPerNode=1)
    job, stage = resolve(JobFile.model_validate_json(file.read_text())), STAGES[kind]
    config = arguments(job, stage, output_dir=str(folder / "trl"), world=1, device="cpu")
    trainer = TRLS[kind](
        model=str(model), args=stage.config(**config, **more), train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(job),
    )  # fmt: skip
    warned: list[str] = []
    if choice == "never":
        return trainer, None, warned
    check = PaddingCheck(Run(job, folder, 0, 1, "cpu"), trainer, stage, warned.append)
    trainer.add_callback(check)
    return trainer, check, warned


def test_sharded_ranks_stay_padded_where_a_kernel_is_missing(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    """For the forward pass, or for the backward pass: FSDP2 must not take it for one that still goes on."""
    found = {}
    why = "training.paddingFree: the run is padded: without, a batch fails: RuntimeError: FlashAttention"
    for name in ("never", "fails", "fails_backward"):
        folder = tmp_path / name
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", preference_pairs(16))
        training = {"maxSteps": 2, "paddingFree": "never" if name == "never" else "auto"}
        spec = {"training": training, "evaluation": {"enabled": False}}
        prelude = [] if name == "never" else [FAULT.replace("FAULT", name)]
        ended = warm.run(job_file(folder, model_folder, spec=spec), prelude=[*prelude, TRAIN_ONLY])
        assert ended.codes == [0, 0], ended.logs
        assert [log.count(why) for log in ended.logs] == [int(name != "never")] * 2
        found[name] = [(line["loss"], line["grad_norm"]) for line in metrics(folder) if "loss" in line]
    assert len(found["never"]) == 2
    assert found["fails"] == found["fails_backward"] == found["never"], "as if it had never been tried"


def test_a_run_is_padded_where_its_explicit_reference_differs_without(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    config = Qwen3Config.from_pretrained(model_folder, num_attention_heads=2, num_key_value_heads=1)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "reference")
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(16))
    paths = {
        "storage": str(tmp_path / "storage"), "model": str(model_folder), "train": str(tmp_path / "train.jsonl"),
        "referenceModel": str(tmp_path / "reference"),
    }  # fmt: skip
    reference = {"mode": "explicit", "source": {"volume": {"claimName": "model", "path": "other"}}}
    spec = {
        "dpo": {"referenceModel": reference}, "training": {"maxSteps": 2}, "evaluation": {"enabled": False},
    }  # fmt: skip
    job = job_file(tmp_path, model_folder, spec=spec, paths=paths, numProcPerNode=1)
    ended = warm.run(job, world=1, prelude=[FAULT.replace("FAULT", "differs_in_the_reference"), SEEN])
    assert ended.codes == [0], ended.logs
    progress = ended.records[0].progress
    assert progress is not None
    said = [text for text in progress.warnings if "paddingFree" in text]
    assert len(said) == ended.logs[0].count("the run is padded") == 1
    assert re.fullmatch(r"training.paddingFree: the run is padded: without, a batch differs by .*", said[0])
    assert {rows for rows, _ in SHAPES.findall(ended.logs[0])} == {"8"}


def test_a_model_that_differs_on_its_device_is_padded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, check, warned = made("DPOJob", "auto", preference_pairs(16), model_folder, tmp_path)
    real = attention._on_cpu
    monkeypatch.setattr(attention, "_on_cpu", lambda *given: 1.01 * real(*given))
    check.on_train_begin(trainer.args, trainer.state, trainer.control)
    [said] = warned
    assert re.fullmatch(r"training.paddingFree: the run is padded: without, a batch differs by .* may by 1.0e-04", said)
    assert not any(hook.is_on for hook in check.hooks)
    assert all(value.grad is None for value in trainer.model.parameters())


def uneven_prompts(count: int) -> list[dict[str, Any]]:
    """Return prompts no two of which are equally long: what is sampled for them mostly is."""
    rows = prompts(count)
    for number, row in enumerate(rows, 1):
        row["prompt"][0]["content"] = " ".join([row["prompt"][0]["content"]] * number)
    return rows


RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DPOJob": (preference_pairs, {"training": {"gradientCheckpointing": True}}),
    "RewardJob": (preference_pairs, {"peft": {"method": "lora"}}),
    "SFTJob": (conversations, {}),
    "GRPOJob": (uneven_prompts, {"grpo": {"generation": {"maxCompletionLength": 8}, "numGenerations": 2,
                                          "rewards": [{"name": "l", "length": {"target": 4}}]}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_without_padding_has_the_losses_of_a_padded_one(
    kind: str, warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    make, sections = RUNS[kind]
    found, shapes = {}, {}
    for choice in ("auto", "never"):
        folder = tmp_path / choice
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", make(32))
        spec = {**sections, "evaluation": {"enabled": False}}
        spec["training"] = {"maxSteps": 4, "paddingFree": choice, **sections.get("training", {})}
        job = job_file(folder, model_folder, kind, spec=spec, numProcPerNode=1)
        ended = warm.run(job, world=1, prelude=[SEEN, TRAIN_ONLY])
        assert ended.codes == [0], ended.logs
        decided = json.loads((folder / "storage/uid-1/resolved.json").read_text())
        assert decided["spec"]["training"]["paddingFree"] == choice, ended.logs
        said = ["padding is left out" in ended.logs[0], "the run is padded" in ended.logs[0]]
        assert said == [choice == "auto", False], ended.logs
        found[choice] = [line for line in metrics(folder) if "loss" in line]
        shapes[choice] = SHAPES.findall(ended.logs[0])
    assert len(found["auto"]) == 4
    for free, padded in zip(found["auto"], found["never"], strict=True):
        for name in ("loss", "grad_norm"):
            assert free[name] == pytest.approx(padded[name], rel=5e-5, abs=1e-5), name
    assert len(shapes["auto"]) == len(shapes["never"]) >= 4
    for (rows, tokens), (padded_rows, length) in zip(shapes["auto"], shapes["never"], strict=True):
        assert int(padded_rows) > 1
        assert rows == "1"
        assert int(tokens) < int(padded_rows) * int(length)


@pytest.mark.parametrize("kind", TRLS)
def test_many_steps_stay_as_near_to_trls_as_trls_own_with_more_padding(
    kind: Kind, model_folder: Path, tmp_path: Path
) -> None:
    """Rounding grows from step to step, in TRL's own trainer too: each of three begins with equal weights."""
    rng, words = random.Random(5), " ".join(row["chosen"][0]["content"] for row in preference_pairs(40)).split()
    pairs = preference_pairs(40)
    for pair in pairs:
        for side in ("chosen", "rejected"):
            pair[side][0]["content"] = " ".join(rng.choices(words, k=round(rng.lognormvariate(2.5, 0.7)) + 1))
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in pairs] if kind == "SFTJob" else pairs

    def trained(choice: str, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of all steps, and the weights after them."""
        trainer, check, warned = made(kind, choice, rows, model_folder, tmp_path, **more)
        trainer.train()
        assert check is None or all(hook.is_on for hook in check.hooks), warned
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == STEPS
        return torch.tensor(losses), torch.cat([value.detach().flatten() for value in trainer.model.parameters()])

    plain, more, free = trained("never"), trained("never", pad_to_multiple_of=MORE_PADDING), trained("auto")
    for own, padded, without in zip(plain, more, free, strict=True):
        floor = float((padded - own).norm())
        assert 0 < floor < 1e-3 * float(own.norm())
        assert float((without - own).norm()) <= TIMES * floor
