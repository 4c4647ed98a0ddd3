"""A run that goes on from another job's checkpoint: what it takes, and what it refuses before it is loaded."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from test_checkpoint import UID, publish
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from trainer_kit import job_file

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_contract.spec import SPECS
from trl_trainer import local
from trl_trainer.checkpoints import foreign, origin, publisher
from trl_trainer.checkpoints.checkpoint import Choice
from trl_trainer.checkpoints.origin import MAY_DIFFER, OwnRates, differences
from trl_trainer.distributed.world import Run
from trl_trainer.errors import UserError
from trl_trainer.local.resource import read as read_resource

LENGTH = {"generation": {"maxCompletionLength": 12}, "rewards": [{"name": "short", "length": {"target": 5}}]}


def job(folder: Path, kind: str = "DPOJob", spec: dict[str, Any] | None = None, **fields: Any) -> JobFile:
    path = job_file(folder, folder, kind, spec={"training": {"maxSteps": None}, **(spec or {})}, **fields)
    return resolve(JobFile.model_validate_json(path.read_text()))


def resuming(folder: Path, earlier: Path, step: int | None = None, world: int = 1) -> JobFile:
    asked = {"volume": {"claimName": "c", "path": earlier.name}, **({"step": step} if step else {})}
    made = job(folder, spec={"checkpoint": {"everySteps": 2, "resumeFrom": asked}}, numProcPerNode=world, uid="uid-2")
    return made.model_copy(update={"paths": made.paths.model_copy(update={"resume_from": str(earlier)})})


@pytest.mark.parametrize(
    ("kind", "spec", "fields", "says"),
    [
        ("DPOJob", {"peft": {"method": "lora", "r": 8}}, {}, "peft.r is 8, and was 16 there"),
        ("DPOJob", {"training": {"optimizer": "sgd"}}, {}, 'training.optimizer is "sgd", and was "adamw_torch_fused"'),
        ("DPOJob", {"training": {"maxLength": 64}}, {}, "training.maxLength is 64, and was 1024 there"),
        ("DPOJob", {"training": {"weightDecay": 0}}, {}, "training.weightDecay is 0.0, and was 0.01 there"),
        ("DPOJob", {"dpo": {"beta": 0.2}}, {}, "dpo.beta is 0.2, and was 0.1 there"),
        ("DPOJob", {"model": {"volume": {"claimName": "model", "path": "other"}}}, {}, 'model.volume.path is "other"'),
        ("DPOJob", {"model": {"eosToken": "x"}}, {}, 'model.eosToken is "x", and was not set there'),
        ("DPOJob", {"dataset": {"seed": 1}}, {}, "dataset.seed is 1, and was 42 there"),
        ("DPOJob", {"dataset": {"shuffle": False}}, {}, "dataset.shuffle is false, and was true there"),
        ("DPOJob", {"fsdp": {"cpuOffload": True}}, {}, "fsdp.cpuOffload is true, and was false there"),
        ("DPOJob", {}, {"numProcPerNode": 4}, "the number of processes .numNodes x numProcPerNode. is 4, and was 2"),
        ("DPOJob", {}, {"hasGpus": True}, "the presence of GPUs .resources.limits. is true, and was false"),
        ("DPOJob", {"training": {"perDeviceBatchSize": 8}}, {}, "gradientAccumulationSteps is 8, and was 4 there"),
        ("GRPOJob", {"grpo": {**LENGTH, "numIterations": 2}}, {}, "grpo.numIterations is 2, and was 1 there"),
        ("GRPOJob", {"grpo": {**LENGTH, "stepsPerGeneration": 2}}, {}, "x grpo.stepsPerGeneration is 8, and was 4"),
    ],
)  # fmt: skip
def test_a_job_of_another_shape_is_refused_by_the_field(
    kind: str, spec: dict[str, Any], fields: dict[str, Any], says: str, tmp_path: Path
) -> None:
    base = {"grpo": LENGTH} if kind == "GRPOJob" else {"peft": {"method": spec.get("peft", {}).get("method", "none")}}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = differences(job(tmp_path / "a", kind, base), job(tmp_path / "b", kind, {**base, **spec}, **fields))
    assert any(re.search(says, line) for line in found), found


def test_another_kind_is_refused(tmp_path: Path) -> None:
    assert 'kind is "RewardJob", and was "DPOJob" there' in differences(job(tmp_path), job(tmp_path, "RewardJob"))


def test_what_may_differ_does(tmp_path: Path) -> None:
    first = job(tmp_path, spec={"training": {"epochs": 1, "maxSteps": None, "perDeviceBatchSize": 8}})
    spec = {
        "training": {
            "maxSteps": 99, "learningRate": 0.5, "lrScheduler": "cosine_with_min_lr",
            "lrSchedulerArgs": {"minLrRate": 0.2}, "warmupSteps": 3, "maxGradNorm": 9, "loggingSteps": 7,
            "gradientCheckpointing": True, "perDeviceBatchSize": 2, "gradientAccumulationSteps": 4,
            "torchCompile": True,
        },
        "evaluation": {"everySteps": 3, "samplePrompts": ["hi"]},
        "checkpoint": {"everyMinutes": 2, "everySteps": None, "keep": 9, "resumeFrom": {"job": "first"}},
        "tracking": {"tensorboard": {}},
        "fsdp": {"reshardAfterForward": False, "stateDictType": "full"},
        "dataset": {"workers": 2, "maxBadRows": 3, "evalSplit": 0.2},
    }  # fmt: skip
    assert differences(first, job(tmp_path, spec=spec)) == []


def test_every_field_that_may_differ_is_one_and_the_page_tells_it() -> None:
    known = json.dumps([spec.model_json_schema() for spec in SPECS.values()])
    page = (Path(__file__).parents[2] / "docs" / "resume.md").read_text()
    for field in MAY_DIFFER:
        name = field.split(".")[-1]
        assert f'"{name}"' in known, field
        assert name in page, field


def test_the_newest_that_verifies_or_the_step_that_is_asked_for(tmp_path: Path) -> None:
    earlier = tmp_path / UID
    for step in (2, 4, 6):
        publish(earlier, step)
    (earlier / "checkpoint-6" / "model.safetensors").write_bytes(bytes(99))
    assert origin.choose(resuming(tmp_path, earlier)).step == 4
    assert origin.choose(resuming(tmp_path, earlier, 2)).step == 2
    with pytest.raises(UserError, match=r"has not a checkpoint of step 3 that verifies; it has steps: 6, 4, 2"):
        origin.choose(resuming(tmp_path, earlier, 3))
    with pytest.raises(UserError, match=r"step 6 that verifies; .* model.safetensors is not what was written"):
        origin.choose(resuming(tmp_path, earlier, 6))
    with pytest.raises(UserError, match="written by 1 processes and this attempt has 2"):
        origin.choose(resuming(tmp_path, earlier, world=2))


def test_a_run_goes_on_from_its_own_checkpoint_when_it_has_one(tmp_path: Path) -> None:
    earlier, work = tmp_path / UID, tmp_path / "uid-2"
    for step in (2, 4):
        publish(earlier, step)
    work.mkdir()
    run = Run(resuming(tmp_path, earlier), work, 0, 1, "cpu")
    assert publisher.choose(run).path == str(earlier / "checkpoint-4")
    publish(work, 2)
    own = (work / "checkpoint-2" / "MANIFEST.json").read_text().replace(UID, "uid-2")
    (work / "checkpoint-2" / "MANIFEST.json").write_text(own)
    assert publisher.choose(run).path == str(work / "checkpoint-2")


def test_a_checkpoint_that_does_not_load_is_marked_in_the_jobs_own_folder_only(tmp_path: Path) -> None:
    own, earlier = publish(tmp_path / "uid-2", 2), publish(tmp_path / UID, 2)
    run = Run(resuming(tmp_path, earlier.parent), own.parent, 0, 1, "cpu")
    for folder in (own, earlier):
        said = publisher.LoadGuard().explain(run, Choice(path=str(folder), step=2), RuntimeError("odd"))
        assert str(said).endswith(f"{folder} verifies but cannot be loaded: odd")
    assert [(folder / "BAD.0").exists() for folder in (own, earlier)] == [True, False]


def test_a_folder_of_no_job_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint.resumeFrom: .*/nobody is of no job that can be read"):
        origin.prepare(resuming(tmp_path, tmp_path / "nobody"), tmp_path, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_rates_are_the_new_jobs_own_from_its_first_step(schedule: str) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments, get_scheduler

    def made(rate: float, total: int) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=rate)
        return optimizer, get_scheduler(schedule, optimizer, 0, total)

    optimizer, scheduler = made(1.0, 10)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    again, later = made(0.5, 20)
    again.load_state_dict(optimizer.state_dict())
    later.load_state_dict(scheduler.state_dict())
    args = TrainingArguments(output_dir="unused", learning_rate=0.5, use_cpu=True)
    OwnRates().on_train_begin(args, TrainerState(), TrainerControl(), optimizer=again, lr_scheduler=later)
    expected = {"linear": [0.5 * 16 / 20, 0.5 * 15 / 20], "constant": [0.5, 0.5]}[schedule]
    seen = [again.param_groups[0]["lr"]]
    again.step()
    later.step()
    assert [*seen, again.param_groups[0]["lr"]] == pytest.approx(expected)


# -- what would run code


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-2" / "optimizer_0"
    state = {"optim": {"w": torch.ones(4, dtype=torch.bfloat16), "lr": 0.5, "betas": (0.9, 0.999)}, "step": 3}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def read(folder: Path) -> Any:
    return FileSystemReader(folder).read_metadata()


def test_what_torch_writes_may_be_loaded(sharded: Path) -> None:
    foreign.check(sharded.parent)


def test_metadata_that_runs_code_is_refused_and_torch_would_run_it(sharded: Path, tmp_path: Path) -> None:
    (sharded / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    with pytest.raises(ValueError, match=r"optimizer_0/.metadata may not be loaded: it holds posix.mkdir"):
        foreign.check(sharded.parent)
    assert not (tmp_path / "mark").exists()
    with pytest.raises(Exception):  # noqa: B017, PT011
        read(sharded)
    assert (tmp_path / "mark").exists(), "torch looks for itself: checkpoints/foreign.py is needless"


def test_a_value_in_a_shard_that_runs_code_is_refused_and_torch_would_run_it(sharded: Path, tmp_path: Path) -> None:
    metadata = read(sharded)
    index = next(
        i for i in metadata.storage_data if isinstance(metadata.state_dict_metadata[i.fqn], BytesStorageMetadata)
    )
    torch.save(Evil(tmp_path / "mark"), sharded / "__1_0.distcp")
    place = metadata.storage_data[index]
    place.relative_path, place.offset = "__1_0.distcp", 0
    place.length = (sharded / "__1_0.distcp").stat().st_size
    (sharded / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"optimizer_0/.metadata may not be loaded"):
        foreign.check(sharded.parent)
    assert not (tmp_path / "mark").exists()
    state = {"optim": {"w": torch.ones(4, dtype=torch.bfloat16), "lr": 0.5, "betas": (0.9, 0.999)}, "step": 3}
    dcp.load(state, checkpoint_id=sharded, no_dist=True)
    assert (tmp_path / "mark").exists(), "torch looks for itself: checkpoints/foreign.py is needless"


# -- on this machine


LOCAL = """
apiVersion: trl-operator.io/v1alpha1
kind: DPOJob
metadata: {name: NAME}
spec:
  model: {volume: {claimName: models, path: base}}
  dataset: {train: {inline: [{prompt: a, chosen: b, rejected: c}]}}
  checkpoint: {resumeFrom: {job: first, step: 2}}
  storage: {size: 1Gi}
