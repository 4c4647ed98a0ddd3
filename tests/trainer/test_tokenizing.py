"""The rows that ranks train on: token by token what TRL's own trainers make of them, made once, whole or not at all."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from tokenizers import models, processors
from trainer_kit import CURT, POLITE, PROMPTS, conversations, preference_pairs, write_jsonl
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer import data, stages
from trl_trainer.data import lines
from trl_trainer.errors import UserError
from trl_trainer.launch import processes
from trl_trainer.stages import preparation

MAX_LENGTH = 17
MARKED = (
    "{% if tools %}<|system|> {{ tools | length }} {% endif %}{% if thinking %}<|unk|> {% endif %}"
    "{% for m in messages %}<|{{ m.role }}|> {% if m.role == 'assistant' %}{% generation %}{{ m.content }} <|end|> "
    "{% endgeneration %}{% else %}{{ m.content }} <|end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
TRAINERS = {
    "SFTJob": (SFTTrainer, SFTConfig),
    "RewardJob": (RewardTrainer, RewardConfig),
    "DPOJob": (DPOTrainer, DPOConfig),
}


def texts(number: int) -> list[dict[str, Any]]:
    """Return plain pairs; some answers end with the end-of-text token already, some prompts are long."""
    return [
        {
            "prompt": " ".join(PROMPTS[(i + k) % 5] for k in range(1 + i % 5)),
            "chosen": f" {POLITE[i % 3]}" + " <|end|>" * (i % 2),
            "rejected": f" {CURT[i % 4]}",
        }
        for i in range(number)
    ]


def renamed(rows: list[dict[str, Any]], **names: str) -> list[dict[str, Any]]:
    return [{new: row[old] for old, new in names.items()} for row in rows]


PAIRS = preference_pairs(24)
COMPLETIONS = renamed(PAIRS, prompt="prompt", chosen="completion")


def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with tools, and with what else the chat template reads."""
    return [{**row, "tools": TOOLS, "chat_template_kwargs": {"thinking": i % 2 == 0}} for i, row in enumerate(rows)]


