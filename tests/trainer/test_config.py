"""Nothing that a user writes gets lost: every field, set to another value than its default, is found again in the TRL
config that trains, or stands in the list of fields that another part uses."""

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
import transformers
import trl
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import LoraConfig
from pydantic import BaseModel
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from trainer_kit import job_file

from trl_contract.base import Kind
from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_contract.spec import SPECS
from trl_trainer import preflight, supervisor
from trl_trainer.errors import UserError
from trl_trainer.models import adapter, arguments
from trl_trainer.preflight import steps
from trl_trainer.preflight.clock import Clock
from trl_trainer.stages import STAGES

# field: (value, attribute of the TRL config, value there)
COMMON: dict[str, tuple[Any, str, Any]] = {
    "training.epochs": (2.5, "num_train_epochs", 2.5),
    "training.perDeviceBatchSize": (8, "per_device_train_batch_size", 8),
    "training.gradientAccumulationSteps": (3, "gradient_accumulation_steps", 3),
    "training.learningRate": (3e-4, "learning_rate", 3e-4),
    "training.lrScheduler": ("warmup_stable_decay", "lr_scheduler_type", "warmup_stable_decay"),
    "training.lrSchedulerArgs.minLrRate": (0.2, "lr_scheduler_kwargs.min_lr_ratio", 0.2),
    "training.lrSchedulerArgs.decayRatio": (0.3, "lr_scheduler_kwargs.num_decay_steps", 0.3),
    "training.lrSchedulerArgs.decayType": ("1-sqrt", "lr_scheduler_kwargs.decay_type", "1-sqrt"),
    "training.warmupSteps": (7, "warmup_steps", 7),
    "training.weightDecay": (0.25, "weight_decay", 0.25),
    "training.maxGradNorm": (0.5, "max_grad_norm", 0.5),
    "training.optimizer": ("adamw_torch", "optim", "adamw_torch"),
    "training.adamBeta1": (0.8, "adam_beta1", 0.8),
    "training.adamBeta2": (0.95, "adam_beta2", 0.95),
    "training.adamEpsilon": (1e-6, "adam_epsilon", 1e-6),
    "training.precision": ("bf16", "bf16", True),
    "training.seed": (11, "seed", 11),
    "training.gradientCheckpointing": (True, "activation_checkpointing", True),
    "training.loggingSteps": (3, "logging_steps", 3),
    "dataset.workers": (2, "dataloader_num_workers", 2),
    "dataset.seed": (13, "data_seed", 13),
    "evaluation.everySteps": (9, "eval_steps", 9),
    "evaluation.perDeviceBatchSize": (2, "per_device_eval_batch_size", 2),
    "model.attnImplementation": ("eager", "model_init_kwargs.attn_implementation", "eager"),
}
# These exclude a field above, or need CUDA to be constructed.
INSTEAD: dict[str, tuple[Any, str, Any]] = {
    "training.maxSteps": (17, "max_steps", 17),
    "training.warmupRatio": (0.25, "warmup_steps", 0.25),
    "training.torchCompile": (True, "torch_compile", True),
}
LENGTH: dict[str, tuple[Any, str, Any]] = {
    "training.maxLength": (99, "max_length", 99),
    "training.activationOffloading": (True, "activation_offloading", True),
}
SAMPLER: dict[str, tuple[Any, str, Any]] = {"dataset.shuffle": (False, "train_sampling_strategy", "sequential")}
OWN: dict[Kind, dict[str, tuple[Any, str, Any]]] = {
    "SFTJob": LENGTH | SAMPLER | {
        "training.extraArgs": ({"neftune_noise_alpha": "5"}, "neftune_noise_alpha", 5.0),
        "sft.packing": (True, "packing", True),
        "sft.packingStrategy": ("wrapped", "packing_strategy", "wrapped"),
        "sft.lossType": ("dft", "loss_type", "dft"),
        "sft.completionOnlyLoss": (True, "completion_only_loss", True),
        "sft.assistantOnlyLoss": (True, "assistant_only_loss", True),
    },
    "RewardJob": LENGTH | SAMPLER | {
        "training.extraArgs": ({"torch_empty_cache_steps": "50"}, "torch_empty_cache_steps", 50),
        "reward.centerRewardsCoefficient": (0.01, "center_rewards_coefficient", 0.01),
    },
    "DPOJob": LENGTH | SAMPLER | {
        "training.extraArgs": ({"torch_empty_cache_steps": "50"}, "torch_empty_cache_steps", 50),
        "dpo.beta": (0.3, "beta", 0.3),
        "dpo.lossType": (["robust", "sft"], "loss_type", ["robust", "sft"]),
        "dpo.lossWeights": ([0.7, 0.3], "loss_weights", [0.7, 0.3]),
        "dpo.labelSmoothing": (0.2, "label_smoothing", 0.2),
        "dpo.fDivergenceType": ("alpha_divergence", "f_divergence_type", "alpha_divergence"),
        "dpo.fAlphaDivergenceCoef": (0.7, "f_alpha_divergence_coef", 0.7),
        "dpo.ldAlpha": (0.4, "ld_alpha", 0.4),
        "dpo.useWeighting": (True, "use_weighting", True),
    },
    "GRPOJob": {
        "training.extraArgs": ({"use_bias_correction_kl": "false"}, "use_bias_correction_kl", False),
        "dataset.chatTemplateKwargs": ({"enable_thinking": False}, "chat_template_kwargs", {"enable_thinking": False}),
        "dataset.shuffle": (False, "shuffle_dataset", False),
        "grpo.beta": (0.3, "beta", 0.3),
        "grpo.numGenerations": (2, "num_generations", 2),
        "grpo.numIterations": (3, "num_iterations", 3),
        "grpo.stepsPerGeneration": (6, "steps_per_generation", 6),
        "grpo.lossType": ("dr_grpo", "loss_type", "dr_grpo"),
        "grpo.scaleRewards": ("batch", "scale_rewards", "batch"),
        "grpo.epsilon": (0.3, "epsilon", 0.3),
        "grpo.epsilonHigh": (0.4, "epsilon_high", 0.4),
        "grpo.delta": (2.5, "delta", 2.5),
        "grpo.topEntropyQuantile": (0.2, "top_entropy_quantile", 0.2),
        "grpo.importanceSamplingLevel": ("sequence", "importance_sampling_level", "sequence"),
        "grpo.maskTruncatedCompletions": (True, "mask_truncated_completions", True),
        "grpo.rewardAggregation": ("normalize_then_sum", "multi_objective_aggregation", "normalize_then_sum"),
        "grpo.generation.maxCompletionLength": (31, "max_completion_length", 31),
        "grpo.generation.temperature": (0.5, "temperature", 0.5),
        "grpo.generation.topP": (0.9, "top_p", 0.9),
        "grpo.generation.topK": (5, "top_k", 5),
        "grpo.generation.repetitionPenalty": (1.5, "repetition_penalty", 1.5),
        "grpo.rewards": (
            [{"name": "a", "weight": 3, "length": {"target": 5}}, {"name": "b", "length": {"target": 5}}],
            "reward_weights",
            [3, 1],
        ),
    },
}  # fmt: skip
# Used by a part that has tests of its own.
ELSEWHERE = {
    "model.fromJob.kind", "model.fromJob.name",  # test_upstream.py
    "model.hub", "model.volume", "model.chatTemplate", "model.eosToken", "model.padToken", "model.addTokens",  # models/
    "dataset.train", "dataset.eval", "dataset.evalSplit", "dataset.maxExamples", "dataset.columns",  # data/
    "dataset.systemPrompt", "dataset.maxBadRows", "dataset.maxPromptLength", "dataset.format",
    "dataset.asConversation", "dataset.chatTemplateKwargs", "dataset.mixture",
    "grpo.rewardPreset", "grpo.normalizeWeights",  # resolve.py, by test_rewards.py
    "reward.minAccuracy",  # results/evaluation.py
    "profile",  # test_profiles.py
    "evaluation.atStart", "evaluation.earlyStopping.metric", "evaluation.earlyStopping.mode",  # evaluation.py,
    "evaluation.earlyStopping.patience",  # early_stopping.py
    "training.paddingFree",  # test_padding_free_runs.py
    "evaluation.enabled", "evaluation.maxExamples",  # data/: how many rows are held out
    "evaluation.samplePrompts",  # evaluation.py
    "checkpoint.everyMinutes", "checkpoint.everySteps", "checkpoint.keep",  # schedule.py, publisher.py
    "checkpoint.resumeFrom.job", "checkpoint.resumeFrom.volume", "checkpoint.resumeFrom.step",  # origin.py
    "evaluation.everyEpochs", "checkpoint.everyEpochs",  # below: they become everySteps
    "tracking.tensorboard", "tracking.wandb",  # tracking.py
    "peft.method", "peft.r", "peft.alpha", "peft.targetModules", "peft.targetParameters",  # below
    "peft.modulesToSave", "peft.useDora", "peft.dropout",
    "peft.useRslora", "fsdp.reshardAfterForward", "fsdp.stateDictType", "fsdp.cpuOffload",
    "fsdp.hybrid",  # test_hybrid.py
   
    "dpo.referenceModel.source",  # models/reference.py
    "dpo.referenceModel.mode",  # stages/reference_log_probs.py
}  # fmt: skip


