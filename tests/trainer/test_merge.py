"""The merge of an adapter, part by part, is the one that peft makes of the whole model, in every form that it has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from trl_trainer.errors import TrainerError
from trl_trainer.models import skeleton
from trl_trainer.results.merge import merge
from trl_trainer.results.shards import Shards

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 4, "bos_token_id": None,
}  # fmt: skip


def dense(tied: bool) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=tied))


def experts() -> PreTrainedModel:
    """In memory the experts of a layer are one tensor, in the files each lies by itself."""
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2))


def resized() -> PreTrainedModel:
    model = dense(tied=True)
    model.resize_token_embeddings(67)
    return model


def conv1d() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))


FORMS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "plain": (lambda: dense(tied=False), {"target_modules": "all-linear"}),
    "tied heads": (lambda: dense(tied=True), {"target_modules": "all-linear"}),
    "modulesToSave": (lambda: dense(tied=True), {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "DoRA": (lambda: dense(tied=False), {"target_modules": "all-linear", "use_dora": True}),
    "targetParameters": (
        lambda: dense(tied=False),
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate_proj.weight"]},
    ),
    "fused experts": (
        experts,
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "added tokens": (resized, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "Conv1D": (conv1d, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_merging_in_parts_is_merging_the_whole(form: str, tmp_path: Path) -> None:
    make, lora = FORMS[form]
    base, adapter, whole, out = (tmp_path / name for name in ("base", "adapter", "whole", "out"))
    torch.manual_seed(1)
    make().to(torch.bfloat16).save_pretrained(base, max_shard_size="20KB")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, task_type="CAUSAL_LM", **lora))
    save_random(adapted, adapter)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload().save_pretrained(
        whole
    )

    assert write(base, adapter, out, classifier=False) >= 3
    expected, got = tensors(whole), tensors(out)
    assert got.keys() == expected.keys()
    assert [name for name in got if not got[name].equal(expected[name])] == []
    before = tensors(base)
    assert sum(not got[name].equal(before[name]) for name in got if name in before) >= 3
    for name in ("config.json", "generation_config.json"):
        assert (out / name).read_text() == (whole / name).read_text()
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert (out / "model.safetensors.index.json").exists()
    ids = torch.arange(8)[None]
    assert loaded(ids).logits.equal(AutoModelForCausalLM.from_pretrained(whole)(ids).logits)


@pytest.mark.filterwarnings("ignore")
def test_a_reward_models_head_is_the_adapters(tmp_path: Path) -> None:
    """The base model is a language model: its files have no such head."""
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    torch.manual_seed(1)
    dense(tied=True).save_pretrained(base)
    scorer = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    adapted = get_peft_model(scorer, LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj"]))
    save_random(adapted, adapter)
    write(base, adapter, out, classifier=True)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert loaded.score.weight.equal(adapted.get_base_model().score.modules_to_save["default"].weight)


def test_tensors_that_make_no_whole_weight_are_refused(tmp_path: Path) -> None:
    experts().save_pretrained(tmp_path)
    found = skeleton.of_folder(tmp_path, AutoConfig.from_pretrained(tmp_path), classifier=False)
    names = [name for name in skeleton.files(tmp_path) if "layers.0.mlp.experts" in name and "experts.3" not in name]
    with pytest.raises(TrainerError, match="cannot be read in parts"):
        skeleton.with_weights(found, tmp_path, names)


def test_parts_keep_blocks_whole_and_what_is_in_none_last() -> None:
    sizes = {"embed": 3, "layers.0.a": 2, "layers.0.b": 2, "layers.1.a": 4, "layers.10.a": 1, "norm": 1}
    assert skeleton.parts(sizes, 5) == [["layers.0.a", "layers.0.b"], ["layers.1.a", "layers.10.a"], ["embed", "norm"]]
    assert skeleton.parts(sizes, 3)[0] == ["layers.0.a", "layers.0.b"]
    assert len(skeleton.parts(sizes, 100)) == 1


def save_random(adapted: Any, folder: Path) -> None:
    """Save the adapter with no weight at zero, where merging would change nothing."""
    generator = torch.Generator().manual_seed(3)
    for value in adapted.parameters():
        if value.requires_grad:
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
    adapted.save_pretrained(folder)


def write(base: Path, adapter: Path, out: Path, classifier: bool) -> int:
    """Merge as the export does, in files of 20 KB, and return how many."""
    found = skeleton.of_folder(base, AutoConfig.from_pretrained(base), classifier)
    parts = skeleton.parts({name: value.nbytes for name, value in skeleton.headers(base).items()}, 20_000)
    out.mkdir()
    shards = Shards(out, len(parts))
    for names in parts:
        shards.add(*merge(found, base, adapter, names))
    return len(parts)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
