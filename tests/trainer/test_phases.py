"""A signal at a known point of each phase: the next attempt ends as if nothing had happened.

kill_test.py hits at random instants; this makes sure that no phase is left out.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from trainer_kit import Ended, Warm, job_file, metrics, preference_pairs, write_jsonl

from trl_trainer.checkpoints import checkpoint

STEPS = 4
PHASES = {
    # What is wrapped, and which of its calls is hit: before it does anything, or after.
    "start": ("trl_trainer.checkpoints.fence", "claim", "before"),
    "load": ("trl_trainer.rank", "load_tokenizer", "before"),
    "build": ("trl_trainer.rank", "build", "after"),
    "step": ("trl_trainer.checkpoints.schedule", "start_max", "after"),
    "save": ("trl_trainer.checkpoints.checkpoint", "own_files", "before"),
    "publish": ("trl_trainer.checkpoints.checkpoint", "publish", "before"),
    "retain": ("trl_trainer.checkpoints.checkpoint", "retain", "before"),
    "export": ("trl_trainer.results.export", "write", "before"),
    "shard": ("trl_trainer.results.shards.Shards", "add", "after"),
    "written": ("trl_trainer.results.export", "write", "after"),
    "rename": ("trl_trainer.results.export", "make_final", "after"),
    "exit": ("trl_trainer.launch.records", "write", "after"),
}
HIT = """
import os, pydoc, signal
place = pydoc.locate({place!r})
original = getattr(place, {name!r})
def hit(*args, **kwargs):
    if {when!r} == "before":
        os.kill(os.getpid(), {number})
    result = original(*args, **kwargs)
    if {when!r} == "after":
        os.kill(os.getpid(), {number})
    return result
setattr(place, {name!r}, hit)
"""


def run(warm: Warm, folder: Path, model: Path, attempt: int, prelude: list[str]) -> Ended:
    spec: dict[str, Any] = {"training": {"maxSteps": STEPS}, "evaluation": {"enabled": False}}
    return warm.run(job_file(folder, model, spec=spec, attempt=attempt, numProcPerNode=1), 1, prelude=prelude)


def result(folder: Path) -> tuple[list[float], bytes]:
    """The losses of all steps, and the weights."""
    losses = {line["step"]: line["loss"] for line in metrics(folder) if "loss" in line}
    assert sorted(losses) == list(range(1, STEPS + 1))
    return [losses[step] for step in sorted(losses)], (folder / "storage/uid-1/final/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(warm: Warm, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_jsonl(folder / "train.jsonl", preference_pairs(40))
    ended = run(warm, folder, model_folder, 0, [])
    assert ended.codes == [0], ended.logs
    return result(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_that_is_hit_in_any_phase_leaves_a_job_that_ends_as_undisturbed(
    phase: str,
    number: signal.Signals,
    undisturbed: tuple[list[float], bytes],
    warm: Warm,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    place, name, when = PHASES[phase]
    ended = run(warm, tmp_path, model_folder, 0, [HIT.format(place=place, name=name, when=when, number=int(number))])
    work = tmp_path / "storage/uid-1"
    if number == signal.SIGKILL:
        assert ended.codes == [-signal.SIGKILL]
    elif phase == "exit":
        # The record is written: nothing can take the success away.
        assert ended.codes == [0]
    else:
        assert ended.codes == [143], ended.logs
        assert ended.records[0].reason == "Preempted"
    for step, folder in checkpoint.published_paths(work) if work.exists() else []:
        assert checkpoint.verify(folder, "uid-1").step == step
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == step

    ended = run(warm, tmp_path, model_folder, 1, [])
    assert ended.codes == [0], ended.logs
    assert result(tmp_path) == undisturbed
    assert not list(work.glob("final.part*"))
