"""Small jobs after what users of other trainers have reported: each ends as it is right, here or where it was found.

cases/<name> holds the job and its rows; a sibling is the same mistake in another stage or form.
"""

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
import yaml
from pyarrow import parquet
from trainer_kit import Warm, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_contract.report import ExitRecord
from trl_contract.resolve import resolve
from trl_trainer import data, local, stages
from trl_trainer.errors import UserError
from trl_trainer.local.explain import explain
from trl_trainer.local.resource import read
from trl_trainer.models.tokenizer import load_tokenizer

CASES = Path(__file__).with_name("cases")
sys.path.insert(0, str(CASES))

from models import CHATML, make  # noqa: E402

USER = {"role": "user", "content": "Where is my parcel?"}
SAID = {"role": "assistant", "content": "It leaves today."}
CURT = {"role": "assistant", "content": "No idea."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "track", "arguments": "{}"}}]}
FOUND = {"role": "tool", "content": "on its way"}


def sft(
    *rows: dict[str, Any], model: str = "base", of_model: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return a sibling: a job on these rows, three times over."""
    return {"kind": "SFTJob", "rows": [*rows] * 3, "model": model, "spec": {"model": of_model or {}, **spec}}


def dpo(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**sft(*rows, **more), "kind": "DPOJob"}


def reward(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**sft(*rows, **more), "kind": "RewardJob"}


def grpo(
    *rows: dict[str, Any],
    rewards: list[dict[str, Any]] | None = None,
    generation: dict[str, Any] | None = None,
    of_grpo: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    given = rewards or [{"name": "short", "length": {"target": 3}}]
    section = {"numGenerations": 2, "rewards": given, "generation": generation or {"maxCompletionLength": 8}}
    section |= of_grpo or {}
    return {**sft(*rows, grpo=section, **more), "kind": "GRPOJob"}


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

PAIR = {"prompt": [USER], "chosen": [SAID], "rejected": [CURT]}
STOPPING = {"metric": "loss", "mode": "min"}
SWITCHED = {"dataset": {"chatTemplateKwargs": {"enable_thinking": False}}}
BROKEN = {"chatTemplate": "{% for m in messages %}\n{{ m.content "}
HELLO = {"samplePrompts": ["Hello"]}
WITHOUT_DEVELOPER = {"chatTemplate": CHATML.replace("in messages %}", "in messages if m.role != 'developer' %}")}
SYSTEM = {"chatTemplate": "{% if messages[0].role != 'system' %}{{ raise_exception('who?') }}{% endif %}" + CHATML}

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
    (
        "aol-cut",
        "DataFormatError",
        r"every one of 7 rows is dropped: .* learnt is within training.maxLength \(64\); .* 301 tokens: raise it",
    ),
    ("pc-cut", "DataFormatError", r"every one of 7 rows is dropped: .* learnt is within training.maxLength \(64\)"),
    (
        reward({"prompt": [USER], "chosen": [SAID], "rejected": [CURT]}, training={"maxLength": 20}),
        "DataFormatError",
        r"every one of 2 rows is dropped: .* learnt is within training.maxLength \(20\)",
    ),
    ("everysteps-disabled", "InvalidSpec", r"spec.evaluation: everySteps and everyEpochs need evaluation: set enabled"),
    (
        dpo(PAIR, dataset={"evalSplit": 0}, evaluation={"everySteps": 1, "earlyStopping": STOPPING}),
        "InvalidSpec",
        r"evaluation.earlyStopping needs held-out rows: give dataset.eval or evalSplit",
    ),
    ("polynomial", "InvalidSpec", r"spec.training: .*polynomial ends at learning rate 1e-7: raise learningRate"),
    (
        reward(PAIR, training={"lrScheduler": "polynomial", "learningRate": 1e-7}),
        "InvalidSpec",
        r"polynomial ends at learning rate 1e-7: raise learningRate above it, or use linear$",
    ),
    (
        "lora-partly-wrong",
        "InvalidSpec",
        r"peft.targetModules: the model has no W_pack; the nearest names are",
    ),
    (
        dpo(PAIR, model="gptoss", peft={"method": "lora", "targetModules": ["q_proj", "gate_up_proj"]}),
        "InvalidSpec",
        r"peft.targetModules: gate_up_proj is no module .*, but a parameter: name it in peft.targetParameters",
    ),
    (
        dpo(PAIR, model="gptoss", peft={"method": "lora", "targetParameters": ["experts.gate_up"]}),
        "InvalidSpec",
        r"peft.targetParameters: the model has no experts.gate_up; the nearest names are gate_up_proj,",
    ),
    (
        reward(PAIR, peft={"method": "lora", "modulesToSave": ["embed_token"]}),
        "InvalidSpec",
        r"peft.modulesToSave: the model has no embed_token; the nearest names are embed_tokens,",
    ),
    (
        sft({"text": "Hello"}, of_model={"addTokens": ["<a>"]}, peft={"method": "lora", "modulesToSave": ["lm_head"]}),
        "InvalidSpec",
        r"peft.modulesToSave: lm_head cannot go with model.addTokens, which trains its new rows: remove it",
    ),
    (
        sft(
            {"text": "Hello"},
            model="phi",
            of_model={"addTokens": ["<a>"]},
            peft={"method": "lora", "targetModules": ["q_proj"]},
        ),
        "InvalidSpec",
        r"model.addTokens: lm_head has a bias, which peft leaves out .*: set peft.method to none",
    ),
    (
        sft({"messages": [USER, SAID]}, model="qwenmoe", peft={"method": "lora", "dropout": 0.1}),
        "InvalidSpec",
        r"^peft.dropout: 0.1 does not go with a mixture of experts .*: remove it, or name layers in peft.targetModules",
    ),
    (
        dpo(PAIR, peft={"method": "lora", "targetModules": ["q_proj", "mlp"]}),
        "InvalidSpec",
        r"^peft.targetModules: mlp is a Qwen3MLP, and peft .*: name layers in it, like down_proj, gate_proj, up_proj$",
    ),
    (
        dpo(PAIR, peft={"method": "lora", "targetModules": ["input_layernorm"]}),
        "InvalidSpec",
        r"^peft.targetModules: input_layernorm is a Qwen3RMSNorm, and peft puts an adapter on layers only: remove it$",
    ),
    (
        reward(PAIR, peft={"method": "lora", "targetModules": ["score"]}),
        "InvalidSpec",
        r"^peft.targetModules: score is trained in full beside the adapter: name other layers, or all-linear$",
    ),
    ("lora-all-head", "InvalidSpec", r"peft.targetModules: SFTJob trains no adapter on the output head: remove it"),
    (
        "lora-gpt2-long",
        "InvalidSpec",
        r"training.maxLength: a row of 981 tokens is longer than the 256 positions .* GPT2LMHeadModel has: set it to",
    ),
    (
        sft({"text": "Hello"}, model="gpt2", dataset={"eval": {"inline": [{"text": "a" * 300}]}}),
        "InvalidSpec",
        r"training.maxLength: a row of 301 tokens is longer than the 256 positions",
    ),
    (
        grpo({"prompt": "Hello"}, model="gpt2", generation={"maxCompletionLength": 300}),
        "InvalidSpec",
        r"grpo.generation.maxCompletionLength: 300 tokens after a prompt of 5 are more than the 256 positions",
    ),
    (
        sft({"text": "Hello"}, model="gpt2", evaluation={"samplePrompts": ["Hello", "a" * 129]}),
        "InvalidSpec",
        r"evaluation.samplePrompts\[1\]: 'a+': 129 tokens and an answer of up to 128 are more than the 256 positions",
    ),
    (
        grpo({"prompt": [{"role": "system", "content": "Help."}, USER]}, of_model=SYSTEM, evaluation=HELLO),
        "InvalidSpec",
        r"evaluation.samplePrompts\[0\]: 'Hello': the chat template refuses it \(who\?\): change it, dataset.systemPr",
    ),
    (
        "grpo-answer-missing",
        "DataFormatError",
        r"train.jsonl, row 7: grpo.rewards.right compares with column answer, and the row has prompt; dataset.columns",
    ),
    (
        grpo(
            {"prompt": "Hello", "n": "4"},
            {"prompt": "Hello", "n": "four"},
            rewards=[{"name": "sum", "accuracy": {"column": "n", "numeric": True}}],
        ),
        "DataFormatError",
        r"train.jsonl, row 2: grpo.rewards.sum: column n has no number: 'four'",
    ),
    (
        grpo({"prompt": [USER], "chat_template_kwargs": {"enable_thinking": False}}),
        "DataFormatError",
        r"row 1: chat_template_kwargs of a prompt never .*: remove the column, .* in dataset.chatTemplateKwargs",
    ),
    (
        sft({"messages": [USER, SAID]}, dataset={"chatTemplateKwargs": {"add_generation_prompt": True}}),
        "InvalidSpec",
        r"dataset.chatTemplateKwargs.add_generation_prompt: the trainer says that itself: remove it",
    ),
    (
        sft({"messages": [USER, SAID], "chat_template_kwargs": {"return_dict": True}}),
        "DataFormatError",
        r"row 1: chat_template_kwargs.return_dict: the trainer says that itself: remove it",
    ),
    (
        dpo({**PAIR, "chat_template_kwargs": {"chat_template": "x"}}),
        "DataFormatError",
        r"row 1: chat_template_kwargs.chat_template: the trainer says that itself: remove it",
    ),
    (
        sft({"messages": [USER, SAID], "chat_template_kwargs": {"enable_thinking": True}}, model="switch", **SWITCHED),
        "DataFormatError",
        r"row 1: the chat template refuses it: it thinks",
    ),
    (
        sft({"messages": [USER, SAID]}, of_model=BROKEN),
        "InvalidSpec",
        r"^model.chatTemplate: the chat template is no Jinja, line 2: unexpected end of template, .*: mend it$",
    ),
    (
        sft({"messages": [USER, SAID]}, of_model={"eosToken": "<|im_ends|>"}),
        "InvalidSpec",
        r"model.eosToken: <\|im_ends\|> is no token of the model; the nearest special ones are <\|im_end\|>, ",
    ),
    (
        sft({"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}),
        "DataFormatError",
        r"row 1: label says whether the answer is good, and such unpaired rows \(KTO\) are trained by no kind",
    ),
    (
        dpo({"prompt": [USER], "completion": [SAID], "label": False}),
        "DataFormatError",
        r"row 1: label says whether .* give dpo or reward pairs of chosen and rejected",
    ),
    (
        sft({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}, SAID]}),
        "DataFormatError",
        r"row 1: .*image",
    ),
    (
        grpo({"prompt": "a"}, training={"extraArgs": {"min_p": "a lot"}}),
        "InvalidSpec",
        r"training.extraArgs.min_p: .*unable to parse string as a number, or remove it; got 'a lot'",
    ),
    (
        sft(
            {"text": "a"},
            dataset={
                "train": None,
                "evalSplit": 0,
                "maxBadRows": 9,
                "mixture": [
                    {"inline": [{"text": "a"}, {"text": 1}]},
                    {"inline": [{"text": 2}, {"text": 3}]},
                ],
            },
        ),
        "DataFormatError",
        r"mixture\[1\]: none of the 2 rows of .* is left: 2 are malformed, the first in row 1: text is a num",
    ),
    (
        dpo(PAIR, evaluation={"everySteps": 1, "earlyStopping": {**STOPPING, "metric": "los"}}),
        "InvalidSpec",
        r"evaluation.earlyStopping.metric: los is not one of .*, loss, .*, rewards/margins, rewards/rejected$",
    ),
    (
        grpo({"prompt": "a"}, evaluation={"everySteps": 1, "earlyStopping": {**STOPPING, "metric": "rewards/no/mean"}}),
        "InvalidSpec",
        r"evaluation.earlyStopping.metric: rewards/no/mean is not one of .*, reward_std, rewards/short/mean, ",
    ),
    ("m-bnb4", "InvalidSpec", r"model: .* is quantized \(bitsandbytes\): give the model that it was made from"),
]


@pytest.mark.parametrize(("case", "reason", "message"), named(REFUSED))
def test_what_can_only_fail_is_refused_before_weights(case: Case, reason: str, message: str, opened: Open) -> None:
    with pytest.raises(UserError, match=message) as caught:
        explain(*opened(case))
    assert caught.value.reason == reason


ODD: list[tuple[str, Any, str]] = [
    ("config.json", {"num_hidden_layers": 3}, r"config.json of .* cannot be read: .*must be equal"),
    ("config.json", {"hidden_size": "32"}, r"config.json of .* cannot be read: .*expected int, got str"),
    ("config.json", {"dtype": "nope"}, r"config.json of .* cannot be read: .*no attribute 'nope'"),
    ("config.json", {"hidden_act": "nope"}, r"makes no model of the config.json .*: KeyError: 'nope'; mend it"),
    ("config.json", {"quantization_config": {"bits": 4}}, r"is quantized \(by a method it does not name\)"),
    ("config.json", {"compression_config": {"quant_method": "compressed-tensors"}}, r"is quantized \(compressed-tens"),
    ("generation_config.json", "{", r"generation_config.json cannot be read: .* mend or remove it"),
]


@pytest.mark.parametrize(("file", "odd", "message"), ODD)
def test_an_odd_base_is_refused_before_weights(
    file: str, odd: Any, message: str, opened: Open, models: Callable[[str], Path], tmp_path: Path
) -> None:
    base = models("base")
    shutil.copytree(base / "base", base / tmp_path.name)
    path = base / tmp_path.name / file
    path.write_text(odd if isinstance(odd, str) else json.dumps({**json.loads(path.read_text()), **odd}))
    with pytest.raises(UserError, match=f"(?s)^model: .*{message}") as caught:
        explain(*opened(sft({"text": "a"}, model=tmp_path.name)))
    assert caught.value.reason == "InvalidSpec"


def test_a_base_that_is_an_adapter_is_refused_with_the_remedy(
    opened: Open, models: Callable[[str], Path], tmp_path: Path
) -> None:
    (models("base") / tmp_path.name).mkdir()
    (models("base") / tmp_path.name / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is an adapter, and a base is a whole model: of a job's result give final"):
        explain(*opened(sft({"text": "a"}, model=tmp_path.name)))


NOTED = [
    (
        sft({"messages": [{"role": "developer", "content": "Be kind."}, USER, SAID]}, of_model=WITHOUT_DEVELOPER),
        r"- model.chatTemplate: the chat template leaves out the turns of role developer: nothing of it is learnt",
    ),
    (
        dpo({"prompt": [USER], "chosen": [{**SAID, "reasoning_content": "Hm."}], "rejected": [SAID]}),
        r"- model.chatTemplate: the chat template leaves out reasoning_content of messages: nothing of it is learnt",
    ),
    (
        sft({"text": "Hello"}, evaluation={"everySteps": 3}),
        r"- evaluation.everySteps 3: the job has 2 steps, so nothing is evaluated during training: lower it",
    ),
    (
        dpo(PAIR, checkpoint={"everyEpochs": 4}),
        r"- checkpoint.everyEpochs 4: the job has 2 steps, so no checkpoint is published before the last step: lower",
    ),
    (
        reward(PAIR, dataset={"evalSplit": 0.4}, evaluation={"everySteps": 1, "earlyStopping": STOPPING}),
        r"- evaluation.earlyStopping can never act: patience 3 needs 4 evaluations before .*, and there are 1: ev",
    ),
    (
        "eosother",
        r"- model.eosToken: the chat template ends turns in <\|im_end\|>, and the model stops at <\|endoftext\|>; .*"
        r" set eosToken to <\|im_end\|>",
    ),
    (
        grpo({"prompt": [USER]}, model="eosother"),
        r"- model.eosToken: the chat template ends turns in <\|im_end\|>, and the model",
    ),
    (
        "noend",
        r"- model.chatTemplate: .* ends the assistant's turns in no special token.*: set one that ends them in <",
    ),
    (dpo(PAIR, model="noend"), r"- model.chatTemplate: .* ends the assistant's turns in no special token"),
    (
        "aol-genout",
        r"- sft.assistantOnlyLoss: the chat template ends turns in <\|im_end\|> outside of {% generation %}",
    ),
    (
        "alpaca",
        r"- prompts are plain text, and the chat template of the model is not used: .*, set dataset.asConversation",
    ),
    ("alpaca", r"- in 7 of 7 rows that were looked at no space divides prompt and answer: put one, or a line break"),
    (dpo({"prompt": "a", "chosen": "b", "rejected": "c"}), r"- in 2 of 2 rows .* no space divides prompt and answer"),
    ("llama-bos-text", r"- 7 of 7 sequences that were looked at begin with <\|bos\|> twice: the text has it, and the"),
    (sft({"text": "Hello"}, model="addeos"), r"- 2 of 2 sequences that were looked at end with <\|im_end\|> twice"),
    (
        reward({"chosen": "<|bos|>yes", "rejected": "<|bos|>no"}, model="llama"),
        r"- 4 of 4 sequences that were looked at begin with <\|bos\|> twice",
    ),
    ("eval-cut", r"- evaluation is skipped: 2 of 2 held-out rows are dropped: nothing .* training.maxLength 64"),
    (
        sft({"text": "Hello"}, dataset={"eval": {"inline": [{"text": "a"}, {"text": "a" * 2000}]}}),
        r"- 1 of 2 held-out rows are cut: longer than training.maxLength 1024",
    ),
    (
        dpo(PAIR, dataset={"evalSplit": 0}, evaluation={"everySteps": 1}),
        r"- evaluation is skipped: no rows are held out",
    ),
    (
        sft({"text": "a"}, training={"warmupSteps": 5}),
        r"- training.warmupSteps 5: the job has 2 steps, so 1 of them warm up: lower it",
    ),
    (
        sft({"text": "a"}, model="gptoss", peft={"method": "lora"}),
        r"- peft.targetParameters: the experts of the model, \d+ % of its parameters, get no adapter: add"
        r" mlp.experts.down_proj, mlp.experts.gate_up_proj\n",
    ),
    (
        grpo(
            {"prompt": "a"},
            model="qwenmoe",
            peft={"method": "lora", "targetModules": ["q_proj"], "targetParameters": ["mlp.experts.gate_up_proj"]},
        ),
        r"- peft.targetParameters: the experts .* get no adapter: add mlp.experts.down_proj\n",
    ),
    (
        dpo(PAIR, dataset={"chatTemplateKwargs": {"thinking": False}}),
        r"- dataset.chatTemplateKwargs: the chat template knows no thinking",
    ),
    (
        sft({"text": "Hello"}, dataset={"chatTemplateKwargs": {"thinking": False}}),
        r"- dataset.chatTemplateKwargs: the rows are plain text, and no chat template is used",
    ),
    (
        reward(PAIR, of_model={"addTokens": ["<think>", "<|im_end|>"]}),
        r"- model.addTokens: the embeddings have 261 rows, and 1 more are added for <think>, <\|im_end\|>\n",
    ),
    (
        dpo({**PAIR, "chat_template_kwargs": {"thinking": False}}),
        r"columns that are not read: chat_template_kwargs.thinking \(3 rows\)",
    ),
    ("orca-columns", r"columns that are not read: system \(8 rows\)"),
    (
        sft({"prompt": "a", "completion": "b", "system": "Be kind.", "images": ["a.png"]}),
        r"columns that are not read: images \(3 rows\), system \(3 rows\)",
    ),
]


@pytest.mark.parametrize(("case", "finding"), named(NOTED))
def test_what_is_surely_unwanted_is_said(case: Case, finding: str, opened: Open, capsys: Any) -> None:
    assert explain(*opened(case)) == 0
    said = capsys.readouterr().out
    assert "# Worth a look" in said
    assert re.search(finding, said.split("# Worth a look")[1]), said


def test_the_answers_of_held_out_rows_are_looked_at_too(opened: Open, tmp_path: Path) -> None:
    rewards = [{"name": "half", "accuracy": {"column": "n", "latex": True}}]
    held = {"eval": {"volume": {"claimName": "data", "path": "held.jsonl"}}}
    write_jsonl(tmp_path / "held.jsonl", [{"prompt": "Hello", "n": r"\frac{1}{2}"}, {"prompt": "Hello", "n": " "}])
    with pytest.raises(UserError, match=r"held.jsonl, row 2: grpo.rewards.half: column n has no formula"):
        explain(*opened(grpo({"prompt": "Hello", "n": r"\sqrt{2}"}, rewards=rewards, dataset=held)))


@pytest.mark.parametrize(("strategy", "is_said"), [("bfd", True), ("bfd_split", False), ("wrapped", False)])
def test_rows_that_packing_spreads_over_sequences_are_not_said_to_be_cut(
    strategy: str, is_said: bool, opened: Open, capsys: Any
) -> None:
    packing = {"packing": True, "packingStrategy": strategy}
    assert explain(*opened(sft({"text": "Hello " * 40}, sft=packing, training={"maxLength": 16}))) == 0
    assert ("training rows are cut" in capsys.readouterr().out) == is_said


def test_a_held_out_row_is_cut_whatever_packing_does_to_those_that_are_trained_on(opened: Open, capsys: Any) -> None:
    packing = {"packing": True, "packingStrategy": "wrapped"}
    assert explain(*opened(sft(*[{"text": "Hello " * 40}] * 8, sft=packing, training={"maxLength": 16}))) == 0
    assert re.search(r"held-out rows? (is|are) cut", capsys.readouterr().out)


def test_a_preset_of_rewards_is_shown_in_full(opened: Open, capsys: Any) -> None:
    preset = {"rewards": [], "rewardPreset": "customer-service", "normalizeWeights": True}
    assert explain(*opened(grpo({"prompt": [USER]}, of_grpo=preset))) == 0
    shown = yaml.safe_load(capsys.readouterr().out.split("# Rewards\n")[1].split("\n\n")[0])
    assert [reward["name"] for reward in shown] == ["empathy", "action", "courtesy", "no-slang", "length"]
    assert sum(reward["weight"] for reward in shown) == pytest.approx(1)
    assert "sorry" in shown[0]["keyword"]["words"]


def trained(opened: Open, warm: Warm, case: Case) -> tuple[ExitRecord, list[dict[str, Any]]]:
    """Return how a run of one process ended, and what it logged."""
    path, places = opened(case)
    job = local.here(read(path), places, 0)
    work = Path(job.paths.storage) / job.uid
    work.mkdir(parents=True, exist_ok=True)
    (work / "job.json").write_text(job.model_dump_json(by_alias=True, exclude_none=True))
    ended = warm.run(work / "job.json", world=1)
    print(ended.logs[0])
    lines = (work / "metrics.jsonl").read_text().splitlines() if (work / "metrics.jsonl").exists() else []
    steps = [entry for entry in map(json.loads, lines) if "loss" in entry or "eval_loss" in entry]
    return ended.records[0], steps


@pytest.mark.parametrize(
    "case", ["one-step", dpo(PAIR, training={"maxSteps": 1, "warmupSteps": 5, "learningRate": 0.01})]
)
def test_a_single_step_learns(case: Case, opened: Open, warm: Warm) -> None:
    ended, lines = trained(opened, warm, case)
    assert (ended.outcome, ended.step) == ("Succeeded", 1)
    assert [line["learning_rate"] for line in lines if "loss" in line] == [0.01]


@pytest.mark.parametrize(
    ("training", "shares"),
    [
        # Two steps up, five that stay, three down by a half cosine.
        (
            {"lrScheduler": "warmup_stable_decay", "lrSchedulerArgs": {"decayRatio": 0.3, "minLrRate": 0.2}},
            [0.2, 0.6, 1, 1, 1, 1, 1, 1, 0.8, 0.4],
        ),
        (
            {"lrScheduler": "cosine_with_min_lr"},
            [0, 0.5, *(0.1 + 0.9 * (1 + math.cos(math.pi * n / 8)) / 2 for n in range(8))],
        ),
    ],
)
def test_arguments_of_a_scheduler_are_shares_of_the_job(
    training: dict[str, Any], shares: list[float], opened: Open, warm: Warm
) -> None:
    loop = {"maxSteps": 10, "warmupRatio": 0.2, "learningRate": 0.01, "loggingSteps": 1}
    case = sft({"text": "Hello"}, training={**loop, **training}, evaluation={"enabled": False})
    _, lines = trained(opened, warm, case)
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.01 * share for share in shares])


def test_evaluations_and_checkpoints_come_by_share_of_an_epoch(opened: Open, warm: Warm, capsys: Any) -> None:
    case = sft(
        *[{"text": "Hello"}] * 6, training={"maxSteps": 12}, evaluation={"everyEpochs": 0.5},
        checkpoint={"everyEpochs": 1},
    )  # fmt: skip
    # 18 rows, of which 2 are held out: 8 steps of two rows.
    ended, lines = trained(opened, warm, case)
    assert [line["step"] for line in lines if "eval_loss" in line and line["step"] < 12] == [0, 4, 8]
    assert [checkpoint.step for checkpoint in ended.progress.checkpoints] == [8, 12]
    assert explain(*opened({**case, "spec": {"evaluation": {"everyEpochs": 0.5}}})) == 0
    assert re.search(r"evaluations during training +every 4 steps", capsys.readouterr().out)


@pytest.mark.parametrize(
    "case",
    [
        sft({"messages": [USER, SAID]}, sft={"packing": True, "packingStrategy": "wrapped", "lossType": "dft"}),
        dpo(
            PAIR,
            dpo={
                "fDivergenceType": "alpha_divergence", "ldAlpha": 0.5, "useWeighting": True,
                "referenceModel": {"mode": "precompute"},
            },
        ),
        grpo(
            {"prompt": [USER]},
            of_grpo={"delta": 2, "topEntropyQuantile": 0.5, "numIterations": 2},
            training={
                "extraArgs": {
                    "min_p": "0.1", "off_policy_mask_threshold": "0.5", "use_bias_correction_kl": "false",
                    "torch_empty_cache_steps": "1",
                }
            },
        ),
    ],
    ids=["sft", "dpo", "grpo"],
)  # fmt: skip
def test_what_a_kind_has_beside_its_usual_loss_trains(case: Case, opened: Open, warm: Warm) -> None:
    ended, lines = trained(opened, warm, case)
    assert (ended.outcome, ended.step) == ("Succeeded", 2), ended.message
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)


def test_an_extra_argument_is_shown_and_trains(opened: Open, warm: Warm, capsys: Any) -> None:
    """Noise on the embeddings, which an evaluation of the same row has not."""
    case = sft({"text": "Hello"}, training={"extraArgs": {"neftune_noise_alpha": "100"}})
    _, lines = trained(opened, warm, case)
    quiet = next(line["eval_loss"] for line in lines if "eval_loss" in line and line["step"] == 0)
    assert abs(next(line["loss"] for line in lines if "loss" in line) - quiet) > 0.01
    assert explain(*opened(case)) == 0
    assert "\nneftune_noise_alpha: 100.0\n" in capsys.readouterr().out


def test_held_out_rows_that_are_all_dropped_are_said_and_evaluations_left_out(opened: Open, warm: Warm) -> None:
    ended, lines = trained(opened, warm, "eval-cut")
    assert ended.outcome == "Succeeded"
    assert any("evaluation is skipped: 2 of 2 held-out rows are dropped" in w for w in ended.progress.warnings)
    assert ended.progress.evaluation_skipped.reason == "HeldOutRowsDropped"
    assert ended.progress.evaluation_skipped.message.startswith("2 of 2 held-out rows are dropped: nothing of them")
    assert not any("eval_loss" in line for line in lines)


def test_evaluations_during_training_are_left_out_where_no_rows_are_held_out(opened: Open, warm: Warm) -> None:
    case = dpo(PAIR, dataset={"evalSplit": 0}, evaluation={"everySteps": 1})
    ended, _ = trained(opened, warm, case)
    assert (ended.outcome, ended.step) == ("Succeeded", 2)
    assert ended.progress.warnings[-1].startswith("evaluation is skipped: no rows are held out (dataset.eval, or")
    assert ended.progress.evaluation_skipped.reason == "NoHeldOutRows"


def test_an_adapter_is_put_on_all_that_is_named(opened: Open, warm: Warm) -> None:
    """Where `all-linear` stands beside another name."""
    ended, _ = trained(opened, warm, "lora-all-q")
    ranks, linear = 4, 2 * (3 * (32 + 64) + (32 + 32) + 2 * (32 + 16) + (32 + 32))
    assert ended.progress.trainable_parameters == ranks * linear
    beside = sft(
        {"messages": [USER, SAID]},
        peft={"method": "lora", "r": 4, "targetModules": ["all-linear", "embed_tokens"]}, model="untied",
    )  # fmt: skip
    ended, _ = trained(opened, warm, beside)
    assert ended.progress.trainable_parameters == ranks * (linear + 261 + 32)


@pytest.mark.parametrize(("case", "told"), [("grpo-none-some", ["p", "len"]), ("grpo-const", ["kw"])])
def test_rewards_that_abstain_are_left_out_and_ones_that_tell_nothing_apart_are_said(
    case: str, told: list[str], opened: Open, warm: Warm
) -> None:
    ended, lines = trained(opened, warm, case)
    assert (ended.outcome, ended.step) == ("Succeeded", 3)
    assert [reward.name for reward in ended.progress.rewards] == told
    assert all(reward.errors == 0 for reward in ended.progress.rewards)
    if case == "grpo-none-some":
        assert ended.progress.rewards[0].mean == "1", "what it did not judge counts as 0"
    else:
        assert [found.reason for found in ended.progress.training_warnings] == ["RewardCollapse"]
        assert all(line["frac_reward_zero_std"] == 1 for line in lines if "loss" in line)


@pytest.mark.parametrize(
    "case",
    [
        grpo({"prompt": [USER]}, model="switch", **SWITCHED, evaluation={"samplePrompts": ["Hello"]}),
        reward(PAIR, model="switch", **SWITCHED),
    ],
)
def test_what_the_job_tells_the_chat_template_is_known_wherever_it_is_used(
    case: Case, opened: Open, warm: Warm
) -> None:
    """The template raises without it."""
    ended, _ = trained(opened, warm, case)
    assert (ended.outcome, ended.step) == ("Succeeded", 2), ended.message


def test_of_a_geometric_mean_the_parts_are_logged_and_it_is_learnt(opened: Open, warm: Warm) -> None:
    rewards = [
        {"name": "some", "weight": 3, "length": {"target": 8}},
        {"name": "end", "softOverlong": {"cache": 8}},
        {"name": "kind", "keyword": {"words": ["zzz"], "mode": "none"}},
    ]
    case = grpo({"prompt": [USER]}, rewards=[rewards[0], rewards[2]], of_grpo={"rewardAggregation": "geometric_mean"})
    ended, lines = trained(opened, warm, case)
    assert [reward.name for reward in ended.progress.rewards] == ["some", "kind"]
    for line in lines:
        if "loss" in line:
            assert line["reward"] == line["rewards/geometric_mean/mean"]
            assert line["rewards/some/mean"] <= line["reward"] < line["rewards/kind/mean"] == 1
    _, lines = trained(opened, warm, grpo({"prompt": [USER]}, rewards=[rewards[1]]))
    tokens = [line["completions/mean_length"] for line in lines if "loss" in line]
    assert [line["reward"] for line in lines if "loss" in line] == pytest.approx([-number / 8 for number in tokens])


def test_completions_for_several_steps_are_sampled_at_once_and_learnt_before_a_checkpoint(
    opened: Open, warm: Warm
) -> None:
    case = grpo(
        *[{"prompt": [USER]}] * 5, training={"maxSteps": None, "gradientAccumulationSteps": 2},
        dataset={"evalSplit": 0}, checkpoint={"everySteps": 1}, of_grpo={"stepsPerGeneration": 6},
    )  # fmt: skip
    # Of 15 prompts 2 batches of 2 x 6 / 2 prompts, each for 3 steps.
    ended, lines = trained(opened, warm, case)
    assert (ended.outcome, ended.step) == ("Succeeded", 6)
    assert [checkpoint.step for checkpoint in ended.progress.checkpoints] == [3, 6]
    sampled = [line["step"] for line in lines if "completions/mean_length" in line]
    assert sampled == [1, 4], "the steps at which TRL has sampled"


def test_a_mixture_trains_on_all_its_sources_as_often_as_they_weigh(opened: Open, warm: Warm, tmp_path: Path) -> None:
    more = {"inline": [{"conversations": SHARED}] * 8, "weight": 0.5}
    twice = {"volume": {"claimName": "data", "path": "train.jsonl"}, "weight": 2}
    case = sft({"messages": [USER, SAID]}, dataset={"train": None, "evalSplit": 0, "mixture": [twice, more]})
    ended, _ = trained(opened, warm, case)
    assert (ended.outcome, ended.step) == ("Succeeded", 2), ended.message
    (written,) = tmp_path.glob("out/*/data/report.json")
    report = json.loads(written.read_text())
    assert [(source["rows"], source["train"]) for source in report["sources"]] == [(3, 6), (8, 4)]
    assert (report["train"], report["formats"]) == (10, {"messages": 3, "sharegpt": 8})


@pytest.mark.parametrize("tags", [[], ["a, b", "c"]])
def test_a_run_is_tracked_with_its_tags(tags: list[str], opened: Open, warm: Warm, tmp_path: Path) -> None:
    case = sft({"messages": [USER, SAID]}, tracking={"wandb": {"project": "p", "tags": tags}})
    ended, _ = trained(opened, warm, case if tags else "wandb-notags")
    assert ended.outcome == "Succeeded"
    (run,) = tmp_path.glob("out/*/wandb/offline-run-*/*.wandb")
    assert all(tag.encode() in run.read_bytes() for tag in tags)


@pytest.mark.parametrize("method", ["none", "lora"])
def test_the_exported_model_stops_where_the_template_ends_turns(
    method: str, opened: Open, warm: Warm, tmp_path: Path
) -> None:
    lora = sft({"messages": [USER, SAID]}, model="eosother", peft={"method": "lora"})
    ended, _ = trained(opened, warm, "eosother" if method == "none" else lora)
    assert ended.outcome == "Succeeded"
    (written,) = tmp_path.glob("out/*/final/generation_config.json")
    assert json.loads(written.read_text())["eos_token_id"] == [2, 4]


@pytest.mark.parametrize("method", ["none", "lora"])
def test_settings_of_generation_that_contradict_each_other_are_no_failure_at_the_end(
    method: str, opened: Open, models: Callable[[str], Path], warm: Warm, tmp_path: Path
) -> None:
    """Published models have such; transformers refuses to save them."""
    name = tmp_path.name
    shutil.copytree(models("base") / "base", models("base") / name)
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 4}
    (models("base") / name / "generation_config.json").write_text(json.dumps(settings))
    ended, _ = trained(opened, warm, sft({"text": "Hello"}, model=name, peft={"method": method}))
    assert (ended.outcome, ended.message) == ("Succeeded", "trained 2 steps")
    (final,) = tmp_path.glob("out/*/final")
    assert settings.items() <= json.loads((final / "generation_config.json").read_text()).items()


THINKING = "<think>It left.</think> It leaves."


@pytest.mark.parametrize(
    "case",
    [
        sft({"text": THINKING}, model="untied", of_model={"addTokens": ["<think>", "<end>"], "eosToken": "<end>"}),
        sft(
            {"text": THINKING}, model="untied", of_model={"addTokens": ["<think>", "<end>"], "eosToken": "<end>"},
            peft={"method": "lora"},
        ),
        grpo(
            {"prompt": THINKING}, of_model={"addTokens": ["<think>", "<end>"], "eosToken": "<end>"},
            training={"gradientAccumulationSteps": 2},
        ),
    ],
    ids=["sft", "sft-lora", "grpo"],
)  # fmt: skip
def test_added_tokens_are_rows_of_the_exported_model(
    case: dict[str, Any], opened: Open, models: Callable[[str], Path], warm: Warm, tmp_path: Path
) -> None:
    ended, _ = trained(opened, warm, case)
    assert ended.outcome == "Succeeded"
    (final,) = tmp_path.glob("out/*/final")
    tokenizer, model = AutoTokenizer.from_pretrained(final), AutoModelForCausalLM.from_pretrained(final)
    assert tokenizer("<think>a").input_ids[0] == 261
    assert tokenizer.eos_token_id == 262
    assert model.get_input_embeddings().weight.shape == model.lm_head.weight.shape == (263, 32)
    before = AutoModelForCausalLM.from_pretrained(models(case["model"]) / case["model"]).lm_head.weight
    begun = before.mean(dim=0)
    learnt = (model.lm_head.weight[261:] - begun).abs().max(dim=1).values
    assert (learnt < 0.01).all(), "a new row begins as the mean of all others"
    if case["kind"] == "SFTJob":
        assert (learnt > 0).all()


@pytest.mark.parametrize("make", [sft, reward])
def test_named_tokens_end_and_fill_up_what_is_trained_and_are_what_the_result_says(
    make: Any, opened: Open, warm: Warm, tmp_path: Path
) -> None:
    row = {"text": "Hello"} if make is sft else {"chosen": "Yes", "rejected": "No"}
    named = {"eosToken": "<|im_end|>", "padToken": "<|bos|>"}
    ended, _ = trained(opened, warm, make(row, model="eosother", of_model=named, peft={"method": "lora"}))
    assert ended.outcome == "Succeeded"
    (final,) = tmp_path.glob("out/*/final")
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|bos|>")
    config = json.loads((final / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (4, 1)
    if make is sft:
        # What the base stopped at stays.
        assert json.loads((final / "generation_config.json").read_text())["eos_token_id"] == [4, 2]
    (rows,) = tmp_path.glob("out/*/data/rows-*")
    seen = data.load(rows).train[0]
    assert (seen["input_ids"] if make is sft else seen["chosen_ids"])[-1] == 4


@pytest.mark.parametrize(
    "case",
    [
        sft({"messages": [USER, SAID]}, model="genin", sft={"assistantOnlyLoss": True}),
        sft({"messages": [USER, SAID]}, model="eosother", of_model={"eosToken": "<|im_end|>"}),
        sft(
            {"messages": [USER, SAID]},
            model="gptoss",
            peft={"method": "lora", "modulesToSave": ["experts"]},
            training={"paddingFree": "never"},
        ),
        # peft takes the experts of this one for linear layers.
        sft({"messages": [USER, SAID]}, model="qwenmoe", peft={"method": "lora"}),
    ],
)
def test_sound_ends_are_not_worth_a_word(case: Case, opened: Open, capsys: Any) -> None:
    explain(*opened(case))
    said = capsys.readouterr().out.partition("# Worth a look\n")[2].splitlines()
    findings = [line for line in said if line.startswith("- ")]
    # Two rows a step are few, whatever the rows are.
    findings.remove(next(line for line in findings if line.startswith("- an optimizer step sees 2 rows")))
    assert findings == ["- 1 of 2 training rows are duplicates", "- 1 of 1 held-out rows are also training rows"]


def test_what_is_not_finite_while_completions_are_sampled_is_called_so(opened: Open, warm: Warm) -> None:
    ended, _ = trained(opened, warm, "m-nan-grpo")
    assert ended.reason == "NonFiniteLoss"
    assert ended.message.startswith("the model's output is not finite: no completion can be sampled from it; look at")


def learnt(opened: Open, case: Case) -> list[tuple[str, str]]:
    """Return of each training row what the model sees, and the parts of it that it learns, divided by |."""
    path, places = opened(case)
    job = resolve(local.here(read(path), places, 0))
    tokenizer, stage, folder = load_tokenizer(job), stages.of(job), Path(job.paths.storage) / "data"
    written = data.write(job, stage, tokenizer, folder)
    name = data.build(job, stage, tokenizer, stages.tokenizing(job, stage, tokenizer), written, folder)
    found = []
    for row in data.load(folder / name).train:
        if "prompt" in row:
            text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            found.append((text, ""))
            continue
        ids = row.get("input_ids") or row["prompt_ids"] + row["chosen_ids"]
        labels = row.get("labels") or ids
        parts = "".join(tokenizer.decode([i]) if label != -100 else "\0" for i, label in zip(ids, labels, strict=True))
        found.append((tokenizer.decode(ids), "|".join(part for part in parts.split("\0") if part)))
    return found


CHAT = "<|im_start|>user\nWhere is my parcel?<|im_end|>\n<|im_start|>assistant\nIt leaves the depot today.<|im_end|>\n"
KIND = "<|im_start|>system\nBe kind.<|im_end|>\n"
SHARED = [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": "It leaves the depot today."}]
PARTS = {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "my parcel?"}]}
TOLD = {"messages": [USER, {**CURT, "weight": 0}, USER, {**SAID, "weight": 1}]}
COMPLETED = {"prompt": [USER], "completion": [{**CURT, "weight": 0}, USER, SAID]}
SAYS = '"arguments": {"q": "Where is my parcel?", "n": 1}}'
ALPACA = {"instruction": USER["content"], "input": "", "output": "It leaves the depot today."}
OPENAI = {"input": {"messages": [USER]}, "preferred_output": [SAID], "non_preferred_output": [CURT]}
LEARNT: list[tuple[Case, str, str]] = [
    ("sharegpt", CHAT, CHAT),
    (
        grpo({"conversations": [{"from": "system", "value": "Hi"}, *SHARED], "system": "Be kind."}),
        "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\nWhere is my parcel?<|im_end|>\n<|im_start|>assistant\n",
        "",
    ),
    (dpo({"prompt": SHARED[:1], "chosen": SHARED[1:], "rejected": [CURT], "system": "Be kind."}), KIND + CHAT, ""),
    (sft(ALPACA, dataset={"asConversation": True}), CHAT, "It leaves the depot today.<|im_end|>"),
    (grpo(ALPACA, dataset={"asConversation": True}), CHAT.partition("It leaves")[0], ""),
    (dpo(OPENAI), "user\nWhere is my parcel?<|im_end|>", SAID["content"]),
    (sft({"messages": [USER, SAID]}, model="switch", **SWITCHED), "It leaves", "It leaves"),
    (
        sft({"prompt": [USER], "completion": [SAID], "chat_template_kwargs": {"enable_thinking": False}},
            model="switch"), "It leaves", "It leaves"),
    (dpo(PAIR, model="switch", **SWITCHED), "It leaves", "It leaves"),
    (sft(TOLD, model="switch", **SWITCHED), "No idea.", "It leaves"),
    ("parts", CHAT, CHAT),
    (dpo({"prompt": [PARTS], "chosen": [SAID], "rejected": [CURT]}), "user\nWhere is my parcel?<|im_end|>", ""),
    ("tools-tojson", SAYS, SAYS),
    (
        dpo({"prompt": [USER], "chosen": [CALL], "rejected": [CURT]}, model="tools"),
        "<tool>track()</tool>",
        "<tool>track()</tool>",
    ),
    (sft(CALLED, model="texttools"), "assistant\n<tool>track{}<|im_end|>", "assistant\n<tool>track{}<|im_end|>"),
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
