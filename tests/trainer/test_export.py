"""The model that comes out: the same in one file or several, of what was trained and nothing else."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trainer_kit import Warm, job_file, preference_pairs, write_jsonl
from transformers import AutoModelForCausalLM

from trl_trainer import files
from trl_trainer.errors import TrainerError
from trl_trainer.results import export

TWICE = """
from trl_trainer.models import skeleton
from trl_trainer.results import export
original = export.write
def write(run, *args):
    skeleton.PART_BYTES = 100_000
    written = original(run, *args)
    if rank == 0:
        written.folder.rename(run.work / "several")
    skeleton.PART_BYTES = 5_000_000
    return original(run, *args)
export.write = write
"""
SEVERAL = """
from trl_trainer.models import skeleton
from trl_trainer.results import export
skeleton.PART_BYTES = 100_000
original = export.to_main
def to_main(run, value, dtype=None):
    print(f"gathered {value.numel()} values", flush=True)
    return original(run, value, dtype)
export.to_main = to_main
"""


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def test_two_ranks_export_several_files_that_are_the_one_file_in_the_bases_precision(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(model_folder, tmp_path / "base")
    stored = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    (base / "config.json").write_text(
        json.dumps(json.loads((base / "config.json").read_text()) | {"dtype": "bfloat16"})
    )
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    spec = {"training": {"maxSteps": 2}, "evaluation": {"enabled": False}}
    ended = warm.run(job_file(tmp_path, base, spec=spec), prelude=[TWICE])
    assert ended.codes == [0, 0], ended.logs
    several, final = (tmp_path / "storage/uid-1" / name for name in ("several", "final"))
    assert len(list(several.glob("*.safetensors"))) > 1
    assert [path.name for path in final.glob("*.safetensors")] == ["model.safetensors"]
    one = tensors(final)
    # The head is tied to the embeddings, and written once.
    assert one.keys() == tensors(several).keys() == stored.keys()
    assert all(value.equal(one[name]) and value.dtype == torch.bfloat16 for name, value in tensors(several).items())
    assert not any(value.equal(stored[name]) for name, value in one.items() if "proj" in name)
    assert json.loads((final / "config.json").read_text())["dtype"] == "bfloat16"
    assert (final / "config.json").read_text() == (several / "config.json").read_text()
    _, info = AutoModelForCausalLM.from_pretrained(several, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.filterwarnings("ignore")
def test_of_an_adapter_only_what_was_trained_is_gathered_and_the_merge_is_pefts(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    spec = {"peft": {"method": "lora", "r": 4}, "training": {"maxSteps": 2}, "evaluation": {"enabled": False}}
    ended = warm.run(job_file(tmp_path, model_folder, spec=spec), prelude=[SEVERAL])
    assert ended.codes == [0, 0], ended.logs
    assert ended.records[0].progress is not None
    trained = ended.records[0].progress.trainable_parameters
    for log in ended.logs:
        assert sum(map(int, re.findall(r"gathered (\d+) values", log))) == trained
    final = tmp_path / "storage/uid-1/final"
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), final / "adapter")
    expected = whole.merge_and_unload().state_dict()
    assert len(list(final.glob("*.safetensors"))) > 1
    assert [name for name, value in tensors(final).items() if not value.equal(expected[name])] == []


def test_what_a_library_keeps_to_its_user_is_shared_as_far_as_the_folder_is(tmp_path: Path) -> None:
    for given, file_mode, folder_mode in ((0o755, 0o644, 0o755), (0o750, 0o640, 0o750), (0o700, 0o600, 0o700)):
        folder = tmp_path / f"{given:o}"
        inner = folder / "inner"
        inner.mkdir(parents=True)
        (inner / "weights").touch()
        (inner / "weights").chmod(0o600)
        inner.chmod(0o700)
        folder.chmod(given)
        for path in (inner / "weights", inner):
            files.share(path, folder)
        assert (inner / "weights").stat().st_mode & 0o777 == file_mode
        assert inner.stat().st_mode & 0o777 == folder_mode


def test_a_model_without_all_of_its_weights_is_not_published(model_folder: Path, tmp_path: Path) -> None:
    export.check_whole(model_folder, classifier=False)
    lost = shutil.copytree(model_folder, tmp_path / "lost")
    kept = load_file(lost / "model.safetensors")
    del kept["model.norm.weight"]
    save_file(kept, lost / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainerError, match=r"lacks 1 weights \(model.norm.weight\)"):
        export.check_whole(lost, classifier=False)


def test_a_model_that_lost_a_weight_while_it_was_written_is_not_published(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    lossy = """
from trl_trainer.results.shards import Shards
add = Shards.add
Shards.add = lambda self, model, state: add(self, model, {k: v for k, v in state.items() if k != "model.norm.weight"})
"""
    spec = {"training": {"maxSteps": 1}, "evaluation": {"enabled": False}}
    ended = warm.run(job_file(tmp_path, model_folder, spec=spec, numProcPerNode=1), 1, prelude=[lossy])
    assert ended.codes == [1], ended.logs
    assert ended.records[0].message == "the exported model lacks 1 weights (model.norm.weight)"
    assert not (tmp_path / "storage/uid-1/final").exists()


def test_the_digest_is_of_the_names_and_the_contents_of_all_files_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, content in (("c", b"1"), ("b/d", b"2"), ("b/a", b"3")):
        (tmp_path / name).write_bytes(content)
    lines = "".join(
        f"{name}\n{hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("b/a", b"3"), ("b/d", b"2"), ("c", b"1"))
    )
    assert files.digest(tmp_path) == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
