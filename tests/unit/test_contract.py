"""The contract: what is refused, what is resolved, and that nothing a user writes gets lost on the way."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from trl_contract.base import RelativePath
from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_contract.spec import GRPOSpec

SOURCE = {"configMap": {"name": "pairs", "key": "train.jsonl"}}
STOPPING = {"metric": "loss", "mode": "min"}
KEYWORD = {"name": "polite", "keyword": {"words": ["please"]}}
VOLUME = {"claimName": "c", "path": "p"}


def job(kind: str = "DPOJob", spec: dict[str, Any] | None = None, **fields: Any) -> JobFile:
    base: dict[str, Any] = {
        "model": {"volume": {"claimName": "models", "path": "base"}},
        "dataset": {"train": SOURCE},
    }
    if kind == "GRPOJob":
        base["grpo"] = {"rewards": [KEYWORD]}
    return JobFile.model_validate(
        {
            "kind": kind,
            "namespace": "team",
            "name": "job",
            "uid": "u-1",
            "paths": {"storage": "/mnt/storage"},
            "spec": {**base, **(spec or {})},
            **fields,
        }
    )


@pytest.mark.parametrize("kind", ["SFTJob", "RewardJob", "DPOJob", "GRPOJob"])
def test_the_wire_form_reads_back_as_the_same_job(kind: str) -> None:
    written = job(kind)
    assert JobFile.model_validate(written.to_wire()) == written


@pytest.mark.parametrize(
    ("kind", "spec", "says"),
    [
        ("DPOJob", {"training": {"learningRat": 1}}, "learningRat"),
        ("DPOJob", {"training": {"epochs": 1, "maxSteps": 5}}, "epochs or maxSteps"),
        ("DPOJob", {"training": {"warmupSteps": 1, "warmupRatio": 0.1}}, "warmupSteps or warmupRatio"),
        ("DPOJob", {"dpo": {"beta": 0}}, "greater than 0"),
        ("DPOJob", {"dpo": {"lossType": ["sigmoid", "sft"], "lossWeights": [1.0]}}, "lossWeights"),
        ("DPOJob", {"dpo": {"lossType": ["sigmoid", "sft"], "lossWeights": [0, 0]}}, "lossWeights: all are 0"),
        ("DPOJob", {"training": {"lrScheduler": "constant", "warmupSteps": 1}}, "use constant_with_warmup"),
        ("GRPOJob", {"training": {"lrScheduler": "constant", "warmupRatio": 0.1}}, "use constant_with_warmup"),
        (
            "GRPOJob",
            {"grpo": {"rewards": [{"name": "a", "weight": 0, "length": {"target": 3}}]}},
            "rewards: all weights are 0",
        ),
        (
            "GRPOJob",
            {
                "grpo": {
                    "rewardAggregation": "geometric_mean",
                    "rewards": [
                        {"name": "a", "length": {"target": 3}},
                        {"name": "b", "softOverlong": {"cache": 8}, "weight": 0.5},
                    ],
                }
            },
            "softOverlong is never above 0",
        ),
        ("DPOJob", {"dpo": {"labelSmoothing": 0.1}}, "robust or exo_pair"),
        ("DPOJob", {"dpo": {"lossType": ["exo_pair"]}}, "exo_pair needs labelSmoothing above 0"),
        ("GRPOJob", {"grpo": {"rewards": [{"name": "r", "rewardModel": {}}]}}, "exactly one of from_job, source"),
        (
            "GRPOJob",
            {"grpo": {"rewards": [{"name": "r", "rewardModel": {"source": {"volume": VOLUME}, "minAccuracy": 0.5}}]}},
            "go with fromJob",
        ),
        (
            "GRPOJob",
            {"grpo": {"rewards": [{"name": "r", "rewardModel": {"source": {}}}]}},
            "give exactly one of hub, volume",
        ),
        ("RewardJob", {"reward": {"minAccuracy": 1.5}}, "less than or equal to 1"),
        ("DPOJob", {"dpo": {"referenceModel": {"mode": "explicit"}}}, "source goes with mode explicit"),
        (
            "DPOJob",
            {"dpo": {"referenceModel": {"mode": "explicit", "source": {"hub": {"repo": "a/b"}, "chatTemplate": "x"}}}},
            "remove attnImplementation, chatTemplate, eosToken, padToken, addTokens",
        ),
        ("DPOJob", {"peft": {"method": "none", "targetModules": ["q_proj"]}}, "method none"),
        ("DPOJob", {"peft": {"method": "none", "targetParameters": ["x"]}}, "method none"),
        ("DPOJob", {"peft": {"targetParameters": ["x"], "useDora": True}}, "do not go with useDora"),
        ("DPOJob", {"peft": {"dropout": 0.1}}, "dropout"),
        ("SFTJob", {"peft": {"method": "none", "dropout": 0.1}}, "dropout goes with an adapter"),
        ("GRPOJob", {"peft": {"targetParameters": ["x"], "dropout": 0.1}}, "and not with targetParameters"),
        ("DPOJob", {"evaluation": {"earlyStopping": STOPPING}}, "needs everySteps or everyEpochs"),
        ("DPOJob", {"evaluation": {"enabled": False, "everySteps": 5}}, "everySteps and everyEpochs need evaluation"),
        ("GRPOJob", {"training": {"lrScheduler": "polynomial", "learningRate": 1e-7}}, "learning rate 1e-7"),
        ("DPOJob", {"evaluation": {"everySteps": 5, "earlyStopping": {"metric": "loss"}}}, "mode"),
        ("DPOJob", {"model": {}}, "exactly one of hub, volume, from_job"),
        ("DPOJob", {"dataset": {"train": {}}}, "exactly one of hub, volume, config_map, inline"),
        ("DPOJob", {"dataset": {"train": SOURCE, "mixture": [SOURCE]}}, "exactly one of train, mixture"),
        ("SFTJob", {"dataset": {"mixture": [SOURCE], "maxExamples": 5}}, "set it in the sources of mixture"),
        ("SFTJob", {"dataset": {"mixture": [{**SOURCE, "weight": 0}]}}, "greater than 0"),
        ("DPOJob", {"checkpoint": {"everyMinutes": 1, "everySteps": 1}}, "only one of everyMinutes, everySteps"),
        ("DPOJob", {"checkpoint": {"keep": 1}}, "greater than or equal to 2"),
        ("DPOJob", {"grpo": {}}, "grpo"),
        ("SFTJob", {"dpo": {}}, "dpo"),
        ("SFTJob", {"dataset": {"train": SOURCE, "maxPromptLength": 5}}, "maxPromptLength"),
        ("RewardJob", {"evaluation": {"samplePrompts": ["hi"]}}, "samplePrompts"),
        ("GRPOJob", {"training": {"maxLength": 5}}, "maxLength"),
        ("GRPOJob", {"grpo": {"rewards": []}}, "give at least one, or rewardPreset"),
        ("GRPOJob", {"grpo": {"rewards": [KEYWORD, KEYWORD]}}, "different names"),
        ("GRPOJob", {"grpo": {"rewards": [{"name": "none"}]}}, "exactly one of length"),
        ("GRPOJob", {"grpo": {"rewards": [{"name": "l", "length": {"min": 1}}]}}, "min and max go together"),
        (
            "GRPOJob",
            {"grpo": {"rewards": [{"name": "l", "length": {"target": 1, "min": 1}}]}},
            "target, or min and max",
        ),
        ("GRPOJob", {"grpo": {"rewards": [{"name": "h", "http": {"url": "http://example.com/"}}]}}, "pattern"),
    ],
)
def test_a_bad_spec_is_refused_with_the_field_named(kind: str, spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        job(kind, spec)


def test_dropout_is_not_recomputed_by_several_processes() -> None:
    dropping = {"peft": {"dropout": 0.1}}
    spec = resolve(job("SFTJob", dropping, hasGpus=True, numNodes=2)).spec
    assert spec.training.gradient_checkpointing is False
    assert resolve(job("SFTJob", dropping, hasGpus=True)).spec.training.gradient_checkpointing is None
    recomputing = job("SFTJob", {**dropping, "training": {"gradientCheckpointing": True}})
    recomputing.spec.check_world(1)
    with pytest.raises(ValueError, match=r"peft.dropout: 0.1 does not go with training.gradientCheckpointing and 2"):
        recomputing.spec.check_world(2)


@pytest.mark.parametrize("path", ["/abs", "../up", "a/../b", "a//b", "a/.", ".", "..", "a/", "a\nb", ""])
def test_a_path_cannot_leave_its_volume(path: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(RelativePath).validate_python(path)


@pytest.mark.parametrize("path", ["a", "a/b.jsonl", ".hidden/x", "a..b/c"])
def test_an_ordinary_path_is_accepted(path: str) -> None:
    assert TypeAdapter(RelativePath).validate_python(path) == path


@pytest.mark.parametrize(
    ("kind", "method", "rate"),
    [
        ("SFTJob", "none", 2e-5),
        ("SFTJob", "lora", 2e-4),
        ("RewardJob", "lora", 1e-4),
        ("DPOJob", "none", 1e-6),
        ("DPOJob", "qlora", 1e-5),
        ("GRPOJob", "lora", 1e-5),
    ],
)
def test_the_default_learning_rate_depends_on_kind_and_method(kind: str, method: str, rate: float) -> None:
    assert resolve(job(kind, {"peft": {"method": method}})).spec.training.learning_rate == rate


def test_resolving_keeps_what_the_user_gave() -> None:
    given = {
        "training": {"maxSteps": 7, "warmupSteps": 2, "learningRate": 0.5, "precision": "bf16"},
        "peft": {"targetModules": ["q_proj"]},
        "checkpoint": {"everySteps": 3},
        "fsdp": {"stateDictType": "sharded"},
        "evaluation": {"perDeviceBatchSize": 9},
    }
    resolved = resolve(job(spec=given)).to_wire()["spec"]
    for section, fields in given.items():
        assert fields.items() <= resolved[section].items()
    assert "epochs" not in resolved["training"]
    assert "everyMinutes" not in resolved["checkpoint"]


def test_precision_follows_the_gpus_and_checkpoints_are_sharded() -> None:
    on_gpus = resolve(job(spec={"peft": {"method": "none"}}, hasGpus=True)).spec
    assert (on_gpus.training.precision, on_gpus.fsdp.state_dict_type) == ("bf16", "sharded")
    on_cpu = resolve(job()).spec
    assert (on_cpu.training.precision, on_cpu.fsdp.state_dict_type) == ("fp32", "sharded")


def test_a_grpo_evaluation_batch_holds_whole_groups_over_all_processes() -> None:
    spec = {"training": {"perDeviceBatchSize": 3}, "grpo": {"rewards": [KEYWORD], "numGenerations": 8}}
    resolved = resolve(job("GRPOJob", spec, numNodes=2)).spec.evaluation.per_device_batch_size
    assert resolved == 4
    assert resolved * 2 % 8 == 0


@pytest.mark.parametrize("sampled", [None, 6])
def test_a_smaller_micro_batch_keeps_the_rows_of_a_step_the_groups_and_the_evaluation(sampled: int | None) -> None:
    training = {"perDeviceBatchSize": 8, "gradientAccumulationSteps": 3}
    grpo = {"rewards": [KEYWORD], "numGenerations": 8, "stepsPerGeneration": sampled, "numIterations": 2}
    before = resolve(job("GRPOJob", {"training": training, "grpo": grpo}, numNodes=2))
    after = before.model_copy(update={"spec": before.spec.with_micro_batch(2)})
    assert (after.spec.training.per_device_batch_size, after.spec.training.gradient_accumulation_steps) == (2, 12)
    after.spec.check_world(2)
    assert isinstance(before.spec, GRPOSpec)
    assert isinstance(after.spec, GRPOSpec)
    # As many completions are sampled at once, for as many optimizer steps.
    assert 2 * after.spec.steps_per_generation == 8 * before.spec.steps_per_generation
    assert after.spec.steps_per_sampling == before.spec.steps_per_sampling
    assert resolve(after).spec.evaluation == before.spec.evaluation
    assert before.spec.evaluation.per_device_batch_size == 8


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(job())
    assert resolve(once) == once


@pytest.mark.parametrize("kind", ["SFTJob", "RewardJob", "DPOJob", "GRPOJob"])
@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"training": {"maxSteps": 5, "warmupSteps": 2, "lrScheduler": "constant_with_warmup"}},
        {"peft": {"method": "none"}, "checkpoint": {"everySteps": 4}},
        {"peft": {"method": "qlora", "modulesToSave": ["lm_head"]}, "evaluation": {"enabled": False}},
        {"peft": {"targetModules": ["q_proj"]}, "fsdp": {"stateDictType": "full"}, "training": {"precision": "fp32"}},
    ],
)
@pytest.mark.parametrize("gpus", [True, False])
def test_a_resolved_job_file_reads_back_and_is_resolved_to_itself(kind: str, spec: dict[str, Any], gpus: bool) -> None:
    resolved = resolve(job(kind, spec, hasGpus=gpus, numNodes=2, contractVersion=2))
    assert JobFile.model_validate_json(json.dumps(resolved.to_wire())) == resolved
    assert resolve(resolved) == resolved, "the trainer resolves what it reads"
