"""CEL rules between the fields of a spec. They hold with the operator switched off."""

from pydantic import JsonValue

from trl_contract.base import Kind, Model, cel
from trl_contract.training import BITSANDBYTES_OPTIMIZERS
from trl_operator.constants import GPU_PATTERN, MAX_CPU_PROCESSES_PER_NODE

Rule = dict[str, JsonValue]

_GPU = GPU_PATTERN.replace("\\", "\\\\")
_GPU_KEYS = f"(has(self.resources.limits) ? self.resources.limits.filter(k, k.matches('{_GPU}')) : [])"
PROCESSES = (
    f"(has(self.numProcPerNode) ? self.numProcPerNode"
    f" : ({_GPU_KEYS}.size() == 1 ? int(string(self.resources.limits[{_GPU_KEYS}[0]])) : 1))"
)
"""Processes per node, as plan.topology resolves them."""

NAME_RULE = cel(
    "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name: at most 40 characters, lower-case letters, digits and -, starting with a letter and ending"
    " with a letter or digit; choose a shorter or simpler name",
)


def spec_rules(kind: Kind, spec: type[Model]) -> list[Rule]:
    """Return the rules of a kind's spec: immutability of every field but runPolicy, topology, batch arithmetic."""
    fixed = [_immutable(field.alias or name, field.is_required() or field.default is not None)
             for name, field in spec.model_fields.items() if name != "run_policy"]  # fmt: skip
    rules = [*fixed, *_topology()]
    if kind == "GRPOJob":
        rules += _whole_groups()
    return rules


def _immutable(field: str, always_there: bool) -> Rule:
    same = f"self.{field} == oldSelf.{field}"
    if not always_there:
        same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})"
    message = f"{field} cannot be changed: create a new job, or edit runPolicy"
    return cel(same, message) | {"fieldPath": f".{field}"}


def _topology() -> list[Rule]:
    return [
        cel(
            f"!has(self.numProcPerNode) || {_GPU_KEYS}.size() != 1"
            f" || string(self.numProcPerNode) == string(self.resources.limits[{_GPU_KEYS}[0]])",
            "numProcPerNode must equal the number of GPUs in resources.limits: remove it, or change one of the two",
        )
        | {"fieldPath": ".numProcPerNode"},
        cel(
            f"!has(self.numProcPerNode) || {_GPU_KEYS}.size() == 1"
            f" || self.numProcPerNode <= {MAX_CPU_PROCESSES_PER_NODE}",
            f"numProcPerNode is at most {MAX_CPU_PROCESSES_PER_NODE} without GPUs: name GPUs in resources.limits",
        )
        | {"fieldPath": ".numProcPerNode"},
        cel(
            "self.numNodes == 1 || !has(self.storage.size)"
            " || (has(self.storage.accessModes) && 'ReadWriteMany' in self.storage.accessModes)",
            "several nodes need storage.accessModes with ReadWriteMany",
        )
        | {"fieldPath": ".storage"},
        cel(
            f"self.peft.method != 'qlora' || {_GPU_KEYS}.size() == 1",
            "peft.method qlora needs GPUs: name them in resources.limits, or use lora",
        )
        | {"fieldPath": ".peft"},
        cel(
            f"!(self.training.optimizer in {sorted(BITSANDBYTES_OPTIMIZERS)})"
            f" || {_GPU_KEYS}.size() == 1 && self.numNodes * {PROCESSES} == 1",
            "training.optimizer: adamw_bnb_8bit and paged_adamw_8bit need one GPU and one process: use"
            " adamw_torch_fused, whose state is sharded, or adafactor",
        )
        | {"fieldPath": ".training"},
        cel(
            f"!self.fsdp.hybrid || self.numNodes > 1 && {PROCESSES} > 1",
            "fsdp.hybrid shards inside each node and copies between nodes: it needs numNodes and numProcPerNode of at"
            " least 2; remove it",
        )
        | {"fieldPath": ".fsdp"},
        cel(
            f"!self.fsdp.cpuOffload || self.peft.method != 'qlora' && {_GPU_KEYS}.size() == 1"
            f" && self.numNodes * {PROCESSES} > 1",
            "fsdp.cpuOffload needs GPUs, several processes, and another peft.method than qlora: remove it",
        )
        | {"fieldPath": ".fsdp"},
        cel(
            "!has(self.model.attnImplementation) || !self.model.attnImplementation.startsWith('flash')"
            f" || {_GPU_KEYS}.size() == 1 && !(has(self.training.precision) && self.training.precision == 'fp32')",
            "model.attnImplementation: flash_attention_2 and flash_attention_3 need GPUs and training.precision bf16:"
            " remove it, and PyTorch's own kernels are used",
        )
        | {"fieldPath": ".model"},
    ]


def _whole_groups() -> list[Rule]:
    evaluation = "self.evaluation.perDeviceBatchSize"
    return [
        _bound(
            "self.training.perDeviceBatchSize * self.numNodes * " + PROCESSES,
            rule="b * self.training.gradientAccumulationSteps % self.grpo.numGenerations == 0",
            message="'training.perDeviceBatchSize x numNodes x numProcPerNode = %d, x"
            " training.gradientAccumulationSteps = %d, must be a multiple of grpo.numGenerations = %d:"
            " training.gradientAccumulationSteps may be %s or %d'.format([b,"
            " b * self.training.gradientAccumulationSteps, self.grpo.numGenerations,"
            " [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64].filter(s, b * s % self.grpo.numGenerations == 0),"
            " self.grpo.numGenerations])",
            field=".training",
        ),
        _bound(
            "self.numNodes * " + PROCESSES,
            rule=f"!has({evaluation}) || {evaluation} * b % self.grpo.numGenerations == 0",
            message=f"'evaluation.perDeviceBatchSize = %d, x numNodes x numProcPerNode = %d, must be a multiple of"
            f" grpo.numGenerations = %d: remove it, or use %d'.format([{evaluation}, b, self.grpo.numGenerations,"
            " self.grpo.numGenerations])",
            field=".evaluation",
        ),
    ]


def _bound(value: str, rule: str, message: str, field: str) -> Rule:
    """Return a rule over `b`, which is computed once: the API server counts the cost of every mention."""
    return {
        "rule": f"[{value}].all(b, {rule})",
        "messageExpression": f"[{value}].map(b, {message})[0]",
        "message": f"{field[1:]}: the batch must hold whole groups of grpo.numGenerations",
        "fieldPath": field,
    }