WHOLE = {"hub", "volume", "train", "eval", "source", "tensorboard", "wandb", "rewards"}
"""Sources and lists count as one field."""


def leaves(given: type[BaseModel], prefix: str = "") -> set[str]:
    """Return the paths of all fields, down to those that are no sections."""
    found = set()
    for field in given.model_fields.values():
        name = prefix + str(field.alias)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if section is None or name.split(".")[-1] in WHOLE:
            found.add(name)
        else:
            found |= leaves(section, name + ".")
    return found


def build(folder: Path, kind: Kind, fields: dict[str, Any], *, world: int = 1) -> Any:
    """Return the TRL config of a job with these fields."""
    job = resolved(folder, kind, fields, world)
    return STAGES[kind].config(
        **arguments.arguments(
            job,
            STAGES[kind],
            output_dir=str(folder),
            world=world,
            device="cpu",
        )
    )


def resolved(folder: Path, kind: Kind, fields: dict[str, Any], world: int = 1) -> JobFile:
    spec: dict[str, Any] = {"training": None, "checkpoint": None, "evaluation": None, "peft": None}
    if kind == "GRPOJob" and "grpo.rewards" not in fields:
        fields = {**fields, "grpo.rewards": [{"name": "a", "length": {"target": 5}}]}
    for path, value in fields.items():
        *sections, last = path.split(".")
        place = spec
        for section in sections:
            place[section] = place.get(section) or {}
            place = place[section]
        place[last] = value
    path = job_file(folder, folder, kind, spec={}, numProcPerNode=world)
    import json

    job = json.loads(path.read_text())
    base = {name: job["spec"][name] for name in ("model", "dataset")}
    job["spec"] = base | {name: {**base.get(name, {}), **values} for name, values in spec.items() if values is not None}
    return resolve(JobFile.model_validate(job))


