"""What is refused, and what is said, before weights are loaded."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GptOssConfig,
    GptOssForCausalLM,
    Mxfp4Config,
)

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer import data, preflight, stages
from trl_trainer.errors import UserError
from trl_trainer.models.tokenizer import load_tokenizer
from trl_trainer.preflight.clock import Clock

USER = [{"role": "user", "content": "where is my order"}]
PAIRS = [
    {
        "prompt": USER,
        "chosen": [{"role": "assistant", "content": f"happy to help , it is done {i}"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for i in range(40)
]
CHATS = [{"messages": [*USER, *row["chosen"]]} for row in PAIRS]
TEXTS = [{"text": "where is my order"}] * 20


@pytest.fixture
def run(tmp_path, model_folder):
    """Write the rows, load them as rank 0 does, and run the preflight."""

    def go(rows, kind="DPOJob", nodes=1, processes=1, model=model_folder, device="cpu", **sections):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if kind == "GRPOJob":
            rewards = [{"name": "length", "length": {"target": 3}}]
            sections["grpo"] = {"rewards": rewards, **sections.get("grpo", {})}
        spec = {
            "model": {"volume": {"claimName": "models", "path": "tiny"}},
            "dataset": {"train": {"configMap": {"name": "data", "key": "train.jsonl"}}, "evalSplit": 0},
            **sections,
        }
        paths = {"storage": str(tmp_path), "train": str(tmp_path / "train.jsonl"), "model": str(model)}
        paths["referenceModel"] = str(tmp_path / "reference")
        wire = {
            "kind": kind, "namespace": "a", "name": "b", "uid": "u", "paths": paths, "spec": spec,
            "numNodes": nodes, "numProcPerNode": processes,
        }  # fmt: skip
        job = resolve(JobFile.model_validate(wire))
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        found = data.write(job, stages.of(job), tokenizer, tmp_path / "u/data")
        tokenize = stages.tokenizing(job, stages.of(job), tokenizer)
        return preflight.run(job, stages.of(job), tokenizer, tokenize, found, tmp_path / "u", device, Clock())

    return go


@pytest.fixture
def copied(tmp_path, model_folder):
    """A copy of the model folder that may be damaged."""
    return shutil.copytree(model_folder, tmp_path / "copied")


def test_a_sound_job_passes_in_seconds_with_its_numbers(run):
    start = time.monotonic()
    found = run(PAIRS, training={"perDeviceBatchSize": 2, "gradientAccumulationSteps": 4})
    assert time.monotonic() - start < 20
    assert found.findings == []
    assert found.architecture == "Qwen3ForCausalLM"
    assert found.total_steps == 5
    assert found.lengths.sampled == found.lengths.rows == 40
    # <|user|> w w w w <|end|> <|assistant|> seven words, <|end|>; the number is one word more.
    assert (found.lengths.p50, found.lengths.longest) == (16, 16)
    assert found.lengths.histogram == {"<=16": 40}
    assert found.memory.certain < found.memory.available
    assert found.checkpoint_bytes == 12 * found.trainable_parameters


def test_the_counts_are_those_of_the_loaded_model_and_of_pefts_adapter(run, model_folder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    loaded = AutoModelForCausalLM.from_pretrained(model_folder)
    assert run(PAIRS, peft={"method": "none"}).trainable_parameters == loaded.num_parameters()
    adapted = get_peft_model(loaded, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    found = run(PAIRS, peft={"r": 4, "targetModules": ["q_proj", "v_proj"]})
    assert found.trainable_parameters == adapted.get_nb_trainable_parameters()[0]
    scorer = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    assert run(PAIRS, "RewardJob", peft={"method": "none"}).parameters == scorer.num_parameters()


def test_an_unknown_target_module_is_refused(run):
    with pytest.raises(UserError, match=r"peft.targetModules: the model has no nothing_proj; the nearest") as caught:
        run(PAIRS, peft={"targetModules": ["nothing_proj"]})
    assert caught.value.reason == "InvalidSpec"


def test_an_adapter_on_the_output_head_is_refused_where_trl_does_not_train_it(run):
    for kind, rows in (("DPOJob", PAIRS), ("GRPOJob", [{"prompt": row["prompt"]} for row in PAIRS])):
        with pytest.raises(UserError, match=f"peft.targetModules: {kind} trains no adapter on the output head"):
            run(rows, kind, peft={"targetModules": ["q_proj", "lm_head"]})


def test_weights_that_the_files_lack_are_named(run, copied):
    weights = load_file(copied / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"model: .* lack 1 weights of a Qwen3ForCausalLM, .* \(model.norm.weight\)"
    ) as caught:
        run(PAIRS, model=copied)
    assert caught.value.reason == "ModelNotFound"
    with pytest.raises(UserError, match="lack 1 weights of a Qwen3ForSequenceClassification"):
        run(PAIRS, "RewardJob", model=copied)
    # There, but of another shape.
    save_file({**weights, "model.norm.weight": norm[:8].clone()}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 weights of a Qwen3ForCausalLM, .* \(model.norm.weight\)"):
        run(PAIRS, model=copied)
    shutil.copytree(copied, copied.parent / "reference")
    reference = {"mode": "explicit", "source": {"volume": {"claimName": "m", "path": "r"}}}
    with pytest.raises(UserError, match=r"dpo.referenceModel.source: .* lack 1 weights"):
        run(PAIRS, dpo={"referenceModel": reference})


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "peft.method qlora brings that to 4 bit"),
        ({"quant_method": "gptq", "bits": 4}, "give the model that it was made from"),
        ({"quant_method": "awq", "bits": 4}, "give the model that it was made from"),
    ],
    ids=["bitsandbytes", "gptq", "awq"],
)
def test_a_quantized_model_is_refused_with_the_remedy(config, remedy, run, copied):
    given = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(given | {"quantization_config": config}))
    with pytest.raises(UserError, match=rf"model: .* is quantized \({config['quant_method']}\): .*{remedy}") as caught:
        run(PAIRS, model=copied, peft={"targetModules": ["q_proj"]})
    assert caught.value.reason == "InvalidSpec"


def test_gpt_oss_as_published_is_refused_and_what_the_message_says_mends_it(run, tmp_path):
    """Its experts are stored in MXFP4, under names that the model itself does not have."""
    make_gpt_oss(tmp_path / "published")
    with pytest.raises(UserError, match=r"model: .* is quantized \(mxfp4\): dequantize it with ") as caught:
        run(PAIRS, model=tmp_path / "published")
    code = caught.value.message.split("dequantize it with ")[1].split(", and save")[0]
    names = {"FOLDER": tmp_path / "published", "NEW": tmp_path / "new"}
    exec(code, {"AutoModelForCausalLM": AutoModelForCausalLM, "Mxfp4Config": Mxfp4Config, **names})
    assert run(PAIRS, model=tmp_path / "new", peft={"targetModules": ["q_proj"]}).architecture == "GptOssForCausalLM"
    first, again = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in names.values())
    assert [name for name in first if not first[name].equal(again[name])] == []


def make_gpt_oss(folder):
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0, eos_token_id=4,
    )  # fmt: skip
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    stored = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = value
            continue
        experts, rows, columns = value.shape
        shape = (experts, columns, rows // 32)
        stored[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        stored[f"{name}_scales"] = torch.randint(118, 124, shape, dtype=torch.uint8)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(written))


def test_pickle_weights_are_refused(run, copied):
    (copied / "model.safetensors").unlink()
    torch.save({}, copied / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no safetensors") as caught:
        run(PAIRS, model=copied)
    assert caught.value.reason == "ModelNotFound"


def test_cut_and_missing_weights_are_refused(run, copied):
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model: .*/model.safetensors is not sound .*; copy it again"):
        run(PAIRS, model=copied)
    weights.write_bytes(whole)
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(UserError, match=r"lacks model-2.safetensors; copy the model again"):
        run(PAIRS, model=copied)


def test_a_model_of_another_kind_is_refused(run, tmp_path):
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    for kind in ("DPOJob", "RewardJob"):
        with pytest.raises(UserError, match="is a BertForMaskedLM, but this job needs a causal") as caught:
            run(PAIRS, kind, model=tmp_path / "bert")
        assert caught.value.reason == "InvalidSpec"


def test_a_reward_model_is_no_base_for_dpo_but_one_for_a_reward_job(run, copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForSequenceClassification"]}))
    with pytest.raises(UserError, match="is a Qwen3ForSequenceClassification"):
        run(PAIRS, model=copied)
    assert run(PAIRS, "RewardJob", model=copied).architecture == "Qwen3ForSequenceClassification"


def test_a_config_of_no_known_model_is_refused(run, copied):
    (copied / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(UserError, match="cannot be read") as caught:
        run(PAIRS, model=copied)
    assert caught.value.reason == "InvalidSpec"


def test_a_model_without_a_sound_tokenizer_is_refused(copied):
    paths = {"storage": "/nowhere", "model": str(copied)}
    spec = {"model": {"volume": {"claimName": "m", "path": "m"}}, "dataset": {"train": {"inline": PAIRS[:1]}}}
    wire = {"kind": "DPOJob", "namespace": "a", "name": "b", "uid": "u", "paths": paths, "spec": spec}
    job = JobFile.model_validate(wire)
    assert load_tokenizer(job).pad_token == "<|pad|>"
    whole = (copied / "tokenizer.json").read_text()
    (copied / "tokenizer.json").write_text(whole[:-100])
    with pytest.raises(UserError, match=f"model: the tokenizer of {copied} cannot be read") as caught:
        load_tokenizer(job)
    assert caught.value.reason == "ModelNotFound"
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=f"model: {copied} has no tokenizer") as caught:
        load_tokenizer(job)
    assert caught.value.reason == "ModelNotFound"


def test_a_cut_config_is_refused(run, copied):
    (copied / "config.json").write_text('{"model_type": "qw')
    with pytest.raises(UserError, match="cannot be read") as caught:
        run(PAIRS, model=copied)
    assert caught.value.reason == "InvalidSpec"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(run, copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"vocab_size": 10}))
    weights = load_file(copied / "model.safetensors")
    fewer = {"model.embed_tokens.weight": weights["model.embed_tokens.weight"][:10].clone()}
    save_file(weights | fewer, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"the tokenizer has token \d+, but the model knows only 10") as caught:
        run(PAIRS, model=copied)
    assert caught.value.reason == "InvalidSpec"


def test_an_explicit_reference_with_a_smaller_vocabulary_is_refused(run, tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "reference")
    explicit = {"mode": "explicit", "source": {"volume": {"claimName": "m", "path": "r"}}}
    sections = {"dpo": {"referenceModel": explicit}}
    found = run(PAIRS, **sections)
    assert found.memory.beside == 4 * found.parameters
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "reference/config.json").write_text(json.dumps(config | {"vocab_size": 10}))
    with pytest.raises(UserError, match="knows fewer tokens than the model that is trained"):
        run(PAIRS, **sections)


@pytest.mark.parametrize(("kind", "rows"), [("SFTJob", CHATS), ("DPOJob", PAIRS)])
def test_the_share_of_rows_that_are_cut_is_said(run, kind, rows):
    finding = run(rows, kind, training={"maxLength": 12}).findings[0]
    assert finding.startswith("100.0 % of the training rows are cut: longer than training.maxLength 12")


def test_a_reward_job_that_would_drop_every_pair_is_refused(run):
    with pytest.raises(UserError, match=r"every one of 40 rows is dropped: .*training.maxLength \(12\); .* has 16 tok"):
        run(PAIRS, "RewardJob", training={"maxLength": 12})


def test_dpo_drops_pairs_whose_prompt_fills_the_length_and_the_steps_are_fewer(run):
    long = [{**row, "prompt": [{"role": "user", "content": "my " * 20}]} for row in PAIRS[:10]]
    found = run(
        [*PAIRS[:30], *long], training={"maxLength": 22, "perDeviceBatchSize": 1, "gradientAccumulationSteps": 1}
    )
    assert (found.lengths.dropped, found.lengths.cut, found.lengths.kept) == (10, 0, 30)
    assert found.total_steps == 30
    assert found.findings[0].startswith("25.0 % of the training rows are dropped")


def test_a_large_data_set_is_sampled(run):
    found = run(TEXTS * 100, "SFTJob")
    assert (found.lengths.rows, found.lengths.sampled) == (2000, 1000)
    assert found.lengths.longest == 5, "four words and the end-of-text token that TRL adds"


@pytest.mark.parametrize(
    ("rows", "sft", "why"),
    [
        (CHATS, {"completionOnlyLoss": True}, r"sft.completionOnlyLoss needs prompt and completion, but .* messages"),
        (TEXTS, {"assistantOnlyLoss": True}, r"sft.assistantOnlyLoss needs conversations, but the data have text"),
        (
            CHATS,
            {"assistantOnlyLoss": True},
            r"does not mark assistant turns with {% generation %}: set model",
        ),
    ],
)
def test_a_loss_that_the_data_do_not_allow_is_refused(run, rows, sft, why):
    with pytest.raises(UserError, match=why) as caught:
        run(rows, "SFTJob", sft=sft)
    assert caught.value.reason == "InvalidSpec"


def test_fewer_rows_than_ranks_are_refused(run):
    with pytest.raises(UserError, match="3 rows are fewer than the 4 processes") as caught:
        run(PAIRS[:3], nodes=2, processes=2)
    assert caught.value.reason == "DataFormatError"


@pytest.mark.parametrize(("prompts", "steps"), [(8, 1), (15, 1), (16, 2)])
def test_grpo_takes_whole_batches_of_prompts_only(run, prompts, steps):
    training = {"perDeviceBatchSize": 4, "gradientAccumulationSteps": 4}
    rows = [{"prompt": USER}] * prompts
    assert run(rows, "GRPOJob", nodes=2, training=training).total_steps == steps
    assert run(rows, "GRPOJob", nodes=2, training=training, grpo={"numIterations": 3}).total_steps == 3 * steps


def test_too_few_prompts_for_one_step_are_refused_with_the_arithmetic(run):
    with pytest.raises(UserError, match=r"7 prompts are fewer .* 4 x 2 processes x .* 4 / numGenerations 4 = 8"):
        run([{"prompt": USER}] * 7, "GRPOJob", nodes=2)


def test_a_job_that_does_not_fit_is_refused(run, monkeypatch):
    monkeypatch.setattr("trl_trainer.launch.host_memory.available", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"the job needs .* per process.*no single change fits") as c:
        run(PAIRS, peft={"method": "none"})
    assert c.value.reason == "InvalidSpec", "a reason that is tried again would be tried in vain"


def test_tight_memory_is_a_finding(run, monkeypatch):
    monkeypatch.setattr("trl_trainer.launch.host_memory.available", lambda: 1_500_000)
    assert run(PAIRS).findings[0].startswith("memory is tight: ")


def test_disk_space_is_checked_for_checkpoints_and_the_final_model(run, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    assert (
        run(PAIRS, peft={"method": "none"}, checkpoint={"keep": 5}).findings[0].startswith("storage: 2.9 MiB are free")
    )
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"one checkpoint .* and the final model") as caught:
        run(PAIRS)
    assert caught.value.reason == "StorageFull"


def test_a_tokenizer_without_an_end_is_refused(run, monkeypatch, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.eos_token = None
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda _: tokenizer)
    with pytest.raises(UserError, match="has no end-of-text token"):
        run(PAIRS)


def test_a_reward_that_compares_with_a_column_that_is_not_there_is_refused(run):
    rewards = [{"name": "right", "accuracy": {"column": "answer"}}]
    rows = [{"prompt": USER, "solution": "4"}] * 8
    with pytest.raises(UserError, match=r"row 1: grpo.rewards.right compares with column answer, .* has prompt, sol"):
        run(rows, "GRPOJob", grpo={"rewards": rewards})
    with pytest.raises(UserError, match=r"grpo.rewards.right: the data have no column answer, only prompt, sol"):
        run(rows, "GRPOJob", grpo={"rewards": [{**rewards[0], "onError": "zero"}]})
    columns = {"train": {"configMap": {"name": "data", "key": "train.jsonl"}}, "columns": {"answer": "solution"}}
    assert run(rows, "GRPOJob", grpo={"rewards": rewards}, dataset={**columns, "evalSplit": 0}).total_steps == 2
