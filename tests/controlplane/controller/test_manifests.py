"""Manifests, good and bad, before the real API server: schema and CEL alone decide, the operator sees none of them."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chaos
import pytest
import yaml
from kubernetes import client, config
from pydantic import ValidationError
from test_upstream import grpo_job, reward_job

from devcluster.controlplane import ControlPlane
from devcluster.paths import REPOSITORY
from trl_contract.profiles import PROFILES
from trl_operator.api.job import parse_job, why_refused
from trl_operator.api.kinds import KINDS as INFOS
from trl_operator.api.schema import structural_schema
from trl_trainer.errors import UserError
from trl_trainer.local.resource import read

GROUP, VERSION = "trl-operator.io", "v1alpha1"
PLURALS = {"DPOJob": "dpojobs", "GRPOJob": "grpojobs", "SFTJob": "sftjobs", "RewardJob": "rewardjobs"}
GPUS = {"limits": {"nvidia.com/gpu": 2}}
KEYWORD = {"name": "polite", "keyword": {"words": ["please"]}}
CLAIMED = {"claimName": "c", "path": "p"}
STOPPING = {"metric": "loss", "mode": "min"}
SHARED = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
VOLUME = {"name": "a", "mountPath": "/a", "emptyDir": {}}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"

Change = dict[str, Any]
"""Dotted paths of fields and their values; None removes a field, NULL sets it to null."""
NULL = object()

MIXED: Change = {
    "spec.dataset.train": None,
    "spec.dataset.mixture": [{"inline": [{"prompt": "a"}], "weight": 0.5}, {"hub": {"repo": "a/b"}, "maxExamples": 3}],
}

# kind, change, what the refusal must say: the field first
BAD: list[tuple[str, Change, tuple[str, ...]]] = [
    # names
    ("DPOJob", {"metadata.name": "x" * 41}, ("metadata.name", "at most 40 characters")),
    ("DPOJob", {"metadata.name": "1abc"}, ("metadata.name", "starting with a letter", "such as job-1abc")),
    ("DPOJob", {"metadata.name": "qwen2.5-dpo"}, ("metadata.name", "simpler name, such as qwen2-5-dpo")),
    # what must be there, and typos
    ("DPOJob", {"spec": None}, ("spec", "Required")),
    ("DPOJob", {"spec.model": None}, ("spec.model", "Required")),
    ("DPOJob", {"spec.dataset": None}, ("spec.dataset", "Required")),
    ("DPOJob", {"spec.dataset.train": None}, ("spec.dataset", "exactly one of train, mixture")),
    ("DPOJob", {"spec.dataset.mixture": [{"inline": [{"a": 1}]}]}, ("spec.dataset", "exactly one of train, mixture")),
    ("SFTJob", MIXED | {"spec.dataset.maxExamples": 5}, ("spec.dataset", "set it in the sources of mixture")),
    ("SFTJob", MIXED | {"spec.dataset.mixture": []}, ("spec.dataset.mixture", "at least 1")),
    ("SFTJob", MIXED | {"spec.dataset.mixture": [{"weight": 1}]}, ("spec.dataset.mixture[0]", "exactly one of hub,")),
    (
        "SFTJob",
        MIXED | {"spec.dataset.mixture": [{"inline": [{"a": 1}], "weight": 0}]},
        ("spec.dataset.mixture[0].weight", "greater than 0"),
    ),
    ("DPOJob", {"spec.storage": None}, ("spec.storage", "Required")),
    ("GRPOJob", {"spec.grpo": None}, ("spec.grpo", "Required")),
    ("GRPOJob", {"spec.grpo.rewards": None}, ("spec.grpo", "give at least one, or rewardPreset")),
    ("DPOJob", {"spec.modle": {}}, ('unknown field "spec.modle"',)),
    ("DPOJob", {"spec.training.learningrate": 0.1}, ('unknown field "spec.training.learningrate"',)),
    ("DPOJob", {"spec.dpo.betta": 0.1}, ('unknown field "spec.dpo.betta"',)),
    ("DPOJob", {"spec.storage.sise": "1Gi"}, ('unknown field "spec.storage.sise"',)),
    ("DPOJob", {"spec.runPolicy.backoffLimit": 1}, ('unknown field "spec.runPolicy.backoffLimit"',)),
    # fields that go with values of others
    (
        "SFTJob",
        {"spec.training": {"lrScheduler": "cosine_with_min_lr", "lrSchedulerArgs": {"decayRatio": 0.1}}},
        ("spec.training", "decayRatio and decayType are for lrScheduler warmup_stable_decay"),
    ),
    (
        "RewardJob",
        {"spec.training": {"optimizer": "sgd", "adamBeta2": 0.9}},
        ("spec.training", "have no meaning for optimizer adafactor and sgd"),
    ),
    *[
        (kind, {"spec.training.extraArgs": {name: "1"}}, ("spec.training.extraArgs", "may name", "remove others"))
        for kind, name in (
            ("SFTJob", "output_dir"), ("RewardJob", "neftune_noise_alpha"), ("DPOJob", "min_p"), ("GRPOJob", "minP"),
        )
    ],
    ("SFTJob", {"spec.training.extraArgs": {"neftune_noise_alpha": 5}}, ("extraArgs.neftune_noise_alpha", "string")),
    (
        "SFTJob",
        {"spec.sft": {"packing": True}, "spec.training.paddingFree": "auto"},
        ("spec.training", "paddingFree has no meaning with sft.packing"),
    ),
    ("DPOJob", {"spec.training.paddingFree": "always"}, ("spec.training.paddingFree", '"auto", "never"')),
    ("SFTJob", {"spec.sft": {"packingStrategy": "wrapped"}}, ("spec.sft", "packingStrategy goes with packing")),
    (
        "DPOJob",
        {"spec.dpo": {"lossType": ["aot"], "fDivergenceType": "forward_kl"}},
        ("spec.dpo", "fDivergenceType other than reverse_kl works only with lossType discopop"),
    ),
    ("DPOJob", {"spec.dpo": {"fAlphaDivergenceCoef": 0.3}}, ("spec.dpo", "goes with fDivergenceType alpha_divergence")),
    (
        "DPOJob",
        {"spec.dpo": {"lossType": ["aot"], "useWeighting": True}},
        ("spec.dpo", "useWeighting does not go with lossType aot"),
    ),
    ("GRPOJob", {"spec.grpo.delta": 2, "spec.grpo.lossType": "cispo"}, ("spec.grpo", "delta works only with lossType")),
    # fields of other kinds
    ("SFTJob", {"spec.dpo": {}}, ('unknown field "spec.dpo"',)),
    ("SFTJob", {"spec.dataset.maxPromptLength": 5}, ('unknown field "spec.dataset.maxPromptLength"',)),
    ("GRPOJob", {"spec.training.maxLength": 64}, ('unknown field "spec.training.maxLength"',)),
    ("RewardJob", {"spec.evaluation.samplePrompts": ["hi"]}, ('unknown field "spec.evaluation.samplePrompts"',)),
    # what never enters
    ("DPOJob", {"spec.podTemplate": {}}, ('unknown field "spec.podTemplate"',)),
    ("DPOJob", {"spec.serviceAccountName": "root"}, ('unknown field "spec.serviceAccountName"',)),
    ("DPOJob", {"spec.securityContext": {}}, ('unknown field "spec.securityContext"',)),
    ("DPOJob", {"spec.hostNetwork": True}, ('unknown field "spec.hostNetwork"',)),
    ("DPOJob", {"spec.dataset.train.configMap.namespace": "other"}, ("namespace",)),
    # sources
    ("DPOJob", {"spec.model": {}}, ("spec.model", "exactly one of hub, volume, fromJob")),
    ("DPOJob", {"spec.model.fromJob": {"kind": "SFTJob", "name": "a"}}, ("spec.model", "exactly one of hub, volume")),
    ("DPOJob", {"spec.model": {"fromJob": {"name": "a"}}}, ("spec.model.fromJob.kind", "Required")),
    ("DPOJob", {"spec.model": {"fromJob": {"kind": "SFTJob"}}}, ("spec.model.fromJob.name", "Required")),
    (
        "DPOJob",
        {"spec.model": {"fromJob": {"kind": "RewardJob", "name": "a"}}},
        ("spec.model.fromJob.kind", "Unsupported value", "SFTJob"),
    ),
    ("DPOJob", {"spec.model.volume": {"claimName": "c", "path": "p"}}, ("spec.model", "exactly one of hub, volume")),
    ("DPOJob", {"spec.dataset.train": {}}, ("spec.dataset.train", "exactly one of hub, volume, configMap, inline")),
    ("DPOJob", {"spec.dataset.train.inline": [{"a": 1}]}, ("spec.dataset.train", "exactly one of")),
    ("DPOJob", {"spec.dataset.eval": {}}, ("spec.dataset.eval", "exactly one of")),
    ("DPOJob", {"spec.dataset.train": {"inline": []}}, ("spec.dataset.train.inline", "at least 1")),
    ("DPOJob", {"spec.dataset.train": {"inline": [{}] * 1001}}, ("spec.dataset.train.inline", "at most 1000")),
    ("DPOJob", {"spec.model": {"hub": {"repo": "a/b/c"}}}, ("spec.model.hub.repo", "should match")),
    ("DPOJob", {"spec.model": {"volume": {"claimName": "c", "path": "../x"}}}, ("spec.model.volume.path",)),
    ("DPOJob", {"spec.model": {"volume": {"claimName": "c", "path": "/x"}}}, ("spec.model.volume.path",)),
    ("DPOJob", {"spec.model": {"volume": {"claimName": "c", "path": "a//b"}}}, ("spec.model.volume.path",)),
    ("DPOJob", {"spec.model": {"volume": {"claimName": "C", "path": "a"}}}, ("spec.model.volume.claimName",)),
    ("DPOJob", {"spec.model.attnImplementation": "auto"}, ("spec.model.attnImplementation", "Unsupported value")),
    ("DPOJob", {"spec.model.chatTemplate": "x" * 16385}, ("spec.model.chatTemplate", "16384")),
    (
        "DPOJob",
        {"spec.model.addTokens": ["<a>"], "spec.peft": {"method": "qlora"}, "spec.resources": GPUS},
        ("spec.model", "qlora does not train rows of new tokens"),
    ),
    ("SFTJob", {"spec.model.addTokens": []}, ("spec.model.addTokens", "at least 1")),
    ("DPOJob", {"spec.model.eosToken": ""}, ("spec.model.eosToken", "at least 1")),
    ("SFTJob", {"spec.model.padToken": 5}, ("spec.model.padToken", "string")),
    ("DPOJob", {"spec.dataset.evalSplit": 0.6}, ("spec.dataset.evalSplit", "less than or equal to 0.5")),
    ("DPOJob", {"spec.dataset.evalSplit": -0.1}, ("spec.dataset.evalSplit",)),
    ("DPOJob", {"spec.dataset.maxBadRows": -1}, ("spec.dataset.maxBadRows",)),
    ("DPOJob", {"spec.dataset.workers": -1}, ("spec.dataset.workers",)),
    ("SFTJob", {"spec.dataset.format": "ShareGPT"}, ("spec.dataset.format", "Unsupported value", "openai-dpo")),
    ("DPOJob", {"spec.dataset.chatTemplateKwargs": "enable_thinking"}, ("spec.dataset.chatTemplateKwargs", "object")),
    ("DPOJob", {"spec.dataset.asConversation": "yes"}, ("spec.dataset.asConversation", "boolean")),
    # training
    ("DPOJob", {"spec.training": {"epochs": 1, "maxSteps": 2}}, ("spec.training", "epochs or maxSteps, not both")),
    ("DPOJob", {"spec.training": {"warmupSteps": 1, "warmupRatio": 0.1}}, ("spec.training", "not both")),
    ("DPOJob", {"spec.training.epochs": 0}, ("spec.training.epochs", "greater than 0")),
    ("DPOJob", {"spec.training.maxSteps": 0}, ("spec.training.maxSteps",)),
    ("DPOJob", {"spec.training.learningRate": 0}, ("spec.training.learningRate", "greater than 0")),
    ("DPOJob", {"spec.training.learningRate": "fast"}, ("spec.training.learningRate", "number")),
    ("DPOJob", {"spec.training.perDeviceBatchSize": 0}, ("spec.training.perDeviceBatchSize",)),
    ("DPOJob", {"spec.training.lrScheduler": "cosin"}, ("spec.training.lrScheduler", "Unsupported value")),
    ("DPOJob", {"spec.training.optimizer": "adam"}, ("spec.training.optimizer", "Unsupported value")),
    ("DPOJob", {"spec.training.precision": "fp8"}, ("spec.training.precision", "Unsupported value")),
    ("GRPOJob", {"spec.training.precision": "fp16"}, ("spec.training", "precision fp16 needs GPUs")),
    ("SFTJob", {"spec.training.activationOffloading": True}, ("spec.training", "activationOffloading needs GPUs")),
    ("GRPOJob", {"spec.training.activationOffloading": True}, ('unknown field "spec.training.activationOffloading"',)),
    ("DPOJob", {"spec.training.optimizer": "adamw_bnb_8bit"}, ("spec.training", "need one GPU and one process")),
    (
        "GRPOJob",
        {"spec.training.optimizer": "paged_adamw_8bit", "spec.resources": GPUS},
        ("spec.training", "need one GPU and one process"),
    ),
    ("DPOJob", {"spec.model.attnImplementation": "flash_attention_2"}, ("spec.model", "need GPUs and")),
    (
        "SFTJob",
        {
            "spec.model.attnImplementation": "flash_attention_3",
            "spec.training.precision": "fp16",
            "spec.resources": GPUS,
        },
        ("spec.model", "need GPUs and training.precision bf16"),
    ),
    ("DPOJob", {"spec.training.maxLength": 7}, ("spec.training.maxLength",)),
    ("DPOJob", {"spec.training.seed": 2**31}, ("spec.training.seed",)),
    ("DPOJob", {"spec.training.warmupRatio": 1}, ("spec.training.warmupRatio", "less than 1")),
    # adapters
    ("DPOJob", {"spec.peft.method": "prefix"}, ("spec.peft.method", "Unsupported value")),
    ("DPOJob", {"spec.peft": {"method": "none", "targetModules": ["q_proj"]}}, ("spec.peft", "method none")),
    ("DPOJob", {"spec.peft.method": "qlora"}, ("spec.peft", "qlora needs GPUs")),
    (
        "SFTJob",
        {"spec.peft": {"method": "qlora"}, "spec.resources": GPUS, "spec.training.precision": "fp16"},
        ("spec.peft", "qlora needs training.precision bf16: remove precision, or use lora"),
    ),
    ("DPOJob", {"spec.peft.r": 0}, ("spec.peft.r",)),
    ("DPOJob", {"spec.peft.dropout": 0.1}, ('unknown field "spec.peft.dropout"',)),
    ("SFTJob", {"spec.peft.dropout": 1}, ("spec.peft.dropout", "less than 1")),
    ("SFTJob", {"spec.peft": {"method": "none", "dropout": 0.1}}, ("spec.peft", "dropout goes with an adapter")),
    ("GRPOJob", {"spec.peft": {"targetParameters": ["w"], "dropout": 0.1}}, ("spec.peft", "not with targetParameters")),
    ("GRPOJob", {"spec.peft": {"targetParameters": ["w"], "useDora": True}}, ("spec.peft", "useDora: remove one")),
    (
        "SFTJob",
        {"spec.peft.dropout": 0.1, "spec.training.gradientCheckpointing": True, "spec.resources": GPUS},
        ("spec.peft", "dropout does not go with training.gradientCheckpointing and several processes"),
    ),
    # fsdp
    ("DPOJob", {"spec.fsdp.hybrid": True}, ("spec.fsdp", "numNodes and numProcPerNode of at least 2")),
    (
        "SFTJob",
        {"spec.fsdp.hybrid": True, "spec.numNodes": 2, "spec.numProcPerNode": 1, "spec.storage": SHARED},
        ("spec.fsdp", "numNodes and numProcPerNode of at least 2"),
    ),
    (
        "DPOJob",
        {"spec.fsdp.cpuOffload": True, "spec.numProcPerNode": 2},
        ("spec.fsdp", "fsdp.cpuOffload needs GPUs, several processes"),
    ),
    (
        "DPOJob",
        {"spec.fsdp.cpuOffload": True, "spec.resources": {"limits": {"nvidia.com/gpu": 1}}},
        ("spec.fsdp", "fsdp.cpuOffload needs GPUs, several processes"),
    ),
    (
        "DPOJob",
        {"spec.fsdp.cpuOffload": True, "spec.resources": GPUS, "spec.peft": {"method": "qlora"}},
        ("spec.fsdp", "another peft.method than qlora"),
    ),
    # dpo
    ("DPOJob", {"spec.dpo.beta": 0}, ("spec.dpo.beta", "greater than 0")),
    ("DPOJob", {"spec.dpo.lossType": ["dpo"]}, ("spec.dpo.lossType", "Unsupported value")),
    ("DPOJob", {"spec.dpo.lossType": []}, ("spec.dpo.lossType", "at least 1")),
    ("DPOJob", {"spec.dpo.lossWeights": [1, 2]}, ("spec.dpo", "one weight for each lossType")),
    ("DPOJob", {"spec.dpo.lossWeights": [0]}, ("spec.dpo", "lossWeights: all are 0")),
    ("DPOJob", {"spec.dpo.labelSmoothing": 0.1}, ("spec.dpo", "robust or exo_pair")),
    ("DPOJob", {"spec.dpo.lossType": ["sigmoid", "exo_pair"]}, ("spec.dpo", "exo_pair needs labelSmoothing")),
    ("DPOJob", {"spec.dpo.referenceModel": {"mode": "explicit"}}, ("spec.dpo.referenceModel", "mode explicit")),
    (
        "DPOJob",
        {
            "spec.dpo.referenceModel": {
                "mode": "explicit",
                "source": {"hub": {"repo": "a/b"}, "attnImplementation": "sdpa"},
            }
        },
        ("spec.dpo.referenceModel", "remove attnImplementation, chatTemplate, eosToken, padToken, addTokens"),
    ),
    (
        "DPOJob",
        {"spec.dpo.referenceModel": {"mode": "explicit", "source": {"hub": {"repo": "a/b"}, "eosToken": "x"}}},
        ("spec.dpo.referenceModel", "remove attnImplementation, chatTemplate, eosToken, padToken, addTokens"),
    ),
    ("DPOJob", {"spec.peft": {"method": "none", "targetParameters": ["w"]}}, ("spec.peft", "method none")),
    ("DPOJob", {"spec.peft": {"targetParameters": ["w"], "useDora": True}}, ("spec.peft", "useDora: remove one")),
    ("DPOJob", {"spec.evaluation": {"earlyStopping": STOPPING}}, ("spec.evaluation", "needs everySteps")),
    (
        "SFTJob",
        {"spec.evaluation": {"everySteps": 5, "enabled": False}},
        ("spec.evaluation", "everySteps and everyEpochs need evaluation"),
    ),
    (
        "SFTJob",
        {"spec.training": {"lrScheduler": "constant", "warmupSteps": 1}},
        ("spec.training", "use constant_with_warmup"),
    ),
    (
        "SFTJob",
        {"spec.training": {"lrScheduler": "constant", "warmupRatio": 0.1}},
        ("spec.training", "use constant_with_warmup"),
    ),
    (
        "SFTJob",
        {"spec.training": {"lrScheduler": "polynomial", "learningRate": 1e-8}},
        ("spec.training", "polynomial ends at learning rate 1e-7"),
    ),
    (
        "GRPOJob",
        {"spec.evaluation": {"everySteps": 5, "earlyStopping": {"metric": "reward"}}},
        ("spec.evaluation.earlyStopping.mode", "Required"),
    ),
    (
        "DPOJob",
        {"spec.dpo.referenceModel": {"source": {"hub": {"repo": "a/b"}}}},
        ("spec.dpo.referenceModel", "only with it"),
    ),
    # grpo
    ("GRPOJob", {"spec.grpo.rewards": []}, ("spec.grpo", "give at least one, or rewardPreset")),
    (
        "GRPOJob",
        {"spec.grpo.rewardPreset": "customer-service", "spec.grpo.rewards": [{**KEYWORD, "name": "empathy"}]},
        ("spec.grpo", "rewardPreset has rewards named action"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.normalizeWeights": True, "spec.grpo.rewards": [{**KEYWORD, "weight": -1}]},
        ("spec.grpo", "need a weight of at least 0"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewardAggregation": "geometric_mean", "spec.grpo.rewards": [{**KEYWORD, "weight": 0}]},
        ("spec.grpo", "need a weight of at least 0 for each of rewards, and one above 0"),
    ),
    ("GRPOJob", {"spec.grpo.rewards": [{**KEYWORD, "weight": 0}]}, ("spec.grpo", "all weights are 0")),
    (
        "GRPOJob",
        {
            "spec.grpo.rewardAggregation": "geometric_mean",
            "spec.grpo.rewards": [KEYWORD, {"name": "x", "softOverlong": {"cache": 8}}],
        },
        ("spec.grpo", "softOverlong is never above 0"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "x", "keyword": {"words": ["a"], "mode": "all", "enough": 2}}]},
        ("spec.grpo.rewards[0].keyword", "enough goes with mode any"),
    ),
    *(
        (
            "GRPOJob",
            {"spec.grpo.rewards": [{"name": "x", compares: {"column": column}}]},
            (f"spec.grpo.rewards[0].{compares}.column", "another name by dataset.columns"),
        )
        for compares, column in (("accuracy", "completion"), ("similarity", "prompt"))
    ),
    ("GRPOJob", {"spec.grpo.rewards": [KEYWORD, KEYWORD]}, ("spec.grpo", "different names")),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "x"}]}, ("spec.grpo.rewards[0]", "exactly one of length")),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{**KEYWORD, "regex": {"pattern": "x"}}]},
        ("spec.grpo.rewards[0]", "exactly one of length"),
    ),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "Bad Name", "length": {"target": 1}}]}, ("spec.grpo.rewards[0].name",)),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "l", "length": {"min": 1}}]}, ("length", "min and max go together")),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "l", "length": {"min": 2, "max": 1}}]},
        ("length", "min must not be above max"),
    ),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "r", "rewardModel": {}}]}, ("rewardModel", "exactly one of fromJob")),
    (
        "GRPOJob",
        {
            "spec.grpo.rewards": [
                {"name": "r", "rewardModel": {"fromJob": {"name": "judge"}, "source": {"volume": CLAIMED}}}
            ]
        },
        ("rewardModel", "exactly one of fromJob, source"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "r", "rewardModel": {"source": {"volume": CLAIMED}, "minAccuracy": 0.5}}]},
        ("rewardModel", "go with fromJob"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "r", "rewardModel": {"source": {}}}]},
        ("spec.grpo.rewards[0].rewardModel.source", "give exactly one of hub, volume"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "r", "rewardModel": {"source": {"hub": {"repo": "a/b"}, "volume": CLAIMED}}}]},
        ("spec.grpo.rewards[0].rewardModel.source", "give exactly one of hub, volume"),
    ),
    (
        "GRPOJob",
        {
            "spec.grpo.rewards": [
                {"name": "r", "rewardModel": {"source": {"hub": {"repo": "a/b"}}, "acknowledgeUnvalidated": True}}
            ]
        },
        ("rewardModel", "go with fromJob"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "r", "rewardModel": {"source": {"hub": {"repo": "https://hf.co/a/b"}}}}]},
        ("spec.grpo.rewards[0].rewardModel.source.hub.repo", "should match"),
    ),
    ("DPOJob", {"spec.profile": "fast"}, ("spec.profile", 'supported values: "smoke", "conservative"')),
    ("RewardJob", {"spec.reward.minAccuracy": 1.01}, ("spec.reward.minAccuracy", "less than or equal to 1")),
    (
        "RewardJob",
        {"spec.reward.minAccuracy": 0.6, "spec.evaluation.enabled": False},
        ("spec.reward", "reward.minAccuracy needs held-out pairs"),
    ),
    (
        "RewardJob",
        {"spec.reward.minAccuracy": 0.6, "spec.dataset.evalSplit": 0},
        ("spec.reward", "reward.minAccuracy needs held-out pairs"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "r", "rewardModel": {"fromJob": {"name": "judge"}, "minAccuracy": 2}}]},
        ("rewardModel.minAccuracy", "less than or equal to 1"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "h", "http": {"url": "http://example.com/score"}}]},
        ("spec.grpo.rewards[0].http.url", "should match"),
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "h", "http": {"url": "https://user:pass@example.com/"}}]},
        ("spec.grpo.rewards[0].http.url", "should match"),
    ),
    ("GRPOJob", {"spec.grpo.numGenerations": 1}, ("spec.grpo.numGenerations",)),
    ("GRPOJob", {"spec.grpo.generation": {"temperature": 0}}, ("spec.grpo.generation.temperature",)),
    ("GRPOJob", {"spec.grpo.lossType": "ppo"}, ("spec.grpo.lossType", "Unsupported value")),
    # evaluation, checkpoint
    ("DPOJob", {"spec.evaluation.everySteps": 0}, ("spec.evaluation.everySteps",)),
    ("DPOJob", {"spec.evaluation.samplePrompts": [""]}, ("spec.evaluation.samplePrompts[0]",)),
    ("DPOJob", {"spec.checkpoint": {"everyMinutes": 1, "everySteps": 1}}, ("spec.checkpoint", "give only one of")),
    ("DPOJob", {"spec.checkpoint": {"everyEpochs": 1, "everySteps": 1}}, ("spec.checkpoint", "give only one of")),
    ("DPOJob", {"spec.checkpoint": {"resumeFrom": {}}}, ("spec.checkpoint.resumeFrom", "exactly one of job, volume")),
    (
        "DPOJob",
        {"spec.checkpoint": {"resumeFrom": {"job": "a", "volume": CLAIMED}}},
        ("spec.checkpoint.resumeFrom", "exactly one of job, volume"),
    ),
    ("DPOJob", {"spec.checkpoint": {"resumeFrom": {"job": "a", "step": 0}}}, ("spec.checkpoint.resumeFrom.step",)),
    ("DPOJob", {"spec.evaluation": {"everyEpochs": 1, "everySteps": 1}}, ("spec.evaluation", "not both")),
    ("SFTJob", {"spec.evaluation": {"everyEpochs": 1, "enabled": False}}, ("spec.evaluation", "need evaluation")),
    ("DPOJob", {"spec.checkpoint.keep": 1}, ("spec.checkpoint.keep", "greater than or equal to 2")),
    # topology
    ("DPOJob", {"spec.numNodes": 0}, ("spec.numNodes",)),
    ("DPOJob", {"spec.numNodes": 1.5}, ("spec.numNodes", "integer")),
    (
        "DPOJob",
        {"spec.numNodes": 2, "spec.storage.accessModes": ["ReadWriteOnce"]},
        ("spec.storage", "several nodes need storage.accessModes with ReadWriteMany"),
    ),
    ("DPOJob", {"spec.numProcPerNode": 9}, ("spec.numProcPerNode", "at most 8 without GPUs")),
    (
        "DPOJob",
        {"spec.numProcPerNode": 4, "spec.resources": GPUS},
        ("spec.numProcPerNode", "must equal the number of GPUs"),
    ),
    ("DPOJob", {"spec.resources": {"limits": {"nvidia.com/gpu": 0}}}, ("spec.resources", "whole number from 1 to 64")),
    ("DPOJob", {"spec.resources": {"limits": {"nvidia.com/gpu": "500m"}}}, ("spec.resources", "whole number")),
    *[
        ("DPOJob", {"spec.resources": {"limits": limits, "requests": {name: 1}}}, ("spec.resources", "and equal"))
        for name, limits in (
            ("nvidia.com/gpu", {"cpu": 1}), ("nvidia.com/gpu", GPUS["limits"]), ("rdma/hca", {"rdma/hca": 2}),
            ("hugepages-2Mi", {"hugepages-2Mi": "4Mi", "cpu": 1}),
        )
    ],
    ("DPOJob", {"spec.resources": {"requests": {"nvidia.com/gpu": 1}}}, ("spec.resources", "must be in limits too")),
    ("DPOJob", {"spec.resources": {"limits": {"hugepages-2Mi": "4Mi"}}}, ("spec.resources", "name memory in limits")),
    ("DPOJob", {"spec.resources": {"limits": {"rdma/hca": "1500m"}}}, ("spec.resources", "must be a whole number")),
    (
        "DPOJob",
        {"spec.resources": {"limits": {"nvidia.com/gpu": 1, "amd.com/gpu": 1}}},
        ("spec.resources", "one kind of GPU"),
    ),
    *[
        ("DPOJob", {"spec.resources": {part: {name: 1}}}, ("spec.resources", "resources are cpu, memory"))
        for part in ("limits", "requests")
        for name in (
            "gpu", "storage", "pods", "limits.cpu", "hugepages-x", "kubernetes.io/x", "a.kubernetes.io/x",
            "requests.nvidia.com/gpu", "a b/c", "A.com/x", "a.com/x/y", "a.com/", "/x", "a..com/x",
        )
    ],
    *[
        ("DPOJob", {"spec.resources": {"limits": {name: 1}}}, ("spec.resources", "can use no other accelerator"))
        for name in ("gpu.intel.com/i915", "google.com/tpu", "aws.amazon.com/neuroncore", "nvidia.com/gpu.shared")
    ],
    ("DPOJob", {"spec.resources": {"limits": {"cpu": "lots"}}}, ("spec.resources.limits.cpu",)),
    ("DPOJob", {"spec.resources": {"limits": {"memory": "-1Gi"}}}, ("spec.resources.limits.memory",)),
    (
        "DPOJob",
        {"spec.resources": {"limits": {"cpu": 1}, "requests": {"cpu": "1500m"}}},
        ("spec.resources", "requests must not be above limits"),
    ),
    ("DPOJob", {"spec.resources": {"limits": {"cpu": -1}}}, ("spec.resources.limits.cpu", "or equal to 0")),
    ("DPOJob", {"spec.resources": {"requests": {"memory": -1}}}, ("spec.resources.requests.memory", "equal to 0")),
    ("DPOJob", {"spec.sharedMemory": "some"}, ("spec.sharedMemory",)),
    ("DPOJob", {"spec.sharedMemory": -1}, ("spec.sharedMemory", "greater than or equal to 0")),
    ("DPOJob", {"spec.image": "two words"}, ("spec.image",)),
    ("DPOJob", {"spec.nodeSelector": {"disk": "x" * 64}}, ("spec.nodeSelector.disk",)),
    ("DPOJob", {"spec.tolerations": [{"value": "v"}]}, ("spec.tolerations[0]", "operator must be Exists")),
    ("DPOJob", {"spec.tolerations": [{"key": "k", "tolerationSeconds": 1}]}, ("spec.tolerations[0]", "NoExecute")),
    ("DPOJob", {"spec.queue": {}}, ("spec.queue.name", "Required")),
    ("DPOJob", {"spec.queue": {"name": "Team"}}, ("spec.queue.name", "should match")),
    ("DPOJob", {"spec.queue": {"name": "q" * 64}}, ("spec.queue.name", "63")),
    ("DPOJob", {"spec.queue": {"name": "q", "priorityClass": "a b"}}, ("spec.queue.priorityClass", "should match")),
    ("DPOJob", {"spec.queue": {"name": "q", "topology": {}}}, ("spec.queue.topology", "exactly one of required,")),
    (
        "DPOJob",
        {"spec.queue": {"name": "q", "topology": {"required": "rack", "unconstrained": True}}},
        ("spec.queue.topology", "exactly one of required, preferred, unconstrained"),
    ),
    (
        "DPOJob",
        {"spec.queue": {"name": "q", "topology": {"unconstrained": False}}},
        ("spec.queue.topology.unconstrained", "Unsupported value"),
    ),
    ("DPOJob", {"spec.backend": "mpijob"}, ("spec.backend",)),
    ("DPOJob", {"spec.schedulerName": "The one"}, ("spec.schedulerName",)),
    ("DPOJob", {"spec.podGroupPolicy": "gang", "spec.schedulerName": "gang"}, ("spec.podGroupPolicy",)),
    ("DPOJob", {"spec.podGroupPolicy": "volcano"}, ("spec.podGroupPolicy", "schedulerName")),
    # the pods
    *[
        ("DPOJob", {f"spec.pod.{field}": {key: "x"}}, (f"spec.pod.{field}", "know pods by", "remove it"))
        for field in ("labels", "annotations")
        for key in (
            "scheduling.x-k8s.io/pod-group", "scheduling.k8s.io/group-name", "scheduling.volcano.sh/queue-name",
            "container.apparmor.security.beta.kubernetes.io/trainer", "seccomp.security.alpha.kubernetes.io/pod",
            "container.seccomp.security.alpha.kubernetes.io/trainer", "iam.amazonaws.com/role",
            "app.kubernetes.io/name", "app.kubernetes.io/instance",
            "trl-operator.io/attempt", "training.kubeflow.org/job-name", "trainer.kubeflow.org/trainjob-ancestor-step",
            "kueue.x-k8s.io/queue-name", "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-name",
            "app.kubernetes.io/managed-by", "provreq.kueue.x-k8s.io/x", "job-name", "controller-uid",
        )
    ],
    ("DPOJob", {"spec.pod.labels": {"a b": "x"}}, ("spec.pod.labels", "a key is a name, or prefix/name")),
    ("DPOJob", {"spec.pod.annotations": {"/x": "x"}}, ("spec.pod.annotations", "a key is a name, or prefix/name")),
    ("DPOJob", {"spec.pod.labels": {"a": "x y"}}, ("spec.pod.labels.a", "should match")),
    ("DPOJob", {"spec.pod.labels": {f"k{n}": "" for n in range(33)}}, ("spec.pod.labels", "at most 32")),
    *[
        ("DPOJob", {f"spec.pod.{name}": {}}, (f'unknown field "spec.pod.{name}"',))
        for name in ("securityContext", "hostNetwork", "initContainers", "containers", "spec")
    ],
    ("DPOJob", {"spec.pod.runtimeClassName": "Not valid"}, ("spec.pod.runtimeClassName", "should match")),
    ("DPOJob", {"spec.onePodPerNode": "yes"}, ("spec.onePodPerNode", "boolean")),
    ("DPOJob", {"spec.pod.hostAliases": [{"ip": "here", "hostnames": ["a"]}]}, ("spec.pod.hostAliases[0].ip",)),
    ("DPOJob", {"spec.pod.hostAliases": [{"ip": "::1"}]}, ("spec.pod.hostAliases[0].hostnames", "Required")),
    ("DPOJob", {"spec.pod.dnsConfig": {"nameservers": ["1.1.1.1"] * 4}}, ("spec.pod.dnsConfig.nameservers", "most 3")),
    ("DPOJob", {"spec.pod.dnsConfig": {"nameservers": ["ns.team"]}}, ("dnsConfig.nameservers", "an IP address")),
    (
        "DPOJob",
        {"spec.pod.volumes": [{"name": "a", "mountPath": "/a", "csi": {"driver": "d" * 64}}]},
        ("spec.pod.volumes[0].csi.driver", "63"),
    ),
    ("DPOJob", {"spec.pod.dnsConfig": {"options": [{"value": "2"}]}}, ("spec.pod.dnsConfig.options[0].name",)),
    (
        "DPOJob",
        {"spec.pod.topologySpreadConstraints": [SPREAD, SPREAD]},
        ("spec.pod.topologySpreadConstraints", "no two may have the same topologyKey and whenUnsatisfiable"),
    ),
    (
        "DPOJob",
        {"spec.pod.topologySpreadConstraints": [{**SPREAD, "minDomains": 2}]},
        ("spec.pod.topologySpreadConstraints[0]", "minDomains goes with whenUnsatisfiable DoNotSchedule"),
    ),
    (
        "DPOJob",
        {"spec.pod.topologySpreadConstraints": [{**SPREAD, "maxSkew": 0}]},
        ("spec.pod.topologySpreadConstraints[0].maxSkew", "greater than or equal to 1"),
    ),
    (
        "DPOJob",
        {"spec.pod.topologySpreadConstraints": [{**SPREAD, "labelSelector": {"matchLabels": {"a b": "x"}}}]},
        ("spec.pod.topologySpreadConstraints[0].labelSelector", "a label is a name"),
    ),
    *[
        ("DPOJob", {f"spec.pod.affinity.nodeAffinity.{REQUIRED}": {"nodeSelectorTerms": [{"matchExpressions": [
            expression]}]}}, (f"{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0]", says))
        for expression, says in (
            ({"key": "a", "operator": "In"}, "values go with operator In, NotIn, Gt or Lt"),
            ({"key": "a", "operator": "Exists", "values": ["x"]}, "values go with operator In, NotIn, Gt or Lt"),
            ({"key": "a", "operator": "Gt", "values": ["1", "2"]}, "compare with one whole number"),
            ({"key": "a", "operator": "Is", "values": ["1"]}, "Unsupported value"),
        )
    ],
    (
        "DPOJob",
        {f"spec.pod.affinity.podAffinity.{REQUIRED}": [{"topologyKey": "zone", "namespaces": ["other"]}]},
        (f'unknown field "spec.pod.affinity.podAffinity.{REQUIRED}[0].namespaces"',),
    ),
    (
        "DPOJob",
        {f"spec.pod.affinity.podAntiAffinity.{REQUIRED}": [{"topologyKey": "zone", "labelSelector": {
            "matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}}]},
        (f"spec.pod.affinity.podAntiAffinity.{REQUIRED}[0].labelSelector.matchExpressions[0]", "only with these"),
    ),
    ("DPOJob", {"spec.pod.serviceAccountName": "Root User"}, ("spec.pod.serviceAccountName", "should match")),
    *[
        ("DPOJob", {"spec.pod.volumes": [{"name": "a", "mountPath": path, "emptyDir": {}}]},
         ("spec.pod.volumes[0].mountPath", "choose another path, like /data"))
        for path in ("/mnt", "/mnt/storage", "/etc", "/etc/trl", "/etc/trl-ca/x", "/tmp", "/dev/shm", "/home/trainer/x",
                     "/var/run", "/var/run/secrets/trl", "/run/secrets", "/usr/share", "/opt/venv/lib", "/proc/self",
                     "/etc/pki/ca-trust", "/lib/x", "/lib64/x", "/bin/x", "/sbin/x", "/run/x")
    ],
    *[
        ("DPOJob", {"spec.pod.volumes": [{"name": "a", "mountPath": path, "emptyDir": {}}]},
         ("spec.pod.volumes[0].mountPath", "should match"))
        for path in ("data", "/data/", "/data//a", "/data/../etc/trl", "/a:b", "/./etc/trl")
    ],
    ("DPOJob", {"spec.pod.volumes": [VOLUME, VOLUME | {"name": "b"}]}, ("spec.pod.volumes", "the same mountPath")),
    ("DPOJob", {"spec.pod.volumes": [VOLUME, VOLUME | {"mountPath": "/b"}]}, ("spec.pod.volumes", "the same name")),
    ("DPOJob", {"spec.pod.volumes": [{"name": "a", "mountPath": "/a"}]}, ("spec.pod.volumes[0]", "exactly one of")),
    (
        "DPOJob",
        {"spec.pod.volumes": [VOLUME | {"secret": {"secretName": "s"}}]},
        ("spec.pod.volumes[0]", "exactly one of persistentVolumeClaim, configMap, secret, emptyDir, csi"),
    ),
    ("DPOJob", {"spec.pod.volumes": [VOLUME | {"subPath": "a"}]}, ("spec.pod.volumes[0]", "goes with persistent")),
    ("DPOJob", {"spec.pod.volumes": [VOLUME | {"name": "A"}]}, ("spec.pod.volumes[0].name", "should match")),
    *[
        ("DPOJob", {"spec.pod.volumes": [{"name": "a", "mountPath": "/a", source: {}}]},
         (f'unknown field "spec.pod.volumes[0].{source}"',))
        for source in ("hostPath", "nfs", "projected", "ephemeral")
    ],
    ("DPOJob", {"spec.pod.envFrom": [{"prefix": "A_"}]}, ("spec.pod.envFrom[0]", "one of configMapRef, secretRef")),
    *[
        ("DPOJob", {"spec.pod.envFrom": [{source: {"name": "s"}}]}, ("spec.pod.envFrom[0].prefix", "Required"))
        for source in ("configMapRef", "secretRef")
    ],
    *[
        ("DPOJob", {"spec.pod.envFrom": [{"prefix": prefix, "configMapRef": {"name": "c"}}]},
         ("spec.pod.envFrom[0].prefix", "should match"))
        for prefix in ("PY", "LD", "TR", "PYTHON", "team_", "T.EAM_")
    ],
    *[
        ("DPOJob", {"spec.pod.envFrom": [{"prefix": prefix, "configMapRef": {"name": "c"}}]},
         ("spec.pod.envFrom[0].prefix", "choose another one"))
        for prefix in ("LD_", "PYTHON_", "PET_", "TRL_X_", "MASTER_", "CUDA_", "DISABLE_KUBEFLOW_")
    ],
    ("DPOJob", {"spec.pod.caBundle": {"key": "ca.crt"}}, ("spec.pod.caBundle.name", "Required")),
    (
        "DPOJob",
        {"spec.env": [{"name": "A", "valueFrom": {}}]},
        ("spec.env[0].valueFrom", "give exactly one of secretKeyRef, fieldRef"),
    ),
    *[
        ("DPOJob", {"spec.env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": path}}}]},
         ("spec.env[0].valueFrom.fieldRef.fieldPath", "should match"))
        for path in ("spec.containers", "metadata.labels", "metadata.labels['a b']")
    ],
    # storage
    ("DPOJob", {"spec.storage": {}}, ("spec.storage", "exactly one of claimName, size")),
    ("DPOJob", {"spec.storage": {"claimName": "c", "size": "1Gi"}}, ("spec.storage", "exactly one of")),
    ("DPOJob", {"spec.storage": {"size": "1Gi", "subPath": "x"}}, ("spec.storage", "subPath goes with claimName")),
    ("DPOJob", {"spec.storage": {"claimName": "c", "retain": True}}, ("spec.storage", "go with size")),
    ("DPOJob", {"spec.storage": {"claimName": "c", "reuse": "never"}}, ("spec.storage", "reuse goes with size")),
    ("DPOJob", {"spec.storage": {"size": "1Gi", "reuse": "IfFits"}}, ("spec.storage.reuse", '"ifFits"')),
    ("DPOJob", {"spec.storage": {"size": "1Gi", "accessModes": ["RWX"]}}, ("spec.storage.accessModes",)),
    ("DPOJob", {"spec.storage": {"claimName": "c", "subPath": ".."}}, ("spec.storage.subPath",)),
    ("DPOJob", {"spec.storage": {"size": -5}}, ("spec.storage.size", "greater than or equal to 0")),
    ("DPOJob", {"spec.storage": {"size": 0}}, ("spec.storage", "size must be above 0")),
    ("DPOJob", {"spec.storage": {"size": "0Gi"}}, ("spec.storage", "size must be above 0")),
    (
        "DPOJob",
        {"spec.storage": {"size": "1Gi", "accessModes": ["ReadWriteOncePod", "ReadWriteMany"]}},
        ("spec.storage", "ReadWriteOncePod must stand alone"),
    ),
    # environment
    ("DPOJob", {"spec.env": [{"name": "A"}]}, ("spec.env[0]", "exactly one of value, valueFrom")),
    ("DPOJob", {"spec.env": [{"name": "1A", "value": ""}]}, ("spec.env[0].name",)),
    *[
        ("DPOJob", {"spec.env": [{"name": name, "value": "x"}]}, ("spec.env[0]", "remove it"))
        for name in (
            "LD_PRELOAD", "PYTHONPATH", "PATH", "KUBERNETES_SERVICE_HOST", "KUBEFLOW_TRAINER_SERVER_URL", "RANK",
            "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "PET_NNODES", "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES",
        )
    ],
    *[
        ("DPOJob", {"spec.env": [{"name": name, "value": "x"}]}, ("spec.env[0]", "valueFrom.secretKeyRef"))
        for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET", "DB_PASSWORD")
    ],
    # run policy, tracking
    ("DPOJob", {"spec.runPolicy.maxRestarts": -1}, ("spec.runPolicy.maxRestarts",)),
    ("DPOJob", {"spec.runPolicy.startTimeoutSeconds": 29}, ("spec.runPolicy.startTimeoutSeconds",)),
    ("DPOJob", {"spec.runPolicy.terminationGracePeriodSeconds": 5}, ("spec.runPolicy.terminationGracePeriodSeconds",)),
    ("DPOJob", {"spec.runPolicy.ttlSecondsAfterFinished": -1}, ("spec.runPolicy.ttlSecondsAfterFinished",)),
    ("DPOJob", {"spec.runPolicy.onOutOfMemory": "Shrink"}, ("spec.runPolicy.onOutOfMemory", "ShrinkMicroBatch")),
    (
        "DPOJob",
        {"spec.runPolicy.onOutOfMemory": "ShrinkMicroBatch", "spec.training": {"perDeviceBatchSize": 3}},
        ("spec.runPolicy", "make it even, or use Fail"),
    ),
    ("DPOJob", {"spec.tracking": {"wandb": {}}}, ("spec.tracking.wandb.project", "Required")),
    ("DPOJob", {"spec.tracking": {"tensorboard": {"path": "/abs"}}}, ("spec.tracking.tensorboard.path",)),
]  # fmt: skip

# kind, change, the default that it does not go with, the field and what is said of it
RESOLVED: list[tuple[str, Change, Change, str, str]] = [
    (
        "DPOJob",
        {"spec.training.lrSchedulerArgs": {"minLrRate": 0.1}},
        {"spec.training.lrScheduler": "cosine"},
        "spec.training",
        "lrSchedulerArgs are for lrScheduler cosine_with_min_lr and warmup_stable_decay: remove them, or use one of"
        " these",
    ),
    (
        "GRPOJob",
        {"spec.grpo.stepsPerGeneration": 6},
        {"spec.training.gradientAccumulationSteps": 4},
        "spec.grpo",
        "grpo.stepsPerGeneration must be a multiple of training.gradientAccumulationSteps: remove it, or change one of"
        " the two",
    ),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "x", "softOverlong": {"cache": 257}}]},
        {"spec.grpo.generation": {"maxCompletionLength": 256}},
        "spec.grpo",
        "rewards: softOverlong.cache must not be above generation.maxCompletionLength",
    ),
    (
        "GRPOJob",
        {"spec.training": {"perDeviceBatchSize": 1, "gradientAccumulationSteps": 3}, "spec.resources": GPUS},
        {"spec.grpo.numGenerations": 4},
        "spec.training",
        "training.perDeviceBatchSize x numNodes x numProcPerNode = 2, x training.gradientAccumulationSteps = 6, must be"
        " a multiple of grpo.numGenerations = 4: training.gradientAccumulationSteps may be [2, 4, 6, 8, 12, 16, 24, 32,"
        " 48, 64] or 4",
    ),
    (
        "GRPOJob",
        {"spec.evaluation.perDeviceBatchSize": 3},
        {"spec.grpo.numGenerations": 4},
        "spec.evaluation",
        "evaluation.perDeviceBatchSize = 3, x numNodes x numProcPerNode = 1, must be a multiple of grpo.numGenerations"
        " = 4: remove it, or use 4",
    ),
]
"""What the API server refuses where the user has written the default, and the operator where nobody has."""

GOOD: list[tuple[str, Change]] = [
    *((kind, {}) for kind in PLURALS),
    *((kind, {"spec.profile": profile}) for kind in PLURALS for profile in PROFILES),
    ("DPOJob", {"metadata.name": "a"}),
    # The admin's defaults may say the access modes.
    ("DPOJob", {"spec.numNodes": 2}),
    ("DPOJob", {"metadata.name": "a" * 40}),
    ("DPOJob", {"spec.model": {"volume": {"claimName": "models", "path": "org/base..v2/.snap"}}}),
    ("DPOJob", {"spec.model": {"hub": {"repo": "gpt2", "revision": "main", "tokenSecretRef": {"name": "hf"}}}}),
    ("DPOJob", {"spec.dataset.train": {"inline": [{"prompt": "a", "any": {"thing": [1, None, 2.5]}}]}}),
    ("GRPOJob", {"spec.dataset.chatTemplateKwargs": {"enable_thinking": False, "more": {"of": [1, "it"]}}}),
    *((kind, MIXED) for kind in PLURALS),
    ("DPOJob", {"spec.dataset.columns": {"chosen": "good answer", "rejected": "bad answer"}}),
    ("DPOJob", {"spec.dataset.evalSplit": 0}),
    ("DPOJob", {"spec.training": {"epochs": 0.5, "warmupSteps": 3}}),
    ("DPOJob", {"spec.training.maxSteps": 10}),
    (
        "DPOJob",
        {
            "spec.training": {
                "lrScheduler": "warmup_stable_decay",
                "lrSchedulerArgs": {"minLrRate": 0, "decayRatio": 1, "decayType": "1-sqrt"},
                "adamBeta1": 0,
            },
            "spec.dpo": {"fDivergenceType": "alpha_divergence", "fAlphaDivergenceCoef": 1, "ldAlpha": 0},
        },
    ),
    ("GRPOJob", {"spec.evaluation": {"everyEpochs": 0.1, "earlyStopping": {**STOPPING, "metric": "reward"}}}),
    ("SFTJob", {"spec.checkpoint": {"everyEpochs": 2}}),
    ("SFTJob", {"spec.training.extraArgs": {"neftune_noise_alpha": "5", "torch_empty_cache_steps": "50"}}),
    ("GRPOJob", {"spec.training.extraArgs": {"min_p": "0.1", "use_bias_correction_kl": "false"}}),
    *((kind, {"spec.training.extraArgs": {"torch_empty_cache_steps": "50"}}) for kind in ("RewardJob", "DPOJob")),
    ("GRPOJob", {"spec.grpo.stepsPerGeneration": 8}),
    ("SFTJob", {"spec.sft": {"packing": True, "packingStrategy": "wrapped", "lossType": "dft"}}),
    ("SFTJob", {"spec.sft": {"packing": False}, "spec.training.paddingFree": "auto"}),
    ("GRPOJob", {"spec.training.paddingFree": "never"}),
    ("GRPOJob", {"spec.grpo.rewards": None, "spec.grpo.rewardPreset": "customer-service", "spec.grpo.delta": 2}),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "x", "softOverlong": {"cache": 256}}, {**KEYWORD, "weight": -1}]}),
    ("GRPOJob", {"spec.grpo.normalizeWeights": True, "spec.grpo.rewards": [{**KEYWORD, "weight": 3}]}),
    ("DPOJob", {"spec.peft": {"method": "none"}}),
    ("DPOJob", {"spec.peft": {"method": "qlora"}, "spec.resources": GPUS}),
    ("DPOJob", {"spec.peft": {"targetModules": ["q_proj"], "useDora": True}}),
    (
        "GRPOJob",
        {"spec.fsdp.hybrid": True, "spec.numNodes": 2, "spec.resources": GPUS, "spec.storage": SHARED},
    ),
    ("DPOJob", {"spec.fsdp.cpuOffload": True, "spec.resources": GPUS}),
    ("GRPOJob", {"spec.model.addTokens": ["<a>"], "spec.peft.method": "none"}),
    ("DPOJob", {"spec.model.addTokens": ["<a>"], "spec.peft.method": "lora"}),
    (
        "RewardJob",
        {"spec.training.precision": "fp16", "spec.training.activationOffloading": True, "spec.resources": GPUS},
    ),
    ("SFTJob", {"spec.peft.dropout": 0.1, "spec.training.gradientCheckpointing": True}),
    ("GRPOJob", {"spec.peft": {"method": "lora", "dropout": 0.1}, "spec.resources": GPUS}),
    ("DPOJob", {"spec.peft": {"targetModules": ["q_proj"], "targetParameters": ["mlp.experts.gate_up_proj"]}}),
    ("RewardJob", {"spec.evaluation": {"everySteps": 5, "earlyStopping": STOPPING, "atStart": False}}),
    ("DPOJob", {"spec.dpo": {"lossType": ["sigmoid", "sft"], "lossWeights": [1, 0.5]}}),
    ("DPOJob", {"spec.dpo": {"lossType": ["robust"], "labelSmoothing": 0.1}}),
    ("DPOJob", {"spec.dpo.referenceModel": {"mode": "explicit", "source": {"hub": {"repo": "a/b"}}}}),
    (
        "DPOJob",
        {"spec.dpo.referenceModel": {"mode": "explicit", "source": {"fromJob": {"kind": "SFTJob", "name": "a"}}}},
    ),
    *((kind, {"spec.model": {"fromJob": {"kind": "GRPOJob", "name": "a"}, "padToken": "x"}}) for kind in PLURALS),
    ("DPOJob", {"spec.numNodes": 4, "spec.storage": SHARED}),
    ("DPOJob", {"spec.storage": {"size": "0.5Gi", "accessModes": ["ReadWriteOncePod"]}}),
    *[("DPOJob", {"spec.storage": {"size": "1Gi", "reuse": reuse}}) for reuse in ("always", "ifFits", "never")],
    ("DPOJob", {"spec.storage": {"size": 5000000000}, "spec.resources": {"limits": {"memory": 8000000000}}}),
    ("DPOJob", {"spec.numNodes": 4, "spec.storage": {"claimName": "shared", "subPath": "team/a"}}),
    ("DPOJob", {"spec.numProcPerNode": 8}),
    ("DPOJob", {"spec.numProcPerNode": 2, "spec.resources": GPUS}),
    ("DPOJob", {"spec.resources": {"limits": {"nvidia.com/gpu": "2"}}, "spec.numProcPerNode": 2}),
    ("DPOJob", {"spec.resources": {"limits": {"nvidia.com/mig-1g.10gb": 1, "cpu": "4", "memory": "16Gi"}}}),
    ("DPOJob", {"spec.resources": {"limits": {"amd.com/gpu": 8}}}),
    (
        "GRPOJob",
        {
            "spec.resources": {
                "limits": {
                    "nvidia.com/gpu": "2", "vpc.amazonaws.com/efa": 4, "rdma/rdma_shared_device_a": 1, "cpu": 8,
                    "nvidia.com/hostdev": "1", "example.com/fpga": 0, "hugepages-2Mi": "5120Mi", "memory": "64Gi",
                },
                "requests": {"nvidia.com/gpu": 2, "rdma/rdma_shared_device_a": "1", "hugepages-2Mi": "5Gi"},
            },
            "spec.numProcPerNode": 2,
        },
    ),
    ("DPOJob", {"spec.resources": {"limits": {"rdma/hca": 1}}, "spec.numProcPerNode": 8}),
    ("DPOJob", {"spec.dpo": {"labelSmoothing": 0}}),
    ("DPOJob", {"spec.training.optimizer": "paged_adamw_8bit", "spec.resources": {"limits": {"nvidia.com/gpu": 1}}}),
    ("DPOJob", {"spec.model.attnImplementation": "flash_attention_2", "spec.resources": GPUS}),
    ("DPOJob", {"spec.resources": {"limits": {"cpu": 2, "memory": "2Gi"}, "requests": {"cpu": "500m"}}}),
    ("DPOJob", {"spec.sharedMemory": "1Gi", "spec.nodeSelector": {"disk": "fast"}, "spec.priorityClassName": "high"}),
    *[("DPOJob", {"spec.backend": backend}) for backend in ("pytorchjob", "trainjob")],
    ("DPOJob", {"spec.podGroupPolicy": "coscheduling", "spec.schedulerName": "scheduler-plugins-scheduler"}),
    ("DPOJob", {"spec.schedulerName": "binpacking"}),
    ("DPOJob", {"spec.tolerations": [{"operator": "Exists"}, {"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}),
    ("DPOJob", {"spec.pod": {}, "spec.onePodPerNode": True}),
    ("DPOJob", {"spec.pod.envFrom": [{"prefix": "A_", "configMapRef": {"name": "c"}}]}),
    ("DPOJob", {"spec.pod.caBundle": {"name": "ca"}}),
    *[
        ("DPOJob", {"spec.pod.volumes": [VOLUME, VOLUME | {"name": "b", "mountPath": path}]})
        for path in ("/data/.hidden/a..b", "/mnt2", "/home/other", "/opt/team", "/etcetera", "/library")
    ],
    *[
        ("DPOJob", {"spec.env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": path}}}]})
        for path in ("spec.nodeName", "status.hostIP", "metadata.annotations['example.com/a.b']")
    ],
    (
        "SFTJob",
        {
            "spec.pod.labels": {"trl-operator.example.com/x": "", "app": "a.b_c"},
            "spec.pod.annotations": {"jobset.example.com/x": "any text: {}"},
            "spec.pod.topologySpreadConstraints": [SPREAD, {**SPREAD, "whenUnsatisfiable": "DoNotSchedule"}],
            "spec.pod.hostAliases": [{"ip": "fd00::1", "hostnames": ["a", "b.example.com"]}],
            "spec.pod.dnsConfig": {"options": [{"name": "edns0"}]},
        },
    ),
    ("DPOJob", {"spec.queue": {"name": "team-a", "priorityClass": "high", "topology": {"unconstrained": True}}}),
    ("SFTJob", {"spec.queue": {"name": "team-a", "topology": {"preferred": "cloud.provider.com/topology-rack"}}}),
    ("DPOJob", {"spec.image": "registry.example.com:5000/team/trainer@sha256:" + "0" * 64}),
    ("DPOJob", {"spec.imagePullSecrets": [{"name": "pull"}]}),
    ("DPOJob", {"spec.env": [{"name": "HF_HUB_DISABLE_IMPLICIT_TOKEN", "value": "1"}]}),
    ("DPOJob", {"spec.env": [{"name": "MY_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
    ("DPOJob", {"spec.env": [{"name": "NCCL_DEBUG", "value": "$(INFO) 'quoted'\n"}]}),
    ("DPOJob", {"spec.runPolicy": {"maxRestarts": 0, "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 0}}),
    ("DPOJob", {"spec.runPolicy": {"onOutOfMemory": "ShrinkMicroBatch"}}),
    ("GRPOJob", {"spec.runPolicy.onOutOfMemory": "Fail", "spec.training": {"perDeviceBatchSize": 1}}),
    ("DPOJob", {"spec.checkpoint": {"everySteps": 5, "keep": 2}}),
    ("GRPOJob", {"spec.checkpoint": {"resumeFrom": {"job": "first", "step": 40}}}),
    ("SFTJob", {"spec.checkpoint": {"resumeFrom": {"volume": CLAIMED}}}),
    ("DPOJob", {"spec.evaluation": {"enabled": False}}),
    ("DPOJob", {"spec.tracking": {"tensorboard": {}, "wandb": {"project": "p", "secretRef": {"name": "w"}}}}),
    ("RewardJob", {"spec.reward": {"centerRewardsCoefficient": 0.01}}),
    ("RewardJob", {"spec.reward": {"minAccuracy": 0}}),
    (
        "RewardJob",
        {"spec.reward.minAccuracy": 0.75, "spec.dataset.evalSplit": 0, "spec.dataset.eval": {"volume": CLAIMED}},
    ),
    (
        "GRPOJob",
        {
            "spec.model": {"hub": {"repo": "org/base", "tokenSecretRef": {"name": "a"}}},
            "spec.dataset.train": {"hub": {"repo": "org/rows", "tokenSecretRef": {"name": "b"}}},
            "spec.grpo.rewards": [
                {"name": "r", "rewardModel": {"source": {"hub": {"repo": "org/r", "tokenSecretRef": {"name": "c"}}}}}
            ],
        },
    ),
    ("SFTJob", {"spec.sft": {"packing": True, "assistantOnlyLoss": True}}),
    ("GRPOJob", {"spec.grpo.beta": 0}),
    ("GRPOJob", {"spec.training": {"perDeviceBatchSize": 2, "gradientAccumulationSteps": 1}, "spec.resources": GPUS}),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "h", "http": {"url": "http://score.team.svc:8080/v1"}}]}),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "r", "rewardModel": {"source": {"volume": CLAIMED}}}]}),
    (
        "GRPOJob",
        {"spec.grpo.rewards": [{"name": "r", "rewardModel": {"fromJob": {"name": "judge"}, "minAccuracy": 0.7}}]},
    ),
]  # fmt: skip


def manifest(kind: str, change: Change) -> dict[str, Any]:
    """A small valid job with some fields changed."""
    obj: dict[str, Any] = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": kind,
        "metadata": {"name": "job"},
        "spec": {
            "model": {"hub": {"repo": "org/base"}},
            "dataset": {"train": {"configMap": {"name": "rows", "key": "rows.jsonl"}}},
            "storage": {"size": "1Gi"},
        },
    }
    if kind == "GRPOJob":
        obj["spec"]["grpo"] = {"rewards": [KEYWORD]}
    obj = copy.deepcopy(obj)
    for path, value in change.items():
        *parents, last = path.split(".")
        place = obj
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            del place[last]
        else:
            place[last] = None if value is NULL else value
    return obj


Apply = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def create(control_plane: ControlPlane) -> Iterator[Apply]:
    """Create an object as a dry run; what comes back is why it was refused, or nothing."""
    api = client.ApiClient(config.load_kube_config(str(control_plane.kubeconfig)))
    custom = client.CustomObjectsApi(api)

    def attempt(obj: dict[str, Any]) -> str:
        try:
            custom.create_namespaced_custom_object(
                GROUP, VERSION, "default", PLURALS[obj["kind"]], obj, dry_run="All", field_validation="Strict"
            )
        except client.ApiException as error:
            return str(json.loads(error.body)["message"])
        return ""

    yield attempt
    api.close()


BAD_IDS = [f"{kind}-{','.join(change)}"[:80] for kind, change, _ in BAD]


@pytest.mark.parametrize(("kind", "change", "says"), BAD, ids=BAD_IDS)
def test_a_bad_manifest_is_refused_and_the_field_named(
    create: Apply, kind: str, change: Change, says: tuple[str, ...]
) -> None:
    answer = create(manifest(kind, change))
    for part in says:
        assert part in answer


@pytest.mark.parametrize(("kind", "change", "default", "field", "says"), RESOLVED)
def test_a_rule_about_a_default_is_the_api_servers_where_it_is_written_and_else_the_operators(
    create: Apply, kind: str, change: Change, default: Change, field: str, says: str, tmp_path: Path
) -> None:
    written, left_out = manifest(kind, change | default), manifest(kind, change)
    answer = create(written)
    assert f"{field}: Invalid value" in answer
    assert says in answer
    assert create(left_out) == ""
    stored = {**left_out, "metadata": {"name": "job", "namespace": "default", "uid": "u"}}
    with pytest.raises(ValidationError) as caught:
        parse_job(stored)
    assert why_refused(caught.value).startswith(field)
    assert why_refused(caught.value).endswith(f": {says}")
    assert says in refusal(left_out, tmp_path)


def test_the_api_server_stores_of_resolved_fields_what_the_user_wrote(
    control_plane: ControlPlane, namespace: str
) -> None:
    control_plane.apply(manifest("GRPOJob", {"spec.training.loggingSteps": 10, "metadata.namespace": namespace}))
    found = json.loads(control_plane.kubectl("get", "grpojob", "job", f"--namespace={namespace}", "--output=json"))
    assert found["spec"]["training"] == {"loggingSteps": 10, "seed": 42, "torchCompile": False}
    assert found["spec"]["grpo"].keys().isdisjoint({"beta", "numGenerations", "numIterations", "epsilon"})
    assert found["spec"]["peft"].keys().isdisjoint({"r", "alpha"})
    found["metadata"] |= {"uid": "u"}
    assert parse_job(found).training.training.gradient_accumulation_steps == 4


def refusal(obj: dict[str, Any], folder: Path) -> str:
    """Why `run` and `explain` refuse an object; "" if they take it."""
    (folder / "job.yaml").write_text(json.dumps(obj))
    try:
        read(folder / "job.yaml")
    except UserError as error:
        return error.message
    return ""


@pytest.mark.parametrize(("kind", "change", "says"), BAD, ids=BAD_IDS)
def test_run_and_explain_refuse_a_bad_manifest_and_name_the_same_field(
    kind: str, change: Change, says: tuple[str, ...], tmp_path: Path
) -> None:
    named = re.search(r"(spec|metadata)\b[\w.\[\]]*", says[0])
    assert (named[0] if named else says[0]) in refusal(manifest(kind, change), tmp_path)


SPELLINGS: list[tuple[str, Change]] = [
    # names, and fields that are null
    ("DPOJob", {"spec.training": {"learning_rate": 0.1}}),
    ("DPOJob", {"spec.model": {"volume": {"claim_name": "c", "path": "p"}}}),
    ("DPOJob", {"spec.training": {"perDeviceBatchSize": None, "maxSteps": None}, "spec.tolerations": NULL}),
    ("DPOJob", {"spec.dpo": NULL, "spec.runPolicy": NULL}),
    ("DPOJob", {"spec.model": NULL}),
    ("DPOJob", {"spec.training": {"unknown": None}}),
    ("DPOJob", {"spec.resources": {"limits": {"cpu": None}}, "spec.dataset.columns": {"chosen": None}}),
    ("DPOJob", {"spec.evaluation": {"samplePrompts": [None]}}),
    ("DPOJob", {"spec.env": [{"name": "A", "value": "x", "valueFrom": None}]}),
    ("DPOJob", {"spec.dataset.train": {"inline": [{"a": None, "b": {"c": None}}]}}),
    ("DPOJob", {"spec.dataset.train": {"inline": [None]}}),
    # types
    ("DPOJob", {"spec.training": {"maxSteps": 1.0}}),
    ("DPOJob", {"spec.training": {"maxSteps": 1.5}}),
    ("DPOJob", {"spec.training": {"maxSteps": 2**31}}),
    ("DPOJob", {"spec.training": {"maxSteps": 2**70}}),
    ("DPOJob", {"spec.training": {"maxSteps": "6"}}),
    ("DPOJob", {"spec.training": {"learningRate": 1}}),
    ("DPOJob", {"spec.training": {"learningRate": True}}),
    ("DPOJob", {"spec.training": {"torchCompile": "true"}}),
    ("DPOJob", {"spec.training": {"torchCompile": 1}}),
    ("DPOJob", {"spec.training": []}),
    ("DPOJob", {"spec.model": {"hub": {"repo": 7}}}),
    ("DPOJob", {"spec.storage": {"size": 1.5}}),
    ("DPOJob", {"spec.storage": {"size": True}}),
    ("DPOJob", {"spec.storage": {"size": "1" * 33}}),
    ("DPOJob", {"spec.storage": {"size": "1Gi\n"}}),
    # characters
    ("DPOJob", {"spec.model": {"hub": {"repo": "модель/a"}}}),
    ("DPOJob", {"spec.model": {"hub": {"repo": "a/b\n"}}}),
    ("DPOJob", {"spec.storage": {"claimName": "c\n"}}),
    ("DPOJob", {"spec.image": "a\u00a0b"}),
    ("DPOJob", {"spec.image": "ab\n"}),
    ("DPOJob", {"spec.env": [{"name": "MY_TOKEN\n", "value": "x"}]}),
    ("DPOJob", {"spec.env": [{"name": "LD_\n", "value": "x"}]}),
    ("DPOJob", {"spec.model": {"volume": {"claimName": "c", "path": "a\n"}}}),
    ("DPOJob", {"spec.evaluation": {"samplePrompts": ["\U0001f600" * 2048]}}),
    ("DPOJob", {"spec.evaluation": {"samplePrompts": ["\U0001f600" * 2049]}}),
    ("DPOJob", {"metadata.name": "job\n"}),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "h", "http": {"url": "https://a.example/\u00a0"}}]}),
    ("GRPOJob", {"spec.grpo.rewards": [{"name": "r", "regex": {"pattern": "("}}]}),
    ("DPOJob", {"spec.resources": {"limits": {"nvidia.com/gpu": "02"}}}),
    ("DPOJob", {"spec.resources": {"limits": {"nvidia.com/gpu": "2Ki"}}}),
    # around the spec
    ("DPOJob", {"metadata.nmae": "x"}),
    ("DPOJob", {"metadata.labels": {"a": 1}}),
    ("DPOJob", {"metadata.labels": {"a b": "x"}}),
    ("DPOJob", {"metadata.labels": {"example.com/a": "x y"}}),
    ("DPOJob", {"metadata.labels": {"example.com/a": "x-1", "b": None}, "metadata.annotations": {"c": "x y\n"}}),
    ("DPOJob", {"metadata.annotations": {"a": 1}}),
    ("DPOJob", {"metadata.annotations": {"a b": "1"}}),
    ("DPOJob", {"specs": {}}),
    ("DPOJob", {"apiVersion": "trl-operator.io/v1"}),
]

FILES = sorted(path for folder in ("tests/trainer/cases", "examples") for path in (REPOSITORY / folder).rglob("*.yaml"))


def every_manifest() -> Iterator[Any]:
    """All jobs that a test here or of the trainer, or an example, gives to somebody; each with its name."""
    for kind, change, *_ in (*BAD, *GOOD, *SPELLINGS):
        yield pytest.param(manifest(kind, change), id=f"{kind}-{','.join(change)}"[:80])
    for obj in (reward_job(), grpo_job(), *(chaos.manifest(kind, "job") for kind in PLURALS)):
        yield pytest.param(obj, id=f"{obj['kind']}-of-a-test")
    for path in FILES:
        for obj in yaml.safe_load_all(path.read_text()):
            if obj is not None and obj.get("kind") in PLURALS:
                yield pytest.param(obj, id=str(path.relative_to(REPOSITORY)))


@pytest.mark.parametrize("obj", list(every_manifest()))
def test_run_and_explain_take_what_the_api_server_takes_and_refuse_the_rest(
    create: Apply, obj: dict[str, Any], tmp_path: Path
) -> None:
    there, here = create(obj), refusal(obj, tmp_path)
    assert bool(there) == bool(here), there or here


NUMBERS = {"spec.grpo.rewards": [KEYWORD], "spec.dataset.mixture": [{"inline": [{"a": 1}]}]}
"""Lists of objects with numbers."""


WRITTEN_OUT: Change = {
    "spec.training.perDeviceBatchSize": 4,
    "spec.training.gradientAccumulationSteps": 4,
    "spec.grpo.numGenerations": 4,
    "spec.grpo.generation.maxCompletionLength": 256,
}
"""Defaults that rules compare other numbers with: the API server does where they are given."""


def numbers(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a schema that takes a number, whole or not, with its path; of a list or map, of all its items."""
    for name, field in schema.get("properties", {}).items():
        yield from numbers(field, f"{path}.{name}")
    for items in ("items", "additionalProperties"):
        if items in schema:
            yield from numbers(schema[items], f"{path}[]")
    if schema.get("type") in ("number", "integer") or schema.get("x-kubernetes-int-or-string"):
        yield path, schema


