"""What earlier jobs have left is looked at before anything of it is loaded."""

import json
import shutil
from pathlib import Path

import pytest
from trainer_kit import Warm, conversations, job_file, write_jsonl

from trl_contract.jobfile import JobFile
from trl_trainer import files
from trl_trainer.errors import UserError
from trl_trainer.models import inherited


def test_a_model_that_is_no_longer_what_its_job_has_left_is_refused_before_it_is_loaded(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(model_folder, tmp_path / "final")
    write_jsonl(tmp_path / "train.jsonl", conversations(20))
    left, spec = files.digest(base), {"training": {"maxSteps": 1}, "evaluation": {"enabled": False}}

    def attempt(number: int) -> Path:
        given = {"numProcPerNode": 1, "digests": {str(base): left}, "attempt": number}
        return job_file(tmp_path, base, "SFTJob", spec=spec, **given)

    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ended = warm.run(attempt(0), 1)
    assert ended.codes == [10], ended.logs
    record = ended.records[0]
    assert record.reason == "ArtifactChanged"
    assert record.message.startswith(f"model: {base} is no longer what an earlier job has left there: its digest is")
    assert f"and was {left}: restore it, or run that job anew" in record.message
    work = tmp_path / "storage" / "uid-1"
    assert not (work / "data").exists(), "nothing was begun"

    weights.write_bytes(whole)
    ended = warm.run(attempt(1), 1)
    assert ended.codes == [0], ended.logs
    assert (work / "final").is_dir()


def test_a_file_too_many_and_a_folder_that_is_gone_are_found_and_the_field_is_named(tmp_path: Path) -> None:
    for name in ("policy", "reference", "judge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    left = {str(tmp_path / name): files.digest(tmp_path / name) for name in ("policy", "reference", "judge")}
    given = json.loads(job_file(tmp_path, tmp_path / "policy", spec={}, digests=left).read_text())
    given["paths"] |= {"referenceModel": str(tmp_path / "reference"), "rewards": {"judge": str(tmp_path / "judge")}}
    job = JobFile.model_validate(given)
    inherited.check(job)
    (tmp_path / "judge" / "more.py").touch()
    with pytest.raises(UserError, match=r"^grpo.rewards.judge.rewardModel: .*/judge is no longer what"):
        inherited.check(job)
    shutil.rmtree(tmp_path / "reference")
    with pytest.raises(UserError, match=r"^dpo.referenceModel.source: .*/reference, which .* has left, is gone"):
        inherited.check(job)