def attribute(config: Any, path: str) -> Any:
    head, _, rest = path.partition(".")
    value = getattr(config, head)
    return value.get(rest) if rest else value


@pytest.mark.parametrize("kind", STAGES)
def test_every_field_is_either_in_the_trl_config_or_used_elsewhere(kind: Kind) -> None:
    covered = set(COMMON) | set(INSTEAD) | set(OWN[kind]) | ELSEWHERE
    missing = leaves(SPECS[kind]) - covered
    assert not missing, f"not found again anywhere: {sorted(missing)}"


@pytest.mark.parametrize("kind", STAGES)
def test_every_field_set_to_another_value_is_found_in_the_trl_config(kind: Kind, tmp_path: Path) -> None:
    table = COMMON | OWN[kind]
    config = build(tmp_path, kind, {path: value for path, (value, _, _) in table.items()})
    plain = build(tmp_path, kind, {})
    for path, (_, name, expected) in table.items():
        assert attribute(config, name) == expected, path
        if name != "model_init_kwargs.attn_implementation":
            assert attribute(plain, name) != expected, f"{path}: the test must use another value than the default"


@pytest.mark.parametrize("path", INSTEAD)
def test_fields_that_exclude_others_are_found_too(path: str, tmp_path: Path) -> None:
    value, name, expected = INSTEAD[path]
    assert attribute(build(tmp_path, "DPOJob", {path: value}), name) == expected


