"""A DPO job under the real supervisor and the real torchrun: two ranks, FSDP2, progress, export, exit record."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from trainer_kit import (
    Supervised,
    Warm,
    conversations,
    job_file,
    metrics,
    mounted,
    preference_pairs,
    supervise,
    write_jsonl,
)

from trl_contract.report import ProgressReport
from trl_trainer import files
from trl_trainer.checkpoints import checkpoint

TOKEN = "a-projected-token"


@dataclass
class Finished:
    """The run that this module's tests look at."""

    folder: Path
    run: Supervised
    reports: list[ProgressReport]
    tokens: list[str | None]

    @property
    def work(self) -> Path:
        return self.folder / "storage" / "uid-1"


@pytest.fixture(scope="module")
def finished(warm: Warm, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("dpo")
    write_jsonl(folder / "train.jsonl", preference_pairs(60))
    write_jsonl(folder / "eval.jsonl", preference_pairs(9, seed=8))
    (folder / "token").write_text(TOKEN + "\n")
    reports: list[ProgressReport] = []
    tokens: list[str | None] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reports.append(ProgressReport.model_validate_json(body))
            tokens.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    job = job_file(
        folder,
        model_folder,
        spec={
            "training": {"maxSteps": 24, "learningRate": 5e-3},
            "dataset": {"eval": {"volume": {"claimName": "data", "path": "eval.jsonl"}}},
            "checkpoint": {"everySteps": 5, "keep": 2},
            "evaluation": {"everySteps": 12, "samplePrompts": ["cancel my plan"], "maxExamples": 64},
        },
        paths={
            "storage": str(folder / "storage"),
            "model": str(model_folder),
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
        },
    )
    run = supervise(
        mounted(job, attempt=2),
        folder,
        {
            **warm.environment(),
            "KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{server.server_port}/report",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(folder / "token"),
        },
    )
    yield Finished(folder, run, reports, tokens)
    server.shutdown()


def test_the_run_succeeds_and_its_record_says_what_it_made(finished: Finished) -> None:
    assert finished.run.code == 0, finished.run.log
    record = finished.run.record
    assert (record.outcome, record.step, record.rank) == ("Succeeded", 24, 0)
    assert record.progress is not None
    assert {record.progress.attempt, *(report.trl.attempt for report in finished.reports if report.trl)} == {2}
    assert [(artifact.type, artifact.uri) for artifact in record.artifacts] == [("model", "uid-1/final")]
    final = finished.work / "final"
    assert record.artifacts[0].digest == files.digest(final)
    paths = [path for path in final.rglob("*") if path.is_file()]
    assert record.artifacts[0].size == sum(path.stat().st_size for path in paths)
    saved = list(finished.work.glob("checkpoint-*"))
    assert saved
    for folder in (final, *saved):
        kept = [p for p in folder.rglob("*") if p.is_file() and ~p.stat().st_mode & folder.stat().st_mode & 0o444]
        assert kept == [], "whoever may read the folder may read its files"
    told = [report.trl.artifacts for report in finished.reports if report.trl]
    assert [found for found in told if found] == [record.artifacts], "the last report says it too"
    assert record.progress.artifacts == []
    assert record.progress.gradient_checkpointing is False, "without GPUs activations are kept"
    # What bitsandbytes says on CPUs that compute in bf16.
    assert "kernels-community" not in finished.run.log


def test_final_is_the_model_of_the_last_step_and_loads_with_from_pretrained(finished: Finished) -> None:
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished.work / "final")
    tokenizer = AutoTokenizer.from_pretrained(finished.work / "final")
    assert tokenizer.chat_template
    last = finished.work / "checkpoint-24" / "pytorch_model_fsdp_0"
    dcp_to_torch_save(last, finished.folder / "last.pt")
    trained = torch.load(finished.folder / "last.pt", weights_only=True)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_training_raises_the_preference_accuracy(finished: Finished) -> None:
    assert finished.run.record.progress is not None
    evaluation = finished.run.record.progress.evaluation
    assert evaluation is not None
    before = {metric.name: float(metric.value) for metric in evaluation.before}
    after = {metric.name: float(metric.value) for metric in evaluation.after}
    assert before["preference_accuracy"] < 0.2
    assert after["preference_accuracy"] > 0.8
    assert before["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert after["loss"] < 0.3


def test_preference_accuracy_is_the_share_of_pairs_by_summed_log_probability(finished: Finished) -> None:
    """Computed once more by hand, pair by pair, from the exported model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished.work / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.work / "final")

    def logp(prompt: list[dict[str, str]], reply: list[dict[str, str]]) -> float:
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(prompt + reply, return_dict=True)["input_ids"]
        with torch.no_grad():
            table = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(table[i - 1, whole[i]]) for i in range(len(start), len(whole)))

    rows = [json.loads(line) for line in (finished.work / "data" / "eval.jsonl").read_text().splitlines()]
    wins = [logp(row["prompt"], row["chosen"]) > logp(row["prompt"], row["rejected"]) for row in rows]
    assert finished.run.record.progress is not None
    assert finished.run.record.progress.evaluation is not None
    after = {m.name: float(m.value) for m in finished.run.record.progress.evaluation.after}
    assert len(rows) == 9  # odd, so that one rank's batch is padded, and the padding must not count
    assert after["preference_accuracy"] == pytest.approx(sum(wins) / 9, abs=1e-5)


def test_reports_reach_the_receiver_with_rising_steps_and_a_token(finished: Finished) -> None:
    assert set(finished.tokens) == {f"Bearer {TOKEN}"}
    ours = [report.trl for report in finished.reports if report.trl is not None]
    assert len(ours) == len(finished.reports), "transformers' own callback must be off"
    assert ours[0].activity == "loading"
    assert [report.step for report in ours] == sorted(report.step for report in ours)
    assert ours[-1].step == ours[-1].total_steps == 24
    assert ours[-1].trainable_parameters == 76992
    assert ours[-1].evaluation is not None
    assert finished.reports[-1].trainer_status.progress_percentage == 100
    assert {"loss", "rewards/margins", "grad_norm"} <= {metric.name for metric in ours[-1].metrics}


def test_only_the_newest_checkpoints_stay_and_each_verifies(finished: Finished) -> None:
    kept = checkpoint.folders(finished.work)
    assert [step for step, _ in kept] == [24, 20]
    for step, folder in kept:
        manifest = checkpoint.verify(folder, "uid-1")
        assert (manifest.step, manifest.world_size) == (step, 2)
    assert finished.run.record.progress is not None
    assert [found.step for found in finished.run.record.progress.checkpoints] == [20, 24]


def test_every_step_is_in_metrics_jsonl_and_evaluation_too(finished: Finished) -> None:
    lines = metrics(finished.folder)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 25))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 12, 24, 24]


def test_samples_show_the_answers_before_and_after(finished: Finished) -> None:
    rows = [json.loads(line) for line in (finished.work / "final" / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["cancel my plan"]
    assert rows[0]["before"] != rows[0]["after"]


def test_the_log_says_which_rank_speaks(finished: Finished) -> None:
    assert "[rank0] " in finished.run.log
    assert "[rank1] " in finished.run.log


def test_the_result_is_the_next_jobs_model(finished: Finished, warm: Warm, tmp_path: Path) -> None:
    """SFT with LoRA on it, then DPO with LoRA on that: the merged folder is a complete model each time."""
    model = finished.work / "final"
    for kind, rows in (("SFTJob", conversations(30)), ("DPOJob", preference_pairs(30))):
        folder = tmp_path / kind
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", rows)
        job = job_file(
            folder,
            model,
            kind,
            numProcPerNode=1,
            spec={"peft": {"method": "lora", "r": 4}, "training": {"maxSteps": 3}},
        )
        ended = warm.run(job, world=1)
        assert ended.codes == [0], ended.logs
        uris = [artifact.uri for artifact in ended.records[0].artifacts]
        assert uris == ["uid-1/final", "uid-1/final/adapter"]
        model = folder / "storage" / "uid-1" / "final"


def test_adapter_on_its_base_equals_the_merged_model(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    write_jsonl(tmp_path / "train.jsonl", preference_pairs(30))
    spec = {"peft": {"method": "lora", "r": 4}, "training": {"maxSteps": 4, "learningRate": 2e-2}}
    ended = warm.run(job_file(tmp_path, model_folder, spec=spec))
    assert ended.codes == [0, 0], ended.logs
    final = tmp_path / "storage" / "uid-1" / "final"
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    ids = torch.arange(3, 20)[None]
    untrained = base(ids).logits
    adapted = PeftModel.from_pretrained(base, final / "adapter")(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(final)(ids).logits
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(untrained, merged, atol=1e-3)