CASES = {
    "sft messages": ("SFTJob", conversations(20), {}),
    "sft messages, told more": ("SFTJob", told(conversations(20)), {}),
    "sft messages, assistant only": ("SFTJob", conversations(20), {"assistantOnlyLoss": True}),
    "sft prompt and completion": ("SFTJob", COMPLETIONS, {}),
    "sft prompt and completion, loss on all": ("SFTJob", COMPLETIONS, {"completionOnlyLoss": False}),
    "sft plain prompt and completion": ("SFTJob", renamed(texts(20), prompt="prompt", chosen="completion"), {}),
    "sft text": ("SFTJob", renamed(texts(20), chosen="text"), {}),
    "sft packed": ("SFTJob", conversations(40), {"packing": True}),
    "sft packed completions": ("SFTJob", COMPLETIONS, {"packing": True}),
    "reward": ("RewardJob", PAIRS, {}),
    "reward with margin, told more": ("RewardJob", told([{**row, "margin": 0.5} for row in PAIRS]), {}),
    "reward plain": ("RewardJob", texts(20), {}),
    "reward plain without prompt": ("RewardJob", renamed(texts(20), chosen="chosen", rejected="rejected"), {}),
    "dpo": ("DPOJob", PAIRS, {}),
    "dpo, told more": ("DPOJob", told(PAIRS), {}),
    "dpo plain": ("DPOJob", texts(20), {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def marked(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that marks assistant turns and reads tools, and a tokenizer that begins every text
    with a token of its own, as llama's does; its file says to pad and to cut, which TRL's calls do not."""
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("marked") / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = MARKED
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", backend.token_to_id("<|system|>"))]
    )
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    known = json.loads(path.read_text())
    known["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(known))
    return folder


def job(kind: str, folder: Path, model: Path, rows: list[dict[str, Any]], **section: Any) -> JobFile:
    """Return a resolved job on `rows`, some of them held out."""
    paths = {"storage": str(folder), "train": str(write_jsonl(folder / "train.jsonl", rows)), "model": str(model)}
    spec = {
        "model": {"volume": {"claimName": "models", "path": "tiny"}},
        "dataset": {"train": {"configMap": {"name": "data", "key": "train.jsonl"}}, "evalSplit": 0.3},
        "training": {"perDeviceBatchSize": 4, "maxLength": MAX_LENGTH},
        **({"sft": section} if kind == "SFTJob" else {}),
    }
    wire = {"kind": kind, "namespace": "a", "name": "b", "uid": "u", "paths": paths, "spec": spec}
    return resolve(JobFile.model_validate(wire))


def build(job: JobFile, tokenizer: Any, folder: Path, **more: Any) -> tuple[data.Written, Path]:
    """Write and tokenize the rows of a job; return them as written, and the folder of the tokenized ones."""
    stage = stages.of(job)
    written = data.write(job, stage, tokenizer, folder)
    name = data.build(job, stage, tokenizer, stages.tokenizing(job, stage, tokenizer), written, folder, **more)
    return written, folder / name


@pytest.mark.parametrize("case", list(CASES))
def test_the_rows_are_token_by_token_those_of_trls_own_trainer(case, tmp_path, marked, monkeypatch):
    kind, rows, section = CASES[case]
    monkeypatch.setattr(lines, "PART", 5)
    tokenizer = AutoTokenizer.from_pretrained(marked)
    given = job(kind, tmp_path, marked, rows, **section)
    written, folder = build(given, tokenizer, tmp_path / "data")
    ours = data.load(folder)

    trainer, config = TRAINERS[kind]
    settings = {**stages.of(given).settings(given), "dataset_num_proc": None}
    made = trainer(
        model=str(marked),
        args=config(output_dir=str(tmp_path / "out"), bf16=False, use_cpu=True, report_to=[], **settings),
        train_dataset=as_dataset(written.train), eval_dataset=as_dataset(written.eval), processing_class=tokenizer,
    )  # fmt: skip
    made._set_signature_columns_if_needed()
    for split, theirs in (("train", made.train_dataset), ("eval", made.eval_dataset)):
        found = getattr(ours, split)
        columns = [name for name in found.column_names if name != "length"]
        assert found.num_rows == theirs.num_rows > 0
        assert set(columns) == set(theirs.column_names) & set(made._signature_columns)
        for name in columns:
            assert found[name][:] == theirs[name][:], name
        assert found["length"][:] == [longest(row) for row in theirs]


def as_dataset(rows: lines.Lines) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows.take(range(len(rows))))


def longest(row: dict[str, Any]) -> int:
    answers = max(len(row[name]) for name in ("input_ids", "chosen_ids", "rejected_ids") if name in row)
    return len(row.get("prompt_ids", [])) + answers


@pytest.fixture
def plain(tmp_path: Path, model_folder: Path) -> SimpleNamespace:
    """A job on plain pairs, its tokenizer, and the folder that its data go to."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    return SimpleNamespace(
        job=job("DPOJob", tmp_path, model_folder, texts(20)), tokenizer=tokenizer, folder=tmp_path / "data"
    )


@pytest.mark.parametrize("model", [models.BPE(), models.Unigram()], ids=["BPE", "Unigram"])
def test_the_bindings_of_tokenizers_still_let_a_model_remember_more_words(model):
    model._resize_cache(preparation.CACHED_WORDS)


def test_rows_are_tokenized_once_and_found_again(plain, monkeypatch):
    told = []
    monkeypatch.setattr(lines, "PART", 5)
    written, folder = build(plain.job, plain.tokenizer, plain.folder, tell=lambda *said: told.append(said))
    assert told == [("tokenizing", done, 20) for done in (5, 10, 14, 19, 20)]
    first = data.load(folder)
    monkeypatch.setattr(processes, "in_parallel", lambda *_: pytest.fail("tokenized again"))
    assert build(plain.job, plain.tokenizer, plain.folder) == (written, folder)
    again = data.load(folder)
    assert again.train[:] == first.train[:]
    assert again.train._fingerprint == first.train._fingerprint, "TRL keeps reference log-probabilities by this"


@pytest.mark.parametrize("change", ["rows", "chat template", "maxLength", "vocabulary", "version"])
def test_other_rows_another_tokenizer_or_other_settings_are_tokenized_anew(change, plain, tmp_path, monkeypatch):
    first = build(plain.job, plain.tokenizer, plain.folder)[1]
    if change == "rows":
        write_jsonl(tmp_path / "train.jsonl", texts(21))
    elif change == "chat template":
        plain.tokenizer.chat_template += " "
    elif change == "vocabulary":
        plain.tokenizer.add_tokens(["order"])
    elif change == "version":
        monkeypatch.setattr("trl_trainer.data.arrow.version", lambda package: "next")
    else:
        training = plain.job.spec.training.model_copy(update={"max_length": 9})
        plain.job = plain.job.model_copy(update={"spec": plain.job.spec.model_copy(update={"training": training})})
    assert build(plain.job, plain.tokenizer, plain.folder)[1] != first
    assert not first.exists(), "the rows are kept twice"


def test_what_a_kill_left_is_not_taken_for_the_rows(plain):
    """Killed between two parts, and between the last part and the name: what is there is made again, whole."""
    whole = data.load(build(plain.job, plain.tokenizer, plain.folder)[1]).train[:]

    def kill_at(done: int) -> None:
        shutil.rmtree(next(plain.folder.glob("rows-*")))
        pid = os.fork()
        if pid == 0:
            build(plain.job, plain.tokenizer, plain.folder, tell=lambda _, so_far, __: so_far < done or os._exit(9))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert [path.suffix for path in plain.folder.glob("rows-*")] == [".part"]

    for done in (14, 20):
        kill_at(done)
        assert data.load(build(plain.job, plain.tokenizer, plain.folder)[1]).train[:] == whole
        assert [path.suffix for path in plain.folder.glob("rows-*")] == [""]


def test_a_process_that_dies_ends_the_preparation_at_once():
    def die(task: int) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    before = processes.children(os.getpid())
    with pytest.raises(ChildProcessError, match="ended with -9"):
        list(processes.in_parallel(die, [1, 2, 3], 2))
    assert processes.children(os.getpid()) == before


def test_what_goes_wrong_in_a_process_is_raised_and_the_order_of_tasks_is_kept():
    def answer(task: int) -> bytes:
        if task == 5:
            raise UserError("DataFormatError", "row 5")
        return bytes([task])

    found, before = [], processes.children(os.getpid())
    with pytest.raises(UserError, match="row 5"):
        found.extend(processes.in_parallel(answer, range(9), 3))
    assert b"".join(processes.in_parallel(answer, range(5), 3)) == bytes(range(5))
    assert processes.children(os.getpid()) == before


def test_rows_that_are_all_too_long_are_no_data_set(tmp_path, model_folder):
    given = job("RewardJob", tmp_path, model_folder, [{"chosen": "no " * 20, "rejected": "wait " * 20}] * 5)
    with pytest.raises(UserError, match=r"every one of 3 rows: .* within training.maxLength \(17\)"):
        build(given, AutoTokenizer.from_pretrained(model_folder), tmp_path / "data")
    assert not [path for path in (tmp_path / "data").glob("rows-*") if path.suffix != ".part"]