def test_of_a_geometric_mean_trl_logs_the_parts_and_learns_the_last(tmp_path: Path) -> None:
    config = build(tmp_path, "GRPOJob", {"grpo.rewardAggregation": "geometric_mean"})
    assert (config.multi_objective_aggregation, config.reward_weights) == ("sum_then_normalize", [0.0, 1.0])


@pytest.mark.parametrize(
    ("kind", "fields", "number", "every"),
    [
        ("DPOJob", {}, 160, (2, 20)),  # 10 steps of 4 x 4 rows
        ("DPOJob", {"training.maxSteps": 3, "training.gradientAccumulationSteps": 40}, 160, (1, 2)),
        ("SFTJob", {"sft.packing": True}, 320, (5, 40)),
        ("GRPOJob", {"grpo.numIterations": 3}, 40, (8, 60)),  # 10 batches of 4 prompts, each used three times
        ("GRPOJob", {"grpo.stepsPerGeneration": 8}, 47, (2, 20)),  # 5 batches of 8 prompts, each for two steps
    ],
)
def test_epochs_become_the_nearest_number_of_steps(
    kind: Kind, fields: dict[str, Any], number: int, every: tuple[int, int], tmp_path: Path
) -> None:
    shares = {"evaluation.everyEpochs": 0.25, "checkpoint.everyEpochs": 2}
    job = steps.by_epochs(resolved(tmp_path, kind, {**fields, **shares}), STAGES[kind], number)
    assert (job.spec.evaluation.every_steps, job.spec.checkpoint.every_steps) == every
    assert (
        job.spec.evaluation.every_epochs
        is job.spec.checkpoint.every_epochs
        is job.spec.checkpoint.every_minutes
        is None
    )


@pytest.mark.parametrize("kind", STAGES)
def test_extra_arguments_are_of_the_trl_config_read_in_the_loop_and_typed_nowhere_else(
    kind: Kind, tmp_path: Path
) -> None:
    job = resolved(tmp_path, kind, {"training.epochs": 1})
    fields = get_type_hints(STAGES[kind].config)
    trainer = {"SFTJob": trl.SFTTrainer, "RewardJob": trl.RewardTrainer, "DPOJob": trl.DPOTrainer}.get(
        kind, trl.GRPOTrainer
    )
    loop = inspect.getsource(trainer) + inspect.getsource(transformers.Trainer)
    typed = arguments.arguments(job, STAGES[kind], output_dir=str(tmp_path), world=2, device="cpu")
    for name, wanted in job.spec.training.extra_arg_types.items():
        assert getattr(wanted, "__origin__", wanted) in (fields[name], *get_args(fields[name])), (
            f"{name} is {fields[name]} in TRL"
        )
        assert re.search(rf"\bargs\.{name}\b", loop), f"nothing reads {name}"
        assert name not in typed, f"{name} has a field of its own"


