"""The reference's log-probabilities are asked once, are TRL's own, and are shared; test_resume.py resumes with them,
and test_stages.py has two ranks and full fine-tuning."""

import json
import math
import os
import shutil
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from datasets import Dataset
from safetensors.numpy import load_file
from trainer_kit import TRAIN_ONLY, Warm, job_file, metrics, preference_pairs, write_jsonl
from trl import DPOConfig

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer import data, files
from trl_trainer.models import identity, source
from trl_trainer.models.tokenizer import load_tokenizer
from trl_trainer.preflight.references import decided
from trl_trainer.stages import dpo, reference_log_probs

LORA = {"peft": {"method": "lora", "r": 4}, "evaluation": {"maxExamples": 8, "atStart": False}}
TORN = """
import os, signal, numpy
def half(file, values):
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
numpy.save = half
"""
UNASKED = """
from trl import DPOTrainer
def asked(*given):
    raise AssertionError("the reference was asked")
DPOTrainer.compute_ref_log_probs = asked
"""
IN_EACH_STEP = "from trl_trainer.preflight import references; references.EPOCHS = 99"


def resolved(path: Path) -> JobFile:
    return resolve(JobFile.model_validate_json(path.read_text()))


def test_asked_once_it_says_what_it_says_in_each_step_also_after_a_kill_and_to_other_jobs(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    curves = []
    for mode in ("auto", "precompute"):
        folder = tmp_path / mode
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", preference_pairs(40))
        spec = {**LORA, "dpo": {"referenceModel": {"mode": mode}, "ldAlpha": 0.5}, "training": {"maxSteps": 4}}
        job = job_file(folder, model_folder, spec=spec, numProcPerNode=1)
        kept = folder / "storage" / reference_log_probs.FOLDER
        if mode == "precompute":
            assert warm.run(job, world=1, prelude=[TORN]).codes == [-9]
            assert sorted(path.suffix for path in kept.iterdir()) == [".digest", ".part"], "nothing by its name"
            job = job_file(folder, model_folder, spec=spec, numProcPerNode=1, attempt=1)
        ended = warm.run(job, world=1)
        assert ended.codes == [0], ended.logs
        curves.append([line["loss"] for line in metrics(folder) if "loss" in line])
        assert kept.exists() == (mode == "precompute"), "0.8 epochs ask each pair once"
    assert len(list(kept.glob("*.digest"))) == 1
    assert curves[1] == pytest.approx(curves[0], abs=1e-6)

    # What TRL itself finds for the same rows, and there for the held-out ones.
    work = folder / "storage" / "uid-1"
    made = data.load(next((work / "data").glob("rows-*")))
    args = DPOConfig(
        output_dir=str(tmp_path / "trl"), precompute_ref_log_probs=True, ld_alpha=0.5, bf16=False, use_cpu=True,
        report_to=[], per_device_train_batch_size=3,
    )  # fmt: skip
    trls = dpo.Trainer(
        model=str(model_folder), args=args, train_dataset=made.train, eval_dataset=made.eval,
        processing_class=load_tokenizer(resolved(job)),
    )  # fmt: skip
    ours = {len(found[0]): found for found in map(numpy.load, kept.glob("*.npy"))}
    assert len(ours) == 2
    for rows in (trls.train_dataset, trls.eval_dataset):
        expected = numpy.array([rows[column] for column in reference_log_probs.COLUMNS])
        assert ours[len(rows)] == pytest.approx(expected, rel=1e-6)

    # Another job, with several processes and another loss, asks nothing.
    spec = {
        **LORA, "dpo": {"ldAlpha": 0.5, "beta": 0.3}, "training": {"epochs": 2, "maxSteps": None, "learningRate": 1e-4},
    }  # fmt: skip
    ended = warm.run(job_file(folder, model_folder, spec=spec, uid="uid-2"), prelude=[UNASKED])
    assert ended.codes == [0, 0], ended.logs
    chosen = json.loads((folder / "storage" / "uid-2" / "resolved.json").read_text())
    assert chosen["spec"]["dpo"]["referenceModel"]["mode"] == "precompute", "two epochs ask each pair twice"


def test_an_adapter_trains_sharded_after_its_model_was_asked(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    """Two ranks, and all stays whole after a forward pass: the optimizer is made of shards nevertheless."""
    curves = []
    for mode in ("auto", "precompute"):
        folder = tmp_path / mode
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", preference_pairs(16))
        spec = {
            "peft": {"method": "lora", "r": 4}, "evaluation": {"enabled": False}, "dataset": {"evalSplit": 0},
            "fsdp": {"reshardAfterForward": False}, "training": {"epochs": 2, "maxSteps": None},
            "dpo": {"referenceModel": {"mode": mode}},
        }  # fmt: skip
        prelude = [IN_EACH_STEP, TRAIN_ONLY] if mode == "auto" else []
        ended = warm.run(job_file(folder, model_folder, spec=spec), prelude=prelude)
        assert ended.codes == [0, 0], ended.logs
        curves.append([line["loss"] for line in metrics(folder) if "loss" in line])
    auto, precomputed = curves
    assert len(precomputed) == 4
    assert precomputed == pytest.approx(auto, abs=1e-5)
    assert precomputed[3] < precomputed[0] == pytest.approx(math.log(2), abs=1e-4)
    adapter = load_file(tmp_path / "precompute/storage/uid-1/final/adapter/adapter_model.safetensors")
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name), "they begin as zeros"


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"dpo": {"beta": 0.5, "lossType": ["ipo"]}, "training": {"learningRate": 1e-4, "maxSteps": 99}}, True),
        ({"peft": {"method": "none"}}, False),
        ({"dpo": {"ldAlpha": 0.5}}, False),
        ({"training": {"maxLength": 99}}, False),
        ({"training": {"precision": "bf16"}}, False),
        ({"model": {"attnImplementation": "eager"}}, False),
        ({"model": {"addTokens": ["<a>"]}}, False),
    ],
)
def test_the_key_has_all_that_the_answers_depend_on(changes: dict[str, Any], same: bool, tmp_path: Path) -> None:
    def key(spec: dict[str, Any], *given: str) -> str:
        return reference_log_probs.key(resolved(job_file(tmp_path, tmp_path, spec=LORA | spec)), *given)

    given = ("model", "rows", "cpu")
    plain = key({}, *given)
    assert (key(changes, *given) == plain) is same
    others = [("m", "rows", "cpu"), ("model", "r", "cpu"), ("model", "rows", "cuda")]
    assert len({plain, *(key({}, *other) for other in others)}) == 4


