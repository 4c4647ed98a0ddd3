"""Which checkpoint an attempt starts from, and what may take one away."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trl_trainer import files
from trl_trainer.checkpoints import checkpoint, fence
from trl_trainer.errors import TrainerError
from trl_trainer.launch import records

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


@pytest.fixture
def no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may ask for the names in a folder: NFS answers from memory, up to a minute late."""

    def refuse(path: object = ".") -> None:
        raise AssertionError(f"{path} is listed")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)


def written(folder: Path) -> checkpoint.Manifest:
    """Write the files of two ranks into `folder`, each of which reports its own."""
    folder.mkdir()
    for name, content in (
        ("trainer_state.json", b'{"global_step": 8}'),
        ("__0_0.distcp", b"a"),
        ("__1_0.distcp", b"b"),
    ):
        (folder / name).write_bytes(content)
    return checkpoint.Manifest(
        uid=UID, attempt=0, step=8, world_size=2, time="2026-01-31T00:00:00Z", versions={},
        files=[*checkpoint.own_files(folder, 0), *checkpoint.own_files(folder, 1)],
    )  # fmt: skip


def test_a_checkpoint_is_published_by_the_names_that_its_ranks_told(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "checkpoint-8"
    manifest = written(folder)
    request.getfixturevalue("no_listing")
    checkpoint.publish(folder, manifest)
    assert checkpoint.Manifest.model_validate_json((folder / checkpoint.MANIFEST).read_text()) == manifest


def test_whoever_may_read_the_folder_may_read_the_weights_that_safetensors_keeps_to_its_user(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir(mode=0o750)
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    assert [file.path for file in checkpoint.own_files(folder, 0)] == ["model.safetensors"]
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("content", "says"), [(None, "None bytes"), (b"", "0 bytes")])
def test_a_file_that_has_not_arrived_makes_no_checkpoint(content: bytes | None, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-8"
    manifest = written(folder)
    (folder / "__1_0.distcp").unlink()
    if content is not None:
        (folder / "__1_0.distcp").write_bytes(content)
    with pytest.raises(ValueError, match=f"__1_0.distcp has {says}, and its rank wrote 1"):
        checkpoint.publish(folder, manifest)
    assert not (folder / checkpoint.MANIFEST).exists()


def test_a_newer_attempt_fences_an_older_one_off(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("no_listing")
    fence.claim(tmp_path, 1)
    fence.claim(tmp_path, 1)
    fence.check(tmp_path, 1)
    fence.claim(tmp_path, 3)
    fence.check(tmp_path, 3)
    with pytest.raises(TrainerError, match="attempt 3 has taken over"):
        fence.check(tmp_path, 1)
    # One that never came to claim, and wakes up now.
    with pytest.raises(TrainerError, match="attempt 3 has taken over"):
        fence.claim(tmp_path, 2)
    fence.check(tmp_path, 3)


@pytest.mark.parametrize(
    ("code", "call", "says"),
    [
        (errno.ENOSYS, "rename", "StorageNotWritable: storage: .* does not rename a folder .Function not implemented"),
        (errno.ENOSYS, "replace", "StorageNotWritable: storage: .* does not rename a file"),
        (errno.ENOSPC, "rename", "StorageFull: no space left"),
    ],
)
def test_a_storage_that_renames_nothing_is_refused_before_there_is_something_to_lose(
    code: int, call: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(code, os.strerror(code), str(source))

    files.try_renames(tmp_path)
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises((OSError, TrainerError)) as caught:
        files.try_renames(tmp_path)
    assert re.match(says, ": ".join(records.classify(caught.value)))
    assert list(tmp_path.iterdir()) == []
