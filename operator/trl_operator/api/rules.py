"""CEL rules between the fields of a spec. They hold with the operator switched off."""

from pydantic import JsonValue

from trl_contract.base import Kind, cel
from trl_contract.jobs import NAME_MESSAGE, NAME_RULE, PROCESSES, JobSpec
from trl_contract.spec import STEPS
from trl_contract.training import PeftWithDropout

Entry = dict[str, JsonValue]
"""Of x-kubernetes-validations."""


def spec_rules(kind: Kind, spec: type[JobSpec]) -> list[Entry]:
    """Return the rules of a kind's spec: immutability of every field but runPolicy and queue, topology, batch
    arithmetic."""
    fixed = [_immutable(field.alias or name, field.is_required() or field.default is not None)
             for name, field in spec.model_fields.items() if name not in ("run_policy", "queue")]  # fmt: skip
    rules = [*fixed, _queue_topology(), *(rule.entry() for rule in spec.rules)]
    if spec.model_fields["peft"].annotation is PeftWithDropout:
        rules.append(_nothing_left_out_anew())
    if kind == "GRPOJob":
        rules += _whole_groups()
    return rules


def _immutable(field: str, always_there: bool) -> Entry:
    same = f"self.{field} == oldSelf.{field}"
    if not always_there:
        same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})"
    message = f"{field} cannot be changed: create a new job, or edit runPolicy"
    return cel(same, message) | {"fieldPath": f".{field}"}


def _queue_topology() -> Entry:
    there, was = "has(self.queue) && has(self.queue.topology)", "has(oldSelf.queue) && has(oldSelf.queue.topology)"
    same = f"({there}) == ({was}) && (!({there}) || self.queue.topology == oldSelf.queue.topology)"
    message = "queue.topology cannot be changed: create a new job, or edit queue.name, queue.priorityClass or runPolicy"
    return cel(same, message) | {"fieldPath": ".queue"}


def object_rules() -> list[Entry]:
    """Return the rules of a whole object, which see its status too."""
    there, was = "has(self.spec.queue)", "has(oldSelf.spec.queue)"
    same = f"{there} == {was} && (!{there} || self.spec.queue == oldSelf.spec.queue)"
    rests = "!has(self.status) || !has(self.status.workload) || has(self.status.phase) && self.status.phase == 'Queued'"
    message = (
        "queue cannot be changed while an attempt runs, nor after the end: suspend the job (runPolicy.suspend) first"
    )
    name: Entry = NAME_RULE.entry() | {"messageExpression": NAME_MESSAGE}
    return [name, cel(f"{same} || {rests}", message) | {"fieldPath": ".spec.queue"}]


def _nothing_left_out_anew() -> Entry:
    return cel(
        "self.peft.dropout == 0.0 || !has(self.training.gradientCheckpointing)"
        f" || !self.training.gradientCheckpointing || self.numNodes * {PROCESSES} == 1",
        "peft.dropout does not go with training.gradientCheckpointing and several processes, which recompute with other"
        " values left out: remove one",
    ) | {"fieldPath": ".peft"}


def _whole_groups() -> list[Entry]:
    evaluation = "self.evaluation.perDeviceBatchSize"
    return [
        _bound(
            "!has(self.training.perDeviceBatchSize) || !has(self.training.gradientAccumulationSteps)"
            " || !has(self.grpo.numGenerations)",
            "self.training.perDeviceBatchSize * self.numNodes * " + PROCESSES,
            rule="b * self.training.gradientAccumulationSteps % self.grpo.numGenerations == 0",
            message="'training.perDeviceBatchSize x numNodes x numProcPerNode = %d, x"
            " training.gradientAccumulationSteps = %d, must be a multiple of grpo.numGenerations = %d:"
            " training.gradientAccumulationSteps may be %s or %d'.format([b,"
            " b * self.training.gradientAccumulationSteps, self.grpo.numGenerations,"
            f" {STEPS}.filter(s, b * s % self.grpo.numGenerations == 0),"
            " self.grpo.numGenerations])",
            field=".training",
        ),
        _bound(
            f"!has({evaluation}) || !has(self.grpo.numGenerations)",
            "self.numNodes * " + PROCESSES,
            rule=f"{evaluation} * b % self.grpo.numGenerations == 0",
            message=f"'evaluation.perDeviceBatchSize = %d, x numNodes x numProcPerNode = %d, must be a multiple of"
            f" grpo.numGenerations = %d: remove it, or use %d'.format([{evaluation}, b, self.grpo.numGenerations,"
            " self.grpo.numGenerations])",
            field=".evaluation",
        ),
    ]


def _bound(unless: str, value: str, rule: str, message: str, field: str) -> Entry:
    """Return a rule over `b`, which holds in any case `unless`; the value is computed once: the API server counts the
    cost of every mention."""
    return {
        "rule": f"{unless} || [{value}].all(b, {rule})",
        "messageExpression": f"[{value}].map(b, {message})[0]",
        "message": f"{field[1:]}: the batch must hold whole groups of grpo.numGenerations",
        "fieldPath": field,
    }
