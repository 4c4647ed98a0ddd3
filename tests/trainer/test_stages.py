"""What is special about each stage, and two nodes that train and stop together."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainer_kit import (
    Warm,
    conversations,
    free_port,
    job_file,
    metrics,
    preference_pairs,
    prompts,
    wait_for,
    write_jsonl,
)

from trl_contract.base import Kind
from trl_contract.evaluation import EarlyStopping
from trl_contract.report import ExitRecord
from trl_trainer import local
from trl_trainer.checkpoints import checkpoint
from trl_trainer.checkpoints.early_stopping import no_better
from trl_trainer.local.resource import read
from trl_trainer.local.sources import Places
from trl_trainer.stages import STAGES

REWARDS = [
    {"name": "short", "length": {"min": 0, "max": 5}},
    {"name": "polite", "keyword": {"words": ["thank"]}, "weight": 2},
]
GRPO: dict[str, Any] = {"generation": {"maxCompletionLength": 8}, "rewards": REWARDS}


SMOKE = sorted((Path(__file__).parents[2] / "examples" / "smoke").glob("*.yaml"))

SOMETIMES = {"aux_loss", "policy_loss", "cispo_clip_ratio", "vespo/phi_seq_mean"}
"""Metrics that not every model or loss has."""
CLOCK = {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}


def check_metrics(folder: Path, kind: Kind, *rewards: str) -> None:
    """The metrics of a run's evaluations are those that early stopping may look at."""
    logged = {name.removeprefix("eval_") for line in metrics(folder) for name in line if name.startswith("eval_")}
    known = {"loss", *STAGES[kind].metrics, *(f"rewards/{name}/{what}" for name in rewards for what in ("mean", "std"))}
    assert logged - CLOCK == known - SOMETIMES