def test_an_extra_argument_of_the_wrong_type_is_named_with_its_value(tmp_path: Path) -> None:
    given = {"min_p": "1.5", "use_bias_correction_kl": "maybe", "torch_empty_cache_steps": "0"}
    job, stage = resolved(tmp_path, "GRPOJob", {"training.extraArgs": given}), STAGES["GRPOJob"]
    unread: Any = None
    with pytest.raises(UserError) as caught:
        preflight.look(job, stage, unread, unread, unread, Clock())
    assert caught.value.message.splitlines() == [
        "training.extraArgs.min_p: Input should be less than or equal to 1, or remove it; got '1.5'",
        "training.extraArgs.use_bias_correction_kl: Input should be a valid boolean, unable to interpret input, or"
        " remove it; got 'maybe'",
        "training.extraArgs.torch_empty_cache_steps: Input should be greater than or equal to 1, or remove it; got '0'",
    ]


@pytest.mark.parametrize("kind", STAGES)
def test_several_processes_shard_with_fsdp2(kind: Kind, tmp_path: Path) -> None:
    fields = {"fsdp.reshardAfterForward": False, "fsdp.stateDictType": "full", "training.gradientCheckpointing": True}
    config = build(tmp_path, kind, fields, world=2)
    plugin = config.fsdp_plugin_args
    assert config.fsdp
    assert plugin["fsdp_version"] == 2
    assert plugin["reshard_after_forward"] is False
    assert plugin["state_dict_type"] == "FULL_STATE_DICT"
    assert plugin["activation_checkpointing"] is True
    assert config.activation_checkpointing is False, "transformers refuses both"
    plain = build(tmp_path, kind, {"peft.method": "none"}, world=2).fsdp_plugin_args
    assert plain["state_dict_type"] == "SHARDED_STATE_DICT"
    assert plain["reshard_after_forward"] is True
    offloading = build(tmp_path, kind, {"fsdp.cpuOffload": True}, world=2).fsdp_plugin_args
    for given, policy in ((plain, OffloadPolicy), (offloading, CPUOffloadPolicy)):
        assert type(FullyShardedDataParallelPlugin(**given).cpu_offload) is policy


def test_one_process_does_not_shard(tmp_path: Path) -> None:
    assert not build(tmp_path, "DPOJob", {}).fsdp


def test_every_peft_field_is_found_in_the_adapter(tmp_path: Path) -> None:
    fields = {
        "peft.r": 5, "peft.alpha": 7, "peft.targetModules": ["q_proj"], "peft.modulesToSave": ["embed_tokens"],
        "peft.useDora": True, "peft.useRslora": True,
    }  # fmt: skip
    given = adapter.lora_arguments(resolved(tmp_path, "DPOJob", fields), "CAUSAL_LM")
    dropping = adapter.lora_arguments(resolved(tmp_path, "GRPOJob", {"peft.dropout": 0.25}), "CAUSAL_LM")
    assert given is not None
    assert dropping is not None
    assert LoraConfig(**dropping).lora_dropout == 0.25
    lora = LoraConfig(**given)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (5, 7, 0)
    assert (lora.target_modules, lora.modules_to_save) == ({"q_proj"}, ["embed_tokens"])
    assert (lora.use_dora, lora.use_rslora) == (True, True)
    found = adapter.lora_arguments(
        resolved(tmp_path, "DPOJob", {"peft.targetParameters": ["mlp.experts.w"]}), "CAUSAL_LM"
    )
    assert found is not None
    assert LoraConfig(**found).target_parameters == ["mlp.experts.w"]
    assert adapter.lora_arguments(resolved(tmp_path, "DPOJob", {}), "CAUSAL_LM")["target_modules"] == "all-linear"  # type: ignore[index]
    assert adapter.lora_arguments(resolved(tmp_path, "DPOJob", {"peft.method": "none"}), "CAUSAL_LM") is None


def test_qlora_stores_its_weights_so_that_they_shard(tmp_path: Path) -> None:
    import torch

    found = adapter.quantization(resolved(tmp_path, "DPOJob", {"peft.method": "qlora"}))
    assert found is not None
    assert found.bnb_4bit_quant_storage == torch.bfloat16
    assert adapter.quantization(resolved(tmp_path, "DPOJob", {"peft.method": "lora"})) is None


