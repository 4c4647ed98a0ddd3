"""A reward model scores what it was trained on: prompt and answer, rendered as in training."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_trainer.errors import UserError
from trl_trainer.rewards.reward_model import RewardModelScorer
from trl_trainer.rewards.score import Batch


@pytest.fixture
def reward_model(model_folder, tmp_path):
    """The tiny model with a random score head, as a RewardJob's final/ has it."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    model.score.weight.data.normal_()
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_conversation_scores_as_the_model_alone_scores_it(reward_model):
    prompts = [[{"role": "user", "content": "where is my order"}], [{"role": "user", "content": "no"}]] * 5
    completions = [[{"role": "assistant", "content": "happy to help"}], [{"role": "assistant", "content": "wait"}]] * 5
    scores = RewardModelScorer(str(reward_model), "r", "fp32")(Batch(prompts, completions, {}))
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    for score, prompt, completion in zip(scores, prompts, completions, strict=True):
        ids = tokenizer.apply_chat_template(prompt + completion, return_tensors="pt", return_dict=True)
        assert score == pytest.approx(model(**ids).logits.item(), abs=1e-5)
    assert scores[0] != scores[1]


def test_plain_text_ends_with_the_end_of_text_as_in_training(reward_model):
    (score,) = RewardModelScorer(str(reward_model), "r", "fp32")(Batch(["where is "], ["my order"], {}))
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    ids = tokenizer("where is my order" + tokenizer.eos_token, return_tensors="pt")
    assert score == pytest.approx(model(input_ids=ids["input_ids"]).logits.item(), abs=1e-5)


def test_a_language_model_is_no_reward_model(model_folder):
    with pytest.raises(UserError, match="is a Qwen3ForCausalLM, but a reward model is a sequence classifier"):
        RewardModelScorer(str(model_folder), "r", "fp32")


def test_weights_that_are_missing_are_not_made_up(model_folder, reward_model):
    (reward_model / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"r: the files in .* lack 1 weights of a Qwen3ForSeq.* \(score.weight\)"):
        RewardModelScorer(str(reward_model), "r", "fp32")


def test_two_labels_pickle_and_nothing_are_refused(reward_model, tmp_path):
    edit_config(reward_model, id2label={"0": "A", "1": "B"}, label2id={"A": 0, "B": 1})
    with pytest.raises(UserError, match="has 2 labels; a reward model has one"):
        RewardModelScorer(str(reward_model), "r", "fp32")
    (reward_model / "model.safetensors").unlink()
    torch.save({}, reward_model / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no safetensors"):
        RewardModelScorer(str(reward_model), "r", "fp32")
    with pytest.raises(UserError, match=r"has no config.json"):
        RewardModelScorer(str(tmp_path / "nothing"), "r", "fp32")


def test_a_tokenizer_without_a_chat_template_is_named(reward_model):
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    tokenizer.chat_template = None
    for path in reward_model.glob("chat_template*"):
        path.unlink()
    tokenizer.save_pretrained(reward_model)
    score = RewardModelScorer(str(reward_model), "grpo.rewards.judge", "fp32")
    talk = [[{"role": "user", "content": "no"}]]
    with pytest.raises(UserError, match=r"grpo.rewards.judge: its tokenizer has no chat template"):
        score(Batch(talk, [[{"role": "assistant", "content": "no"}]], {}))