def test_the_key_changes_with_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = resolved(job_file(tmp_path, tmp_path, spec=LORA))
    before = reference_log_probs.key(job, "model", "rows", "cpu")
    monkeypatch.setattr(reference_log_probs, "version", lambda package: f"{package} 9")
    assert reference_log_probs.key(job, "model", "rows", "cpu") != before


def test_jobs_that_keep_the_same_at_once_never_show_a_part_of_it(tmp_path: Path) -> None:
    values = numpy.random.default_rng(0).random((2, 50_000), dtype=numpy.float32)
    path = tmp_path / "name.npy"

    def keep(uid: str) -> None:
        for _ in range(20):
            files.keep_shared(path, uid, lambda file: numpy.save(file, values))

    jobs = [Thread(target=keep, args=(uid,)) for uid in ("uid-1", "uid-2")]
    for job in jobs:
        job.start()
    seen = 0
    while any(job.is_alive() for job in jobs):
        if path.exists():
            assert numpy.array_equal(numpy.load(path), values)
            seen += 1
    assert seen
    assert list(tmp_path.iterdir()) == [path]


def test_what_no_job_has_used_for_long_goes(tmp_path: Path) -> None:
    names, day = ("used", "new", "old", "old.digest", "dead.uid-9-0.part"), 86400
    for name, age in zip(names, (99, 29, 31, 31, 31), strict=True):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age * day,) * 2)
    files.take_shared(tmp_path / "used")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "used"]
    files.take_shared(tmp_path / "used")
    assert (tmp_path / "used").exists(), "its time is now that of its use"
    files.take_shared(tmp_path / "none" / "gone")


