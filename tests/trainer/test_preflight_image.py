"""What is refused because this image, or this device, cannot do it: before a row is read."""

from pathlib import Path
from typing import Any

import pytest
from trainer_kit import Warm, job_file
from transformers import Qwen3ForCausalLM

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer import stages, supervisor
from trl_trainer.errors import UserError
from trl_trainer.preflight import image


@pytest.fixture
def job(tmp_path: Path, model_folder: Path) -> Any:
    def make(processes: int = 1, **sections: Any) -> JobFile:
        spec = {"peft": {"method": "lora"}, **sections}
        path = job_file(tmp_path, model_folder, spec=spec, numProcPerNode=processes, hasGpus=True)
        return resolve(supervisor.read_job(str(path)))

    return make


def refusal(job: JobFile, device: str) -> str:
    with pytest.raises(UserError) as caught:
        image.check(job, stages.of(job), device)
    assert caught.value.reason == "InvalidSpec"
    return str(caught.value)


def test_a_plain_job_is_refused_nothing(job: Any) -> None:
    for attention in (None, "eager", "sdpa"):
        given = job(processes=2, model={"attnImplementation": attention})
        image.check(given, stages.of(given), "cpu")


@pytest.mark.parametrize(
    ("section", "value", "needs"),
    [
        ("peft", {"method": "qlora"}, "peft.method qlora needs a GPU"),
        ("training", {"optimizer": "adamw_bnb_8bit"}, "training.optimizer adamw_bnb_8bit needs a GPU"),
        ("training", {"precision": "fp16"}, "training.precision fp16: needs a GPU, and there is none"),
        ("training", {"activationOffloading": True}, "training.activationOffloading: needs a GPU, and there is none"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(job: Any, section: str, value: dict[str, Any], needs: str) -> None:
    assert needs in refusal(job(**{section: value}), "cpu")
    given = job(**{section: value})
    image.check(given, stages.of(given), "cuda")


@pytest.mark.parametrize(
    ("device", "processes", "method", "found"),
    [
        ("cpu", 2, "lora", "and there is no GPU: remove it"),
        ("cuda", 1, "lora", "and this job has one process: remove it"),
        ("cuda", 2, "qlora", "does not go with peft.method qlora"),
    ],
)
def test_offloading_is_refused_where_it_cannot_work(
    job: Any, device: str, processes: int, method: str, found: str
) -> None:
    said = refusal(job(processes, peft={"method": method}, fsdp={"cpuOffload": True}), device)
    assert said.startswith("fsdp.cpuOffload")
    assert found in said
    given = job(2, fsdp={"cpuOffload": True})
    image.check(given, stages.of(given), "cuda")


@pytest.mark.parametrize("optimizer", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_an_optimizer_of_bitsandbytes_is_refused_with_several_processes(job: Any, optimizer: str) -> None:
    said = refusal(job(processes=2, training={"optimizer": optimizer}), "cuda")
    assert said.startswith(
        f"training.optimizer: {optimizer} works with one process, and the job has 2: use adamw_torch"
    )


def test_qlora_needs_bf16(job: Any) -> None:
    found = job(peft={"method": "qlora"}, training={"precision": "fp32"})
    wanted = "peft.method qlora needs training.precision bf16, not fp32: remove precision, or use lora"
    assert refusal(found, "cuda") == wanted


def test_flash_attention_needs_bf16(job: Any) -> None:
    found = job(model={"attnImplementation": "flash_attention_2"}, training={"precision": "fp32"})
    assert "flash_attention_2 works with training.precision bf16, not fp32: remove it" in refusal(found, "cuda")


def test_an_attention_that_the_model_does_not_have_is_refused(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3ForCausalLM, "_supports_sdpa", False)
    said = refusal(job(model={"attnImplementation": "sdpa"}), "cuda")
    assert said.startswith("model.attnImplementation: this image cannot load sdpa here: remove it")
    assert "Qwen3ForCausalLM does not support" in said


def test_an_attention_that_this_image_cannot_load_ends_the_rank_before_a_row_is_read(
    warm: Warm, tmp_path: Path, model_folder: Path
) -> None:
    # There are no rows: whoever reads first says so.
    wanted = {"model": {"attnImplementation": "flash_attention_2"}, "training": {"precision": "bf16"}}
    ended = warm.run(job_file(tmp_path, model_folder, spec=wanted, numProcPerNode=1), world=1)
    record = ended.records[0]
    assert (ended.codes, record.outcome, record.reason) == ([10], "Failed", "InvalidSpec")
    assert record.message.startswith("model.attnImplementation: this image cannot load flash_attention_2 here: remove")
    assert "doesn't seem to be installed" in record.message