def test_grpo_reports_each_reward_with_its_statistics(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", prompts(40))
    # Evaluations have rewards of their own, which do not belong here.
    spec = {"grpo": GRPO, "training": {"maxSteps": 4}, "evaluation": {"everySteps": 2, "maxExamples": 4}}
    ended = warm.run(job_file(tmp_path, model_folder, "GRPOJob", spec=spec))
    assert ended.codes == [0, 0], ended.logs
    progress = ended.records[0].progress
    assert progress is not None
    logged = [line for line in metrics(tmp_path) if "loss" in line]
    assert {"reward", "reward_std", "kl", "rewards/polite/std"} <= logged[0].keys()
    check_metrics(tmp_path, "GRPOJob", "short", "polite")
    for report, name in zip(progress.rewards, ("short", "polite"), strict=True):
        assert (report.name, report.errors) == (name, 0)
        assert float(report.mean) == pytest.approx(sum(line[f"rewards/{name}/mean"] for line in logged) / 4, abs=1e-5)


def test_grpo_learns_what_is_rewarded(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    """From almost never to often: short answers."""
    write_jsonl(tmp_path / "train.jsonl", prompts(40))
    spec = {
        "grpo": {**GRPO, "beta": 0, "numGenerations": 8, "rewards": [{"name": "ask", "keyword": {"words": ["ask"]}}]},
        "training": {"maxSteps": 30, "perDeviceBatchSize": 16, "learningRate": 1e-2},
        "evaluation": {"enabled": False},
    }
    ended = warm.run(job_file(tmp_path, model_folder, "GRPOJob", spec=spec, numProcPerNode=1), 1)
    assert ended.codes == [0], ended.logs
    reward = [line["reward"] for line in metrics(tmp_path) if "loss" in line]
    assert sum(reward[:3]) / 3 < 0.4
    assert sum(reward[-3:]) / 3 > 0.9


@pytest.mark.parametrize(("on_error", "codes"), [("fail", [14, 14]), ("zero", [0, 0])])
def test_a_reward_that_raises_fails_the_job_or_counts(
    on_error: str, codes: list[int], warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    """On one rank only; the other must not hang."""
    (tmp_path / "rewards.py").write_text(
        "import random\n"
        "def f(prompts, completions, **columns):\n"
        "    if columns['answer'][0].startswith('thank'):\n"
        "        raise RuntimeError('no thanks')\n"
        "    return [1.0] * len(completions)\n"
    )
    write_jsonl(tmp_path / "train.jsonl", [*prompts(20), *prompts(20, seed=9)])
    rewards = [
        {
            "name": "mine",
            "onError": on_error,
            "python": {"configMap": {"name": "r", "key": "rewards.py"}, "function": "f"},
        }
    ]
    paths = {
        "storage": str(tmp_path / "storage"), "model": str(model_folder), "train": str(tmp_path / "train.jsonl"),
        "rewards": {"mine": str(tmp_path / "rewards.py")},
    }  # fmt: skip
    spec = {"grpo": {**GRPO, "rewards": rewards}, "evaluation": {"enabled": False}, "training": {"maxSteps": 6}}
    ended = warm.run(job_file(tmp_path, model_folder, "GRPOJob", spec=spec, paths=paths))
    assert ended.codes[0] == codes[0], ended.logs
    if on_error == "fail":
        assert ended.records[0].reason == "RewardError"
        assert "no thanks" in ended.records[0].message
    else:
        assert ended.records[0].progress is not None
        assert ended.records[0].progress.rewards[0].errors > 0


def test_a_reward_model_with_an_adapter_exports_its_head(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_jsonl(tmp_path / "train.jsonl", preference_pairs(60))
    spec: dict[str, Any] = {"peft": {"method": "lora", "r": 4}, "training": {"maxSteps": 20, "learningRate": 1e-2}}
    ended = warm.run(job_file(tmp_path, model_folder, "RewardJob", spec={**spec, "reward": {"minAccuracy": 0.9}}))
    assert ended.codes == [0, 0], ended.logs
    check_metrics(tmp_path, "RewardJob")
    final = tmp_path / "storage" / "uid-1" / "final"
    adapter = json.loads((final / "adapter" / "adapter_config.json").read_text())
    assert adapter["task_type"] == "SEQ_CLS"
    model = AutoModelForSequenceClassification.from_pretrained(final).eval()
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert model.config.num_labels == 1
    wins = 0
    for row in preference_pairs(20, seed=3):
        scores = []
        for reply in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template(row["prompt"] + row[reply], return_dict=True)["input_ids"]
            with torch.no_grad():
                scores.append(float(model(torch.tensor([ids])).logits[0, 0]))
        wins += scores[0] > scores[1]
    assert wins >= 18


def test_a_reward_model_below_its_least_accuracy_is_not_left_for_others(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    # What is chosen in training is rejected among the held-out pairs.
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in preference_pairs(8)]
    write_jsonl(tmp_path / "eval.jsonl", turned)
    dataset = {"train": {"volume": {"claimName": "data", "path": "train.jsonl"}}}
    spec = {
        "dataset": {**dataset, "eval": {"volume": {"claimName": "data", "path": "eval.jsonl"}}},
        "reward": {"minAccuracy": 0.6},
        "training": {"maxSteps": 6, "learningRate": 1e-2},
        "checkpoint": {"everySteps": 6},
    }
    paths = {
        "storage": str(tmp_path / "storage"),
        "model": str(model_folder),
        "train": str(tmp_path / "train.jsonl"),
        "eval": str(tmp_path / "eval.jsonl"),
    }
    ended = warm.run(job_file(tmp_path, model_folder, "RewardJob", spec=spec, paths=paths))
    first = ended.records[0]
    assert (ended.codes[0], first.reason) == (10, "RewardModelNotValidated"), ended.logs
    assert first.message.startswith("reward.minAccuracy: the model has accuracy 0")
    assert "and 0.6 is wanted: train on more" in first.message
    assert first.progress is not None
    assert first.progress.evaluation is not None, "what it has is told"
    work = tmp_path / "storage" / "uid-1"
    assert not list(work.glob("final*")), "nor a part of it"
    assert checkpoint.published_paths(work)[0][0] == 6, "training can go on from there"


def test_explicit_and_precomputed_references_train_like_the_automatic_one(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    curves = []
    source = {"volume": {"claimName": "model", "path": "base"}}
    for mode in ({"mode": "auto"}, {"mode": "explicit", "source": source}, {"mode": "precompute"}):
        folder = tmp_path / mode["mode"]  # type: ignore[operator]
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", preference_pairs(40))
        paths = {
            "storage": str(folder / "storage"), "model": str(model_folder), "train": str(folder / "train.jsonl"),
            "referenceModel": str(model_folder),
        }  # fmt: skip
        spec = {"dpo": {"referenceModel": mode}, "training": {"maxSteps": 4}, "evaluation": {"enabled": False}}
        ended = warm.run(job_file(folder, model_folder, spec=spec, paths=paths))
        assert ended.codes == [0, 0], ended.logs
        curves.append([line["loss"] for line in metrics(folder) if "loss" in line])
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[2] == pytest.approx(curves[0], abs=1e-6)


def test_bf16_and_gradient_checkpointing_train_sharded(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", conversations(40))
    spec = {
        "training": {"maxSteps": 4, "precision": "bf16", "gradientCheckpointing": True},
        "peft": {"method": "lora", "r": 4},
    }
    ended = warm.run(job_file(tmp_path, model_folder, "SFTJob", spec=spec))
    assert ended.codes == [0, 0], ended.logs
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]
    check_metrics(tmp_path, "SFTJob")


def test_an_adapter_on_parameters_trains_sharded_and_merges(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    peft = {"method": "lora", "r": 4, "targetModules": ["q_proj"], "targetParameters": ["mlp.gate_proj.weight"]}
    ended = warm.run(job_file(tmp_path, model_folder, spec={"peft": peft, "training": {"maxSteps": 4}}))
    assert ended.codes == [0, 0], ended.logs
    base = load_file(model_folder / "model.safetensors")
    merged = load_file(tmp_path / "storage" / "uid-1" / "final" / "model.safetensors")
    changed = {name.split(".")[-2] for name, value in merged.items() if not value.equal(base[name])}
    assert changed == {"q_proj", "gate_proj"}


def test_without_evaluation_at_start_there_is_only_an_after(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    spec = {"evaluation": {"atStart": False}, "training": {"maxSteps": 2}}
    ended = warm.run(job_file(tmp_path, model_folder, spec=spec, numProcPerNode=1), 1)
    assert ended.codes == [0], ended.logs
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.evaluation is not None
    assert ended.records[0].progress.evaluation.before == []
    assert ended.records[0].progress.evaluation.after
    check_metrics(tmp_path, "DPOJob")


STOPPING: dict[str, Any] = {
    "training": {"maxSteps": 40, "learningRate": 1e-12},
    "checkpoint": {"everySteps": 100},
    "evaluation": {"everySteps": 2, "earlyStopping": {"metric": "rewards/margins", "mode": "max", "patience": 2}},
}


def test_training_that_does_not_get_better_ends_early_and_is_not_taken_up_again(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(60))
    fault = "import os, signal; from trl_trainer.results import export as e; e.write = lambda *a: {}"
    kill, stop = (fault.format(f"os.kill(os.getpid(), signal.{name})") for name in ("SIGKILL", "SIGTERM"))
    ended = warm.run(job_file(tmp_path, model_folder, spec=STOPPING), prelude=[kill])
    assert -signal.SIGKILL in ended.codes, ended.logs
    # Evaluated at 2, then no better at 4 and 6.
    assert [step for step, _ in checkpoint.folders(tmp_path / "storage" / "uid-1")] == [6]
    ended = warm.run(job_file(tmp_path, model_folder, spec=STOPPING, attempt=1), prelude=[stop])
    assert ended.codes == [143, 143], ended.logs
    ended = warm.run(job_file(tmp_path, model_folder, spec=STOPPING, attempt=2))
    assert ended.codes == [0, 0], ended.logs
    assert ended.records[0].step == 6


def test_early_stopping_on_a_metric_that_this_model_does_not_have_names_the_ones_it_has(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    stopping = {"everySteps": 2, "earlyStopping": {"metric": "aux_loss", "mode": "min"}}
    ended = warm.run(job_file(tmp_path, model_folder, spec={"evaluation": stopping}, numProcPerNode=1), 1)
    assert ended.codes == [10], ended.logs
    assert "earlyStopping.metric aux_loss is not one of" in ended.records[0].message
    assert "rewards/margins" in ended.records[0].message


@pytest.mark.parametrize(
    ("values", "mode", "over"),
    [
        ([], "min", False),
        ([3, 3], "min", False),
        ([3, 3, 3], "min", True),
        ([3, 2, 3], "min", False),
        ([3, 2, 2.5, 2.1], "min", True),
        ([3, 2, 2.5, 1.9], "min", False),
        ([1, 2, 1, 2], "max", True),
        ([1, 2, 1, 3], "max", False),
    ],
)
def test_patience_counts_evaluations_without_a_new_best(values: list[float], mode: Any, over: bool) -> None:
    assert no_better(values, EarlyStopping(metric="loss", mode=mode, patience=2)) is over


@pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
def test_a_smoke_example_trains_four_steps_of_a_short_job(
    warm: Warm, model_folder: Path, tmp_path: Path, path: Path
) -> None:
    given = yaml.safe_load(path.read_text())
    given["spec"]["model"] = {"volume": {"claimName": "models", "path": model_folder.name}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(given))
    job = local.here(read(tmp_path / "job.yaml"), Places(tmp_path / "out", {"models": model_folder.parent}), gpus=0)
    (tmp_path / "job.json").write_text(json.dumps(job.to_wire()))
    ended = warm.run(tmp_path / "job.json", 1)
    assert ended.codes == [0], ended.logs
    assert ended.records[0].message == "trained 4 steps"
    resolved = json.loads((tmp_path / "out" / job.uid / "final" / "resolved.json").read_text())
    assert resolved["origins"]["training.maxSteps"] == "profile smoke"
    assert ended.records[0].progress is not None
    assert ended.records[0].progress.training_warnings == [], "what it learns does not count"


def test_the_card_tells_the_lineage(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    model = model_folder
    for kind, rows in (("SFTJob", conversations(30)), ("DPOJob", preference_pairs(30))):
        folder = tmp_path / kind
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", rows)
        spec = {
            "training": {"maxSteps": 2}, "dataset": {"evalSplit": 0.2},
            "evaluation": {"samplePrompts": ["a | pipe\nand a line"]},
        }  # fmt: skip
        ended = warm.run(job_file(folder, model, kind, spec=spec, numProcPerNode=1, name=kind.lower()), 1)
        assert ended.codes == [0], ended.logs
        model = folder / "storage" / "uid-1" / "final"
    card = (model / "README.md").read_text()
    report = json.loads((tmp_path / "DPOJob" / "storage" / "uid-1" / "data" / "report.json").read_text())
    assert "| parent job | SFTJob default/sftjob, uid uid-1 |" in card
    assert report["trainFile"]["digest"] in card
    assert "| preference_accuracy | 0 |" in card
    assert "trl 1.16.0" in card
    assert '"beta": 0.1' in card
    assert "a \\| pipe<br>and a line" in card


def start_node(warm: Warm, job: Path, folder: Path, rank: int, port: int) -> subprocess.Popen[str]:
    variables = {
        **os.environ, **warm.environment(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": str(rank), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port),
        "TRL_TERMINATION_LOG": str(folder / f"termination-log-{rank}"),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "trl_trainer.supervisor", "--job", str(job)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables,
    )  # fmt: skip


def test_two_nodes_stop_together_when_one_is_evicted(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    """The variables of a PyTorchJob; SIGTERM on the node that is not the master."""
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(60))
    spec = {"training": {"maxSteps": 100000}, "checkpoint": {"everySteps": 100000}}
    job = job_file(tmp_path, model_folder, spec=spec, numNodes=2, numProcPerNode=1)
    port = free_port()
    nodes = [start_node(warm, job, tmp_path, rank, port) for rank in range(2)]
    wait_for(lambda: any(line["step"] >= 3 for line in metrics(tmp_path)), 240)
    nodes[1].send_signal(signal.SIGTERM)
    logs = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [143, 143], logs
    for rank in range(2):
        record = ExitRecord.model_validate_json((tmp_path / f"termination-log-{rank}").read_text())
        assert record.outcome == "Preempted"
    [(step, folder)] = checkpoint.folders(tmp_path / "storage" / "uid-1")
    assert checkpoint.verify(folder, "uid-1").step == step
