"""Where pods go beside each other and on which nodes, as Kubernetes says it.

The names are those of Kubernetes' Affinity and TopologySpreadConstraint, as tests/unit/test_pod.py makes sure. What
would reach other namespaces is left out.
"""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trl_contract.base import Int32, Model, Rule, for_cel

_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_KEY = rf"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?{_NAME}$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
LabelKey = Annotated[str, Field(min_length=1, max_length=316, pattern=LABEL_KEY)]
Value = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]
Values = Annotated[list[Value], Field(min_length=1, max_length=32)]
Weight = Annotated[Int32, Field(ge=1, le=100)]


class LabelSelectorRequirement(Model):
    rules: ClassVar = (
        Rule(
            "(self.operator in ['In', 'NotIn']) == has(self.values)",
            "values go with operator In or NotIn, and only with these",
            lambda self: (self.operator in ("In", "NotIn")) == (self.values is not None),
        ),
    )

    key: LabelKey
    """Label of pods."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How it is compared with values."""
    values: Values | None = None
    """What it is compared with."""


class LabelSelector(Model):
    rules: ClassVar = (
        Rule(
            f"!has(self.matchLabels) || self.matchLabels.all(k, k.matches('{for_cel(LABEL_KEY)}'))",
            "matchLabels: a label is a name, or prefix/name, like app.kubernetes.io/name",
            lambda self: all(re.fullmatch(LABEL_KEY, key) for key in self.match_labels or {}),
        ),
    )

    match_labels: Annotated[dict[str, Value], Field(max_length=16)] | None = None
    """Labels and their values, all of which a pod has."""
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=16)] | None = None
    """Conditions on labels, all of which hold of a pod."""


class NodeSelectorRequirement(Model):
    rules: ClassVar = (
        Rule(
            "(self.operator in ['Exists', 'DoesNotExist']) != has(self.values)",
            "values go with operator In, NotIn, Gt or Lt, and only with these",
            lambda self: (self.operator in ("Exists", "DoesNotExist")) != (self.values is not None),
        ),
        Rule(
            "!(self.operator in ['Gt', 'Lt']) || !has(self.values)"
            " || self.values.size() == 1 && self.values[0].matches('^[0-9]+$')",
            "operator Gt and Lt compare with one whole number",
            lambda self: (
                self.operator not in ("Gt", "Lt")
                or self.values is None
                or (len(self.values) == 1 and re.fullmatch("[0-9]+", self.values[0]) is not None)
            ),
        ),
    )

    key: LabelKey
    """Label of nodes."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How it is compared with values."""
    values: Values | None = None
    """What it is compared with."""


class NodeSelectorTerm(Model):
    match_expressions: Annotated[list[NodeSelectorRequirement], Field(min_length=1, max_length=16)]
    """Conditions on labels, all of which hold of a node."""


class NodeSelector(Model):
    node_selector_terms: Annotated[list[NodeSelectorTerm], Field(min_length=1, max_length=16)]
    """Terms, one of which holds of a node."""


class PreferredSchedulingTerm(Model):
    weight: Weight
    """How much it counts, beside other terms."""
    preference: NodeSelectorTerm
    """What holds of the nodes that are preferred."""


class NodeAffinity(Model):
    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """The nodes that the pods may go to."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=16)] | None
    ) = None
    """The nodes that they rather go to."""


class PodAffinityTerm(Model):
    topology_key: LabelKey
    """Label of nodes: those with the same value are one place, like kubernetes.io/hostname or a zone."""
    label_selector: LabelSelector | None = None
    """Pods of the namespace; those of the job itself if unset."""


class WeightedPodAffinityTerm(Model):
    weight: Weight
    """How much it counts, beside other terms."""
    pod_affinity_term: PodAffinityTerm
    """Pods and places."""


PodAffinityTerms = Annotated[list[PodAffinityTerm], Field(max_length=8)]
WeightedPodAffinityTerms = Annotated[list[WeightedPodAffinityTerm], Field(max_length=8)]


class PodAffinity(Model):
    required_during_scheduling_ignored_during_execution: PodAffinityTerms | None = None
    """Pods in whose places the pods must be, or, of podAntiAffinity, must not be."""
    preferred_during_scheduling_ignored_during_execution: WeightedPodAffinityTerms | None = None
    """Pods in whose places the pods rather are, or, of podAntiAffinity, rather are not."""


class Affinity(Model):
    node_affinity: NodeAffinity | None = None
    """Which nodes."""
    pod_affinity: PodAffinity | None = None
    """Near which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from which pods."""


class TopologySpreadConstraint(Model):
    rules: ClassVar = (
        Rule(
            "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
            "minDomains goes with whenUnsatisfiable DoNotSchedule",
            lambda self: self.min_domains is None or self.when_unsatisfiable == "DoNotSchedule",
        ),
    )

    max_skew: Annotated[Int32, Field(ge=1)]
    """How many pods one place may have more than another one."""
    topology_key: LabelKey
    """Label of nodes: those with the same value are one place."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """What becomes of a pod that would break it."""
    label_selector: LabelSelector | None = None
    """Pods that are counted; those of the job itself if unset."""
    min_domains: Annotated[Int32, Field(ge=1)] | None = None
    """Number of places there are to be."""
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    """Whether nodes count that the pods may not go to; Honor, they do not, if unset."""
    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    """Whether taints are looked at for that; Ignore if unset."""
