"""Small jobs after what users of other trainers have reported: each ends as it is right, here or where it was found.

cases/<name> holds the job and its rows; a sibling is the same mistake in another stage or form.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
import yaml
from pyarrow import parquet
from trainer_kit import write_jsonl

from trl_contract.resolve import resolve
from trl_trainer import data, local, stages
from trl_trainer.errors import UserError
from trl_trainer.local.explain import explain
from trl_trainer.local.resource import read
from trl_trainer.models.tokenizer import load_tokenizer

CASES = Path(__file__).with_name("cases")
sys.path.insert(0, str(CASES))

from models import make  # noqa: E402

USER = {"role": "user", "content": "Where is my parcel?"}
SAID = {"role": "assistant", "content": "It leaves today."}
CURT = {"role": "assistant", "content": "No idea."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "track", "arguments": "{}"}}]}
FOUND = {"role": "tool", "content": "on its way"}


def sft(*rows: dict[str, Any], model: str = "base", **spec: Any) -> dict[str, Any]:
    """Return a sibling: a job on these rows, three times over."""
    return {"kind": "SFTJob", "rows": [*rows] * 3, "model": model, "spec": spec}


def dpo(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**sft(*rows, **more), "kind": "DPOJob"}


def reward(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**sft(*rows, **more), "kind": "RewardJob"}


def grpo(*rows: dict[str, Any], rewards: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    given = rewards or [{"name": "short", "length": {"target": 3}}]
    return {**sft(*rows, grpo={"numGenerations": 2, "rewards": given}, **more), "kind": "GRPOJob"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of all models, with the asked one in it."""
    folder = tmp_path_factory.mktemp("models")

    def of(name: str) -> Path:
        if not (folder / name).exists():
            make(folder, name)
        return folder

    return of


Case = str | dict[str, Any]
Open = Callable[[Case], tuple[Path, local.Places]]


@pytest.fixture
def opened(tmp_path: Path, models: Callable[[str], Path]) -> Open:
    """Return the job file of a case, and where its claims are here."""

    def open_(case: Case) -> tuple[Path, local.Places]:
        folder = CASES / case if isinstance(case, str) else _written(case, tmp_path)
        job = next(yaml.safe_load_all((folder / "job.yaml").read_text()))
        base = models(job["spec"]["model"]["volume"]["path"])
        return folder / "job.yaml", local.Places(tmp_path / "out", {"models": base, "data": folder})

    return open_


def _written(sibling: dict[str, Any], folder: Path) -> Path:
    path = sibling["spec"].pop("path", "train.jsonl")
    if path.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(sibling["rows"]), folder / path)
    else:
        write_jsonl(folder / path, sibling["rows"])
    spec = {
        "model": {"volume": {"claimName": "models", "path": sibling["model"]}},
        "dataset": {"train": {"volume": {"claimName": "data", "path": path}}},
        "training": {"maxSteps": 2, "perDeviceBatchSize": 2, "gradientAccumulationSteps": 1, "loggingSteps": 1},
        "peft": {"method": "none"},
        "storage": {"claimName": "out"},
    }
    for section, values in sibling["spec"].items():
        spec[section] = {**spec.get(section, {}), **values}
    job = {"apiVersion": "trl-operator.io/v1alpha1", "kind": sibling["kind"], "metadata": {"name": "sibling"}}
    (folder / "job.yaml").write_text(yaml.safe_dump({**job, "spec": spec}))
    return folder


def named(cases: list[tuple[Any, ...]]) -> list[Any]:
    """Give each case, or its sibling that follows it, a name."""
    found, last = [], ""
    for case, *expected in cases:
        last = case if isinstance(case, str) else f"{last.removesuffix('-sibling')}-sibling"
        found.append(pytest.param(case, *expected, id=last))
    return found


CALLED = {"messages": [USER, CALL, FOUND, SAID]}

REFUSED = [
    ("tools-untold", "InvalidSpec", r"model.chatTemplate: the rows have tool_calls, and the chat template does not"),
    (
        dpo({"prompt": [USER], "chosen": [CALL], "rejected": [CURT]}),
        "InvalidSpec",
        r"model.chatTemplate: the rows have tool_calls, and the chat template does not",
    ),
    ("role-human", "DataFormatError", r"row 1: .* its roles are human, gpt, and must be system, user, assistant and"),
    (
        dpo({"prompt": [USER], "chosen": [{**SAID, "role": "gpt"}], "rejected": [{**CURT, "role": "gpt"}]}),
        "DataFormatError",
        r"row 1: chosen must go on with an assistant turn after the prompt; its roles are gpt, and must be",
    ),
    ("json-wrapped", "DataFormatError", r"train.json: is one object over several lines: it must be a list of rows"),
    ("m-bnb4", "InvalidSpec", r"model: .* is quantized \(bitsandbytes\): give the model that it was made from"),
]