def with_number(kind: str, path: str, value: Any) -> dict[str, Any]:
    """A job with this value in a field, which may be of a list's items."""
    section, of_list, field = path.partition("[]")
    if not of_list:
        change: Change = {path: value}
    elif field:
        change = {section: [{**NUMBERS.get(section, [{}])[0], field[1:]: value}]}
    else:
        change = {section: {"cpu": value} if section.startswith("spec.resources") else [value]}
    beside = {"lrSchedulerArgs": {"spec.training.lrScheduler": "linear"}, "mixture": {"spec.dataset.train": None}}
    change |= next((more for part, more in beside.items() if part in path), {})
    return manifest(kind, (WRITTEN_OUT if kind == "GRPOJob" else {}) | change)


def test_whole_numbers_meet_the_same_bounds_as_others(create: Apply, tmp_path: Path) -> None:
    """The API server compares an integer with a bound that is cut to one: 0 would not be below 0.5."""
    seen: dict[str, Any] = {}
    for info in INFOS.values():
        for path, field in numbers(structural_schema(info.spec), "spec"):
            if seen.get(path) == field:
                continue
            seen[path] = field
            for bound in ("minimum", "maximum"):
                assert float(field.get(bound, 0)).is_integer(), f"{path}: {bound}"
            ends = {int(field[bound]) for bound in ("minimum", "maximum") if bound in field}
            for value in {0, 1, *(end + step for end in ends for step in (-1, 0, 1))}:
                obj = with_number(info.kind, path, value)
                there, here = create(obj), refusal(obj, tmp_path)
                assert bool(there) == bool(here), f"{path}: {value}: {there or here}"
    assert {"spec.dpo.labelSmoothing", "spec.dataset.evalSplit", "spec.dpo.lossWeights[]"} <= seen.keys()