"""


def here(folder: Path, name: str = "second") -> JobFile:
    (folder / "models" / "base").mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(LOCAL.replace("NAME", name))
    return local.here(read_resource(folder / "job.yaml"), local.Places(folder, {"models": folder / "models"}), 0)


def test_run_goes_on_from_the_newest_run_of_a_job_and_names_it_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"spec.checkpoint.resumeFrom.job: DPOJob first has no checkpoint in .*: run its"
    ):
        here(tmp_path)
    for age, name in enumerate(("first-00000001", "first-00000002", "first-00000003", "other-00000004")):
        publish(tmp_path / name, 2)
        (tmp_path / name / "resolved.json").write_text(json.dumps({"kind": "DPOJob", "name": name[:-9]}))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "first-00000001" / "checkpoint-2" / "MANIFEST.json").unlink()
    publish(tmp_path / "first-00000005", 2)
    (tmp_path / "first-00000005" / "resolved.json").write_text(json.dumps({"kind": "SFTJob", "name": "first"}))
    os.utime(tmp_path / "first-00000001", (1e9, 1e9))
    one = here(tmp_path)
    assert one.paths.resume_from == str(tmp_path / "first-00000002")
    assert here(tmp_path).uid == one.uid, "the same command goes on with the same run"
    (tmp_path / "first-00000002" / "resolved.json").write_text(json.dumps({"kind": "DPOJob", "name": "changed"}))
    assert here(tmp_path).uid != one.uid
    with pytest.raises(UserError, match="names this very job: give the new one another name"):
        here(tmp_path, "first")
