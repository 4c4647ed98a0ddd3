"""What `run` and `explain` say of a manifest says what to write."""

import json
from pathlib import Path
from typing import Any

import pytest

from trl_trainer.errors import UserError
from trl_trainer.local.resource import read


def said(kind: str, field: str, value: Any, folder: Path) -> str:
    """What is said of a small valid job with this value in a field."""
    job: dict[str, Any] = {
        "apiVersion": "trl-operator.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": "job"},
        "spec": {
            "model": {"hub": {"repo": "org/base"}},
            "dataset": {"train": {"configMap": {"name": "rows", "key": "rows.jsonl"}}},
            "storage": {"size": "1Gi"},
        },
    }
    *sections, last = field.split(".")
    place = job
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    (folder / "job.json").write_text(json.dumps(job))
    with pytest.raises(UserError) as caught:
        read(folder / "job.json")
    return caught.value.message


@pytest.mark.parametrize(
    ("kind", "field", "hint"),
    [
        # spelt otherwise, here
        ("SFTJob", "spec.training.learning_rate", "did you mean learningRate?"),
        ("SFTJob", "spec.training.lerningRate", "did you mean learningRate?"),
        ("SFTJob", "spec.dataset.train.configmap", "did you mean configMap?"),
        ("SFTJob", "spec.pod.lables", "did you mean labels?"),
        ("SFTJob", "spec.model.hub.tokenSecret", "did you mean tokenSecretRef?"),
        ("SFTJob", "metadata.nmae", "did you mean name?"),
        ("SFTJob", "sepc", "did you mean spec?"),
        # in another section
        ("SFTJob", "spec.learningRate", "did you mean spec.training.learningRate?"),
        ("DPOJob", "spec.training.maxPromptLength", "did you mean spec.dataset.maxPromptLength?"),
        ("GRPOJob", "spec.grpo.temperature", "did you mean spec.grpo.generation.temperature?"),
        (
            "DPOJob",
            "spec.perDeviceBatchSize",
            "did you mean spec.evaluation.perDeviceBatchSize or spec.training.perDeviceBatchSize?",
        ),
        # by another name
        ("DPOJob", "spec.training.per_device_train_batch_size", "did you mean spec.training.perDeviceBatchSize?"),
        ("SFTJob", "spec.training.loraR", "did you mean spec.peft.r?"),
        ("RewardJob", "spec.backoffLimit", "did you mean spec.runPolicy.maxRestarts?"),
        ("RewardJob", "spec.peft.lora_dropout", "has no such field"),
        # of another kind, and of none
        ("SFTJob", "spec.grpo", "of GRPOJob only"),
        ("SFTJob", "spec.storage.name", "has no such field"),
    ],
)
def test_a_field_that_is_not_there_is_answered_with_the_one_that_is_meant(
    kind: str, field: str, hint: str, tmp_path: Path
) -> None:
    assert any(line.endswith(hint) for line in said(kind, field, {}, tmp_path).splitlines())


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("spec.dpo.lossType", "sigmoid", 'takes a list: write [sigmoid]; got "sigmoid"'),
        ("spec.peft.targetModules", "q_proj, v_proj", "takes a list: write [q_proj, v_proj];"),
        ("spec.evaluation.samplePrompts", "Hi, you", "takes a list: write ['Hi, you'];"),
        ("spec.tolerations", {"key": "a"}, "takes a list: write [{key: a}];"),
        ("spec.env", {"A": 1}, "takes a list: write [{name: A, value: '1'}];"),
        ("spec.model", "org/base", "takes an object: write {hub: {repo: org/base}};"),
        ("spec.model.hub", "gpt2", "takes an object: write {repo: gpt2};"),
        ("spec.queue", "team", "takes an object: write {name: team};"),
        ("spec.model.volume", "claim", "takes an object: give it claimName and path;"),
        ("spec.storage", "100Gi", "takes an object: give it fields, such as claimName, subPath, size"),
        ("spec.nodeSelector", "a=b", "takes an object: write names and values, like {name: value};"),
        ("spec.training.maxSteps", "4", "takes a number: write 4, without quotes;"),
        ("spec.training.torchCompile", "yes", "takes true or false: write true, without quotes;"),
        ("spec.image", 7, 'takes text: write "7";'),
        ("spec.training.lrScheduler", "Cosin", "did you mean cosine;"),
    ],
)
def test_a_value_of_the_wrong_form_is_answered_with_what_to_write(
    field: str, value: Any, remedy: str, tmp_path: Path
) -> None:
    message = said("DPOJob", field, value, tmp_path)
    assert message.startswith(f"{field}: ")
    assert remedy in message


@pytest.mark.parametrize(
    ("name", "end"),
    [("qwen2.5-dpo", ", such as qwen2-5-dpo; got 'qwen2.5-dpo'"), ("a" * 41, f"name; got '{'a' * 41}'")],
)
def test_a_name_with_dots_is_answered_with_one_without(name: str, end: str, tmp_path: Path) -> None:
    assert said("SFTJob", "metadata.name", name, tmp_path).endswith(end)