def test_run_and_explain_read_numbers_as_kubectl_reads_them(control_plane: ControlPlane, tmp_path: Path) -> None:
    said = {
        "maxSteps": ["0x10", "010", "0b11", "1_000", "1e3", "2.0", "+7"],
        "weightDecay": ["1e-6", ".5", "5E-1", "0"],
    }
    for field, values in said.items():
        for value in values:
            text = yaml.safe_dump(manifest("DPOJob", {"spec.training": {field: "VALUE"}})).replace("VALUE", value)
            (tmp_path / "job.yaml").write_text(text)
            answer = control_plane.kubectl(
                "create", "--dry-run=server", "--output=json", f"--filename={tmp_path / 'job.yaml'}"
            )
            here = read(tmp_path / "job.yaml").training.training.to_wire()
            assert here[field] == json.loads(answer)["spec"]["training"][field], value


@pytest.mark.parametrize(("kind", "change"), GOOD, ids=[f"{k}-{','.join(c)}"[:80] for k, c in GOOD])
def test_a_good_manifest_is_accepted(create: Apply, kind: str, change: Change) -> None:
    assert create(manifest(kind, change)) == ""


EDITS: list[Change] = [
    {"spec.training.maxSteps": 5},
    {"spec.dataset.train.inline": [{"prompt": "another"}]},
    {"spec.image": "added"},
    {"spec.env": None},
    {"spec.resources.limits.cpu": "3"},
    {"spec.numNodes": 2},
    {"spec.storage.size": "2Gi"},
    {"spec.model.hub.revision": "main"},
    {"spec.queue": {"name": "team", "topology": {"unconstrained": True}}},
]


