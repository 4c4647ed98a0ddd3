"""What metrics warn of: of real runs, and of what real runs have logged."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainer_kit import CURT, PROMPTS, Warm, conversations, job_file, metrics, write_jsonl

from trl_trainer.reports.progress import Reporter, Sender
from trl_trainer.reports.signs import Signs


def told(entries: list[dict[str, Any]], last: int = 1000, began: int = 0) -> list[tuple[int, str]]:
    """Return at which step each reason is told."""
    signs = Signs()
    signs.begin(began)
    return [(entry["step"], found.reason) for entry in entries for found in signs.look(entry["step"], last, entry)]


def logged(name: str, values: list[float], first: int = 1, every: int = 1, **more: float) -> list[dict[str, Any]]:
    return [{"step": first + every * i, name: value, **more} for i, value in enumerate(values)]


def test_rewards_that_tell_nothing_apart_are_told_once_and_after_a_while() -> None:
    shares = ((1, 1.0), (10, 0.95), (19, 1.0), (20, 0.75), (30, 1.0), (39, 1.0), (40, 0.9), (90, 1.0))
    entries = [{"step": step, "frac_reward_zero_std": share, "loss": 0.0} for step, share in shares]
    assert told(entries) == [(40, "RewardCollapse")]
    assert told(entries[:3], last=19) == [(19, "RewardCollapse")], "all of a shorter run"
    assert told(entries[:3], began=5) == [], "another attempt has taken the others"


def test_a_policy_that_runs_away_from_its_base_is_told() -> None:
    usual = logged("kl", [0.001, 0.02, 0.05, 0.09], frac_reward_zero_std=0.0, loss=0.0)
    assert told([*usual, *logged("kl", [0.95], 5, frac_reward_zero_std=0.0)]) == []
    assert told([*usual, *logged("kl", [1.2, 90.0], 5, frac_reward_zero_std=0.0)]) == [(5, "RewardCollapse")]


def test_a_loss_near_nothing_is_told_when_it_stays_there() -> None:
    assert told(logged("loss", [0.5, *[0.009] * 19, 0.02, *[0.001] * 30])) == [(41, "LossCollapse")]
    assert told(logged("loss", [0.001] * 4, first=10, every=10)) == [(20, "LossCollapse")], "steps count, not entries"
    assert told(logged("loss", [-0.3] * 40)) == [], "some losses are below 0 when all is well"


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([2.1, 2.0, 1.9, 1.8, 3.7], []),
        ([2.1, 2.0, 1.9, 1.8, 4.3, 9.0], [5]),
        ([2.1, 2.0, 4.3], []),
        # Small ones differ by more than that from row to row.
        ([0.1, 0.2, 0.1, 0.9], []),
        ([0.69, 0.65, 0.6, 1.5], [4]),
    ],
)
def test_a_loss_that_jumps_above_all_before_is_told(losses: list[float], steps: list[int]) -> None:
    assert [step for step, _ in told(logged("loss", losses))] == steps


def test_a_run_whose_loss_jumps_says_so(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    """One row again and again, and then others."""
    asked = {"role": "user", "content": CURT[0]}
    others = [{"messages": [asked, {"role": "assistant", "content": said}]} for said in PROMPTS[:4]]
    write_jsonl(tmp_path / "train.jsonl", conversations(1) * 76 + others)
    dataset = {"train": {"volume": {"claimName": "data", "path": "train.jsonl"}}, "shuffle": False, "evalSplit": 0}
    spec = {"dataset": dataset, "training": {"maxSteps": 20, "learningRate": 1e-2}}
    ended = warm.run(job_file(tmp_path, model_folder, "SFTJob", spec=spec, numProcPerNode=1), 1)
    assert ended.codes == [0], ended.logs
    progress = ended.records[0].progress
    assert progress is not None
    [found] = progress.training_warnings
    assert found.reason == "UnstableLoss", json.dumps(metrics(tmp_path))
    assert f"UnstableLoss: {found.message}. {found.hint}" in ended.logs[0]
    assert found.message.startswith("at step 20 the loss is")


@pytest.mark.parametrize(("warns", "reasons"), [(True, ["RewardCollapse"]), (False, [])])
def test_a_job_that_is_only_to_show_that_it_runs_is_not_warned(tmp_path: Path, warns: bool, reasons: list[str]) -> None:
    reporter = Reporter(0, tmp_path / "metrics.jsonl", Sender({}), warns=warns)
    state = SimpleNamespace(global_step=4, max_steps=4)
    logs = {"loss": 0.0, "frac_reward_zero_std": 1.0}
    reporter.on_log(None, state, None, logs=logs)  # type: ignore[arg-type]
    assert [found.reason for found in reporter.state.training_warnings] == reasons