@pytest.mark.parametrize(
    ("method", "precision", "frozen", "dtype"),
    [
        ("none", "bf16", False, "float32"),
        ("none", "bf16", True, "bfloat16"),
        ("lora", "bf16", False, "bfloat16"),
        ("none", "fp32", True, "float32"),
        ("lora", "fp32", False, "float32"),
    ],
)
def test_weights_are_loaded_in_the_precision_of_their_use(
    method: str, precision: str, frozen: bool, dtype: str, tmp_path: Path
) -> None:
    job = resolved(tmp_path, "DPOJob", {"peft.method": method, "training.precision": precision})
    found = arguments.model_init(job, frozen=frozen)
    assert found["dtype"] == dtype
    assert found["use_safetensors"] is True, "unpickling foreign weights runs foreign code"


@pytest.mark.parametrize("kind", STAGES)
def test_what_must_be_ours_is_switched_off_in_the_libraries(kind: Kind, tmp_path: Path) -> None:
    config = build(tmp_path, kind, {})
    assert config.save_strategy == "no"
    assert config.save_total_limit is None
    assert config.logging_nan_inf_filter is False
    assert config.logging_first_step is True, "a job of few steps would log nothing"
    assert config.enable_jit_checkpoint is False
    assert config.report_to == []


@pytest.mark.parametrize("field", ["lrScheduler", "optimizer"])
def test_named_values_are_transformers_own(field: str) -> None:
    from trl_contract.training import LrScheduler, Optimizer

    ours = {"lrScheduler": LrScheduler, "optimizer": Optimizer}[field].__args__  # type: ignore[attr-defined]
    theirs = {"lrScheduler": transformers.SchedulerType, "optimizer": transformers.training_args.OptimizerNames}[field]
    assert set(ours) <= {member.value for member in theirs}


def test_losses_are_all_that_trl_has() -> None:
    from trl.trainer import dpo_trainer, grpo_trainer

    from trl_contract.stages import (  # fmt: skip
        DIVERGENCE_LOSSES,
        TWO_SIDED_LOSSES,
        UNWEIGHTED_LOSSES,
        DpoLoss,
        FDivergence,
        GrpoLoss,
    )

    assert set(DpoLoss.__args__) == set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(dpo_trainer)))  # type: ignore[attr-defined]
    assert set(DIVERGENCE_LOSSES) == _listed(dpo_trainer, "f_divergence_loss_types = ")
    assert set(UNWEIGHTED_LOSSES) == _listed(dpo_trainer, "self.use_weighting and any(loss_type in ")
    two_sided = re.search(r"elif self.loss_type in (\[.*\]):\n.*\n *# Two-sided", inspect.getsource(grpo_trainer))
    assert two_sided is not None
    assert set(TWO_SIDED_LOSSES) == set(re.findall(r'"(\w+)"', two_sided[1]))
    assert set(FDivergence.__args__) == set(re.findall(r'f_divergence_type == "(\w+)"', inspect.getsource(dpo_trainer)))  # type: ignore[attr-defined]
    documented = str(trl.GRPOConfig.__doc__).partition("loss_type (`str`")[2].partition("mask_truncated_completions")[0]
    assert set(GrpoLoss.__args__) == set(re.findall(r'- `"(\w+)"`', documented))  # type: ignore[attr-defined]


def _listed(module: ModuleType, before: str) -> set[str]:
    """Return the texts of the set that stands there in the module's source."""
    return set(re.findall(r'"(\w+)"', inspect.getsource(module).partition(before)[2].partition("}")[0]))


def test_job_file_of_another_world_size_is_refused_by_the_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl_trainer.distributed import world

    monkeypatch.setenv("WORLD_SIZE", "3")
    job = supervisor.read_job(str(job_file(tmp_path, tmp_path, spec={})))
    with pytest.raises(UserError, match="WORLD_SIZE is 3, but numNodes x numProcPerNode is 2"):
        world.start(job)
