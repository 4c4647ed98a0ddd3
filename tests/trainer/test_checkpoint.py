"""Which checkpoint an attempt starts from, and what may take one away."""

import errno
from pathlib import Path

import pytest

from trl_trainer.checkpoints import checkpoint

UID = "uid-1"


def publish(work: Path, step: int) -> Path:
    """Make a checkpoint of one process with two files."""
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(100))
    (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    manifest = checkpoint.Manifest(
        uid=UID, attempt=0, step=step, world_size=1, time="2026-01-31T00:00:00Z",
        files=checkpoint.own_files(folder, 0), versions={},
    )  # fmt: skip
    checkpoint.publish(folder, manifest)
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for step in (2, 4, 6):
        publish(tmp_path, step)
    return tmp_path


def test_the_newest_that_verifies_is_chosen_and_what_is_later_goes(work: Path) -> None:
    (work / "checkpoint-6" / "model.safetensors").write_bytes(bytes(99))
    (work / "checkpoint-8").mkdir()
    choice = checkpoint.choose(work, UID, 1)
    assert (choice.step, len(choice.skipped)) == (4, 2)
    checkpoint.clear_after(work, choice.step)
    assert [step for step, _ in checkpoint.folders(work)] == [4, 2]
    assert not (work / checkpoint.TRASH).exists()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_storage_that_does_not_answer_takes_no_checkpoint_away(
    code: int, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(folder: Path, path: Path) -> checkpoint.File:
        raise OSError(code, "not now", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "describe", describe)
        with pytest.raises(OSError, match="not now"):
            checkpoint.choose(work, UID, 1)
    assert checkpoint.choose(work, UID, 1).step == 6


def test_one_failed_load_may_be_chance_two_are_the_checkpoints(work: Path) -> None:
    newest = work / "checkpoint-6"
    checkpoint.mark_bad(newest, 1, "CUDA error: an illegal memory access was encountered")
    # All ranks of an attempt may say it, and it is one failure.
    checkpoint.mark_bad(newest, 1, "CUDA error: an illegal memory access was encountered")
    assert checkpoint.choose(work, UID, 1).step == 6
    checkpoint.mark_bad(newest, 2, "unpickling stack underflow")
    choice = checkpoint.choose(work, UID, 1)
    assert choice.step == 4
    assert choice.skipped == ["checkpoint-6: could not be loaded 2 times: unpickling stack underflow"]


def test_the_last_good_one_stays_whatever_is_kept(work: Path) -> None:
    (work / "checkpoint-8").mkdir()
    checkpoint.retain(work, 2)
    assert [step for step, _ in checkpoint.folders(work)] == [8, 6, 4]
