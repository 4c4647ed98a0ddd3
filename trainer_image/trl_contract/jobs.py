"""The whole spec of each kind, training and cluster, and the rules between both."""

import re
from typing import ClassVar, Self

from pydantic import model_validator

from trl_contract.base import Kind, Rule, for_cel
from trl_contract.cluster import MAX_CPU_PROCESSES_PER_NODE, SHARED_STORAGE, ClusterSpec
from trl_contract.resources import GPU
from trl_contract.spec import DPOSpec, GRPOSpec, RewardSpec, SFTSpec, TrainingSpec
from trl_contract.training import BITSANDBYTES_OPTIMIZERS

API_VERSION = "trl-operator.io/v1alpha1"
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_NAME_LENGTH = 40

NAME_RULE = Rule(
    f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
    "metadata.name: at most 40 characters, lower-case letters, digits and -, starting with a letter and ending"
    " with a letter or digit; choose a shorter or simpler name",
    lambda name: len(name) <= MAX_NAME_LENGTH and re.fullmatch(NAME_PATTERN, name) is not None,
)

_SUGGESTED = "(self.metadata.name.matches('^[0-9]') ? 'job-' : '') + self.metadata.name.replace('.', '-')"
NAME_MESSAGE = (
    f"[{_SUGGESTED}].map(n, '{NAME_RULE.message}'"
    f" + (n.size() <= {MAX_NAME_LENGTH} && n.matches('{NAME_PATTERN}') ? ', such as ' + n : ''))[0]"
)
"""NAME_RULE's message and suggested_name, in CEL."""


def suggested_name(name: str) -> str:
    """Return words that name one like `name` that NAME_RULE allows; empty if there is none. The API server has refused
    all but dots, a first digit and the length."""
    other = ("job-" if re.match("[0-9]", name) else "") + name.replace(".", "-")
    return f", such as {other}" if NAME_RULE.holds(other) else ""


_GPU = for_cel(GPU)
_GPU_KEYS = f"(has(self.resources.limits) ? self.resources.limits.filter(k, k.matches('{_GPU}')) : [])"
PROCESSES = (
    f"(has(self.numProcPerNode) ? self.numProcPerNode"
    f" : ({_GPU_KEYS}.size() == 1 ? int(string(self.resources.limits[{_GPU_KEYS}[0]])) : 1))"
)
"""ClusterSpec.processes_per_node in CEL."""