@pytest.mark.parametrize("change", EDITS, ids=[next(iter(change)) for change in EDITS])
def test_a_spec_cannot_be_edited(control_plane: ControlPlane, namespace: str, change: Change) -> None:
    rows = {"spec.dataset.train": {"inline": [{"prompt": "a"}]}, "spec.env": [{"name": "A", "value": "b"}]}
    before = manifest("DPOJob", rows)
    before["metadata"]["namespace"] = namespace
    control_plane.apply(before)
    [field] = {path.split(".")[1] for path in change}
    patch: dict[str, Any] = {}
    for path, value in change.items():
        place = patch
        *parents, last = path.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    with pytest.raises(Exception, match=rf"spec.{field}.*create a new job, or edit .*runPolicy"):
        control_plane.kubectl(
            "patch", "dpojob", "job", f"--namespace={namespace}", "--type=merge", f"--patch={json.dumps(patch)}"
        )


def test_the_run_policy_and_labels_can_be_edited(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.apply({**manifest("DPOJob", {}), "metadata": {"name": "job", "namespace": namespace}})
    patch = {"metadata": {"labels": {"team": "a"}}, "spec": {"runPolicy": {"maxRestarts": 9}}}
    control_plane.kubectl(
        "patch", "dpojob", "job", f"--namespace={namespace}", "--type=merge", f"--patch={json.dumps(patch)}"
    )


def test_kubectl_apply_refuses_a_typo(control_plane: ControlPlane, namespace: str) -> None:
    typo = manifest("DPOJob", {"spec.training.learningrate": 0.1, "metadata.namespace": namespace})
    with pytest.raises(Exception, match="learningrate"):
        control_plane.kubectl("apply", "--filename=-", stdin=json.dumps(typo))


def test_kubectl_explain_says_values_range_unit_and_default(control_plane: ControlPlane) -> None:
    for field, says in (
        ("dpojob.spec.training.maxGradNorm", "Above 0, at most 1000. Default: 1."),
        ("sftjob.spec.training.epochs", "Default: 1, unless maxSteps is given."),
        ("grpojob.spec.grpo.lossType", "One of grpo, dapo, "),
        ("rewardjob.spec.runPolicy.stallTimeoutSeconds", "Seconds, 30 to 604800. Default: 1800."),
    ):
        assert says in " ".join(control_plane.kubectl("explain", field).split()), field


def test_the_short_names_and_categories_work(control_plane: ControlPlane, namespace: str) -> None:
    for name in ("dpo", "grpo", "sft", "rewardjob", "trl"):
        control_plane.kubectl("get", name, f"--namespace={namespace}")