@pytest.mark.parametrize(("case", "reason", "message"), named(REFUSED))
def test_what_can_only_fail_is_refused_before_weights(case: Case, reason: str, message: str, opened: Open) -> None:
    with pytest.raises(UserError, match=message) as caught:
        explain(*opened(case))
    assert caught.value.reason == reason


NOTED = [
    ("orca-columns", r"columns that are not read: system"),
    (
        sft({"prompt": "a", "completion": "b", "system": "Be kind.", "images": ["a.png"]}),
        r"columns that are not read: images, system",
    ),
]


@pytest.mark.parametrize(("case", "finding"), named(NOTED))
def test_what_is_surely_unwanted_is_said(case: Case, finding: str, opened: Open, capsys: Any) -> None:
    assert explain(*opened(case)) == 0
    said = capsys.readouterr().out
    assert "# Worth a look" in said
    assert re.search(finding, said.split("# Worth a look")[1]), said


def learnt(opened: Open, case: Case) -> list[tuple[str, str]]:
    """Return of each training row what the model sees, and the parts of it that it learns, divided by |."""
    path, places = opened(case)
    job = resolve(local.here(read(path), places, 0))
    tokenizer, stage, folder = load_tokenizer(job), stages.of(job), Path(job.paths.storage) / "data"
    written = data.write(job, stage, tokenizer, folder)
    name = data.build(job, stage, tokenizer, stages.tokenizing(job, stage, tokenizer), written, folder)
    found = []
    for row in data.load(folder / name).train:
        ids = row.get("input_ids") or row["prompt_ids"] + row["chosen_ids"]
        labels = row.get("labels") or ids
        parts = "".join(tokenizer.decode([i]) if label != -100 else "\0" for i, label in zip(ids, labels, strict=True))
        found.append((tokenizer.decode(ids), "|".join(part for part in parts.split("\0") if part)))
    return found


TOLD = {"messages": [USER, {**CURT, "weight": 0}, USER, {**SAID, "weight": 1}]}
COMPLETED = {"prompt": [USER], "completion": [{**CURT, "weight": 0}, USER, SAID]}
SAYS = '"arguments": {"q": "Where is my parcel?", "n": 1}}'
LEARNT: list[tuple[Case, str, str]] = [
    ("tools-tojson", SAYS, SAYS),
    (
        dpo({"prompt": [USER], "chosen": [CALL], "rejected": [CURT]}, model="tools"),
        "<tool>track()</tool>",
        "<tool>track()</tool>",
    ),
    ("pq-tools-null", "<tool>track(a=Where is my parcel? )</tool>", "<tool>track(a=Where is my parcel? )</tool>"),
    (
        dpo(
            {"prompt": [USER], "chosen": [SAID], "rejected": [CURT], "tools": [{"name": "f", "parameters": {"a": 1}}]},
            {"prompt": [USER], "chosen": [SAID], "rejected": [CURT], "tools": [{"name": "g", "parameters": {"b": 1}}]},
            model="tools", path="train.parquet",
        ),
        'tools: {"name": "f", "parameters": {"a": 1}}<|im_end|>', "It leaves today.",
    ),
    (
        "weights",
        "<|im_start|>assistant\nbad<|im_end|>\n<|im_start|>user\nWhere is my parcel?<|im_end|>\n",
        "<|im_start|>assistant\n|Where is my parcel?<|im_end|>\n",
    ),
    (
        sft(TOLD, model="think"),
        "assistant\nNo idea.<|im_end|>\n<|im_start|>user\nWhere",
        "assistant\n|Where is my parcel?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nIt leaves today.",
    ),
    (sft(COMPLETED), "No idea.", "Where is my parcel?<|im_end|>\n<|im_start|>assistant\nIt leaves today.<|im_end|>"),
    (sft(TOLD, model="genin", sft={"assistantOnlyLoss": True}), "No idea.", "It leaves today.<|im_end|>"),
    (sft(TOLD, sft={"packing": True}), "No idea.", "assistant\n|Where is my parcel?<|im_end|>"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "seen", "taught"), named(LEARNT))
def test_the_model_sees_and_learns_what_the_rows_say(case: Case, seen: str, taught: str, opened: Open) -> None:
    rows = learnt(opened, case)
    assert seen in "".join(text for text, _ in rows)
    assert taught in "".join(part for _, part in rows), rows[0]
    assert "No idea." not in "".join(part for _, part in rows)