class JobSpec(TrainingSpec, ClusterSpec):
    """What all kinds have in common."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!has(self.numProcPerNode) || {_GPU_KEYS}.size() != 1"
            f" || string(self.numProcPerNode) == string(self.resources.limits[{_GPU_KEYS}[0]])",
            "numProcPerNode must equal the number of GPUs in resources.limits: remove it, or change one of the two",
            lambda self: self.num_proc_per_node in (None, self.gpus_per_node or self.num_proc_per_node),
            "numProcPerNode",
        ),
        Rule(
            f"!has(self.numProcPerNode) || {_GPU_KEYS}.size() == 1"
            f" || self.numProcPerNode <= {MAX_CPU_PROCESSES_PER_NODE}",
            f"numProcPerNode is at most {MAX_CPU_PROCESSES_PER_NODE} without GPUs: name GPUs in resources.limits",
            lambda self: self.gpus_per_node > 0 or self.processes_per_node <= MAX_CPU_PROCESSES_PER_NODE,
            "numProcPerNode",
        ),
        Rule(
            "self.numNodes == 1 || !has(self.storage.size) || !has(self.storage.accessModes)"
            " || 'ReadWriteMany' in self.storage.accessModes",
            SHARED_STORAGE,
            lambda self: self.storage.access_modes is None or self.has_shared_storage,
            "storage",
        ),
        Rule(
            "!has(self.podGroupPolicy) || has(self.schedulerName)",
            "podGroupPolicy needs the scheduler that knows such pod groups: name it in schedulerName",
            lambda self: self.pod_group_policy is None or self.scheduler_name is not None,
            "podGroupPolicy",
        ),
        Rule(
            f"self.peft.method != 'qlora' || {_GPU_KEYS}.size() == 1",
            "peft.method qlora needs GPUs: name them in resources.limits, or use lora",
            lambda self: self.peft.method != "qlora" or self.gpus_per_node > 0,
            "peft",
        ),
        Rule(
            "self.peft.method != 'qlora' || !has(self.training.precision) || self.training.precision == 'bf16'",
            "peft.method qlora needs training.precision bf16: remove precision, or use lora",
            lambda self: self.peft.method != "qlora" or self.training.precision in (None, "bf16"),
            "peft",
        ),
        Rule(
            f"!has(self.training.optimizer) || !(self.training.optimizer in {sorted(BITSANDBYTES_OPTIMIZERS)})"
            f" || {_GPU_KEYS}.size() == 1 && self.numNodes * {PROCESSES} == 1",
            "training.optimizer: adamw_bnb_8bit and paged_adamw_8bit need one GPU and one process: use"
            " adamw_torch_fused, whose state is sharded, or adafactor",
            lambda self: (
                self.training.optimizer not in BITSANDBYTES_OPTIMIZERS
                or (self.gpus_per_node > 0 and self.world_size == 1)
            ),
            "training",
        ),
        Rule(
            f"!self.fsdp.hybrid || self.numNodes > 1 && {PROCESSES} > 1",
            "fsdp.hybrid shards inside each node and copies between nodes: it needs numNodes and numProcPerNode of at"
            " least 2; remove it",
            lambda self: not self.fsdp.hybrid or (self.num_nodes > 1 and self.processes_per_node > 1),
            "fsdp",
        ),
        Rule(
            f"!self.fsdp.cpuOffload || self.peft.method != 'qlora' && {_GPU_KEYS}.size() == 1"
            f" && self.numNodes * {PROCESSES} > 1",
            "fsdp.cpuOffload needs GPUs, several processes, and another peft.method than qlora: remove it",
            lambda self: (
                not self.fsdp.cpu_offload
                or (self.peft.method != "qlora" and self.gpus_per_node > 0 and self.world_size > 1)
            ),
            "fsdp",
        ),
        Rule(
            "self.runPolicy.onOutOfMemory != 'ShrinkMicroBatch' || !has(self.training.perDeviceBatchSize)"
            " || self.training.perDeviceBatchSize % 2 == 0",
            "runPolicy.onOutOfMemory ShrinkMicroBatch halves training.perDeviceBatchSize, which is odd: make it even,"
            " or use Fail",
            lambda self: (
                self.run_policy.on_out_of_memory != "ShrinkMicroBatch" or self.training.per_device_batch_size % 2 == 0
            ),
            "runPolicy",
        ),
        Rule(
            "!has(self.model.addTokens) || self.peft.method != 'qlora'",
            "model.addTokens: qlora does not train rows of new tokens: set peft.method to lora or none, or remove it",
            lambda self: self.model.add_tokens is None or self.peft.method != "qlora",
            "model",
        ),
        Rule(
            f"!(has(self.training.precision) && self.training.precision == 'fp16') || {_GPU_KEYS}.size() == 1",
            "training.precision fp16 needs GPUs: name them in resources.limits, or use bf16",
            lambda self: self.training.precision != "fp16" or self.gpus_per_node > 0,
            "training",
        ),
        Rule(
            "!has(self.model.attnImplementation) || !self.model.attnImplementation.startsWith('flash')"
            f" || {_GPU_KEYS}.size() == 1 && !(has(self.training.precision) && self.training.precision != 'bf16')",
            "model.attnImplementation: flash_attention_2 and flash_attention_3 need GPUs and training.precision bf16:"
            " remove it, and PyTorch's own kernels are used",
            lambda self: (
                not (self.model.attn_implementation or "").startswith("flash")
                or (self.gpus_per_node > 0 and self.training.precision in (None, "bf16"))
            ),
            "model",
        ),
    )

    @model_validator(mode="after")
    def _world_fits(self) -> Self:
        self.check_world(self.world_size)
        return self


_OFFLOADING = Rule(
    f"!has(self.training.activationOffloading) || !self.training.activationOffloading || {_GPU_KEYS}.size() == 1",
    "training.activationOffloading needs GPUs: name them in resources.limits, or remove it",
    lambda self: not self.activation_offloading or self.gpus_per_node > 0,
    "training",
)


class SFTJobSpec(SFTSpec, JobSpec):
    """Supervised fine-tuning with TRL's SFTTrainer."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *JobSpec.rules,
        _OFFLOADING,
        Rule(
            "!has(self.training.paddingFree) || !self.sft.packing",
            "training.paddingFree has no meaning with sft.packing, which leaves no padding: remove one of the two",
            lambda self: self.training.padding_free is None or not self.sft.packing,
            "training",
        ),
    )


class RewardJobSpec(RewardSpec, JobSpec):
    """A reward model with TRL's RewardTrainer."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *JobSpec.rules,
        _OFFLOADING,
        Rule(
            "!has(self.reward.minAccuracy) || self.evaluation.enabled"
            " && (has(self.dataset.eval) || self.dataset.evalSplit > 0.0)",
            "reward.minAccuracy needs held-out pairs: set evaluation.enabled to true and give dataset.eval or"
            " evalSplit, or remove it",
            lambda self: (
                self.reward.min_accuracy is None
                or (self.evaluation.enabled and (self.dataset.eval is not None or self.dataset.eval_split > 0))
            ),
            "reward",
        ),
    )


class DPOJobSpec(DPOSpec, JobSpec):
    """Direct preference optimization with TRL's DPOTrainer."""

    rules: ClassVar[tuple[Rule, ...]] = (*JobSpec.rules, _OFFLOADING)


class GRPOJobSpec(GRPOSpec, JobSpec):
    """Group relative policy optimization with TRL's GRPOTrainer."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *JobSpec.rules,
        Rule(
            "!has(self.grpo.stepsPerGeneration) || !has(self.training.gradientAccumulationSteps)"
            " || self.grpo.stepsPerGeneration % self.training.gradientAccumulationSteps == 0",
            "grpo.stepsPerGeneration must be a multiple of training.gradientAccumulationSteps: remove it, or change"
            " one of the two",
            lambda self: self.steps_per_generation % self.training.gradient_accumulation_steps == 0,
            "grpo",
        ),
    )


JOB_SPECS: dict[Kind, type[JobSpec]] = {
    "SFTJob": SFTJobSpec,
    "RewardJob": RewardJobSpec,
    "DPOJob": DPOJobSpec,
    "GRPOJob": GRPOJobSpec,
}