def test_a_base_model_is_read_once_and_only_where_nothing_tells_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, model = tmp_path / "memory", shutil.copytree(model_folder, tmp_path / "model")
    job = resolved(job_file(tmp_path, model, spec=LORA))
    real, read = files.digest, []
    monkeypatch.setattr(files, "digest", lambda *given: read.append(given) or real(*given))

    def told(job: JobFile = job) -> str:
        return identity.of_base(job, memory, "uid-1-0")

    known = told()
    assert [told(), told()] == [known] * 2 == [real(model, identity.ENDS)] * 2
    assert len(read) == 1
    file, seen = model / "config.json", (model / "config.json").stat()
    file.write_text(file.read_text().replace("256", "257"))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    assert told() == real(model, identity.ENDS) != known
    # By its place on the volume alone.
    file.rename(model / "old")
    file.write_text((model / "old").read_text().replace("257", "258"))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    assert told() == real(model, identity.ENDS)
    read.clear()
    assert told(job.model_copy(update={"digests": {str(model): "sha256:left"}})) == "sha256:left"
    hub = resolved(job_file(tmp_path, model, spec={**LORA, "model": {"volume": None, "hub": {"repo": "org/base"}}}))
    monkeypatch.setattr(source, "weights", lambda where, revision: tmp_path / ("a" * 40))
    paths = hub.paths.model_copy(update={"model": None})
    assert told(hub.model_copy(update={"paths": paths})) == f"org/base@{'a' * 40}"
    assert not read


@pytest.mark.parametrize("kept", [b"", b"half of it", numpy.zeros((2, 4))], ids=["empty", "torn", "other-rows"])
def test_what_cannot_be_these_rows_is_asked_again_and_each_attempt_writes_a_file_of_its_own(
    kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = resolved(job_file(tmp_path, tmp_path, spec=LORA, numProcPerNode=1, attempt=3))
    rows = Dataset.from_list([{"n": 0}] * 3)
    monkeypatch.setattr(reference_log_probs, "_digest", lambda rows: "rows")
    monkeypatch.setattr(reference_log_probs, "_ask", lambda *_: numpy.ones((2, 3), dtype=numpy.float32))
    folder = tmp_path / "storage" / reference_log_probs.FOLDER
    folder.mkdir()
    path = folder / f"{reference_log_probs.key(job, 'model', 'rows', 'cpu')}.npy"
    numpy.save(path, kept) if isinstance(kept, numpy.ndarray) else path.write_bytes(kept)
    earlier = folder / f"{path.stem}.{job.uid}-2.part"
    earlier.write_text("an earlier attempt is writing this")
    run: Any = SimpleNamespace(job=job, world=1, is_main=True, device="cpu")
    found = reference_log_probs._answered(run, None, "model", rows)
    assert found["ref_chosen_logps"][:] == [1, 1, 1]
    assert numpy.load(path).shape == (2, 3)
    assert earlier.exists()


def test_a_volume_that_cannot_keep_them_costs_no_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    files.keep_shared(tmp_path / "file" / "name", "uid", lambda file: file.write(b""))
    assert "/file/name is not kept: " in capsys.readouterr().out


def test_an_answer_that_is_no_number_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = resolved(job_file(tmp_path, tmp_path, spec=LORA, numProcPerNode=1))
    rows = Dataset.from_list([{"n": 0}] * 3)
    monkeypatch.setattr(reference_log_probs, "_digest", lambda rows: "rows")
    monkeypatch.setattr(reference_log_probs, "_ask", lambda *_: numpy.full((2, 3), numpy.nan))
    run: Any = SimpleNamespace(job=job, world=1, is_main=True, device="cpu")
    with pytest.raises(Exception, match=r"dpo.referenceModel: a log-probability of the reference is not finite"):
        reference_log_probs._answered(run, None, "model", rows)
    assert not (tmp_path / "storage" / reference_log_probs.FOLDER).exists()


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        ({"training": {"epochs": 2, "maxSteps": None}}, "precompute"),
        ({"training": {"epochs": 1.9, "maxSteps": None}}, "auto"),
        # Steps of 4 x 2 rows, of 40.
        ({"training": {"maxSteps": 10}}, "precompute"),
        ({"training": {"maxSteps": 9}}, "auto"),
        ({"training": {"maxSteps": 10}, "peft": {"method": "qlora"}}, "auto"),
        (
            {
                "training": {"maxSteps": 10},
                "dpo": {"referenceModel": {"mode": "explicit", "source": {"hub": {"repo": "a/b"}}}},
            },
            "explicit",
        ),
    ],
)
def test_it_is_asked_once_where_pairs_are_seen_twice(spec: dict[str, Any], mode: str, tmp_path: Path) -> None:
    job: Any = decided(resolved(job_file(tmp_path, tmp_path, spec=spec)), 40)
    assert job.spec.dpo.reference_model.mode == mode
