"""What a job's pods need of the cluster beside nodes and resources."""

import re
from typing import Annotated, ClassVar

from pydantic import Field

from trl_contract.affinity import LABEL_KEY, Affinity, TopologySpreadConstraint, Value
from trl_contract.base import Model, Name, Rule, for_cel

OURS = (
    r"^(([a-z0-9.-]+\.)?(trl-operator\.io|training\.kubeflow\.org|trainer\.kubeflow\.org|kueue\.x-k8s\.io"
    r"|jobset\.sigs\.k8s\.io|batch\.kubernetes\.io)/.*|app\.kubernetes\.io/managed-by|controller-uid|job-name)$"
)
"""Labels and annotations by which controllers know pods: the operator's own, and those that run its attempts."""
MAX_LABELS = 32


def _keys(field: str, attribute: str) -> tuple[Rule, Rule]:
    """Return the rules about the keys of labels or annotations, which a schema cannot say."""
    return (
        Rule(
            f"!has(self.{field}) || self.{field}.all(k, k.matches('{for_cel(LABEL_KEY)}'))",
            "a key is a name, or prefix/name, like example.com/team",
            lambda self: all(re.fullmatch(LABEL_KEY, key) for key in getattr(self, attribute) or {}),
            field,
        ),
        Rule(
            f"!has(self.{field}) || !self.{field}.exists(k, k.matches('{for_cel(OURS)}'))",
            "the operator and what runs its jobs know pods by trl-operator.io/, training.kubeflow.org/,"
            " trainer.kubeflow.org/, kueue.x-k8s.io/, jobset.sigs.k8s.io/, batch.kubernetes.io/ (job-name,"
            " controller-uid) and app.kubernetes.io/managed-by: remove it",
            lambda self: not any(re.fullmatch(OURS, key) for key in getattr(self, attribute) or {}),
            field,
        ),
    )


class DNSConfigOption(Model):
    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Option of resolv.conf, like ndots."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Its value, if it has one."""


class DNSConfig(Model):
    nameservers: Annotated[list[Annotated[str, Field(min_length=1, max_length=45)]], Field(max_length=3)] | None = None
    """Addresses of name servers, asked after the cluster's own."""
    searches: Annotated[list[Annotated[str, Field(min_length=1, max_length=253)]], Field(max_length=32)] | None = None
    """Domains that names are looked up in, after the cluster's own."""
    options: Annotated[list[DNSConfigOption], Field(max_length=16)] | None = None
    """Options of resolv.conf."""


class HostAlias(Model):
    ip: Annotated[str, Field(min_length=2, max_length=45, pattern=r"^[0-9a-fA-F.:]+$")]
    """Address."""
    hostnames: Annotated[list[Name], Field(min_length=1, max_length=16)]
    """Names that stand for it in the pods' /etc/hosts."""


class Pod(Model):
    """What a job's pods need of the cluster. Its names are those of a Kubernetes pod."""

    rules: ClassVar = (
        *_keys("labels", "labels"),
        *_keys("annotations", "annotations"),
        Rule(
            "!has(self.topologySpreadConstraints) || self.topologySpreadConstraints.all(c,"
            " self.topologySpreadConstraints.exists_one(d, d.topologyKey == c.topologyKey"
            " && d.whenUnsatisfiable == c.whenUnsatisfiable))",
            "no two may have the same topologyKey and whenUnsatisfiable: remove one",
            lambda self: (
                len({(c.topology_key, c.when_unsatisfiable) for c in self.topology_spread_constraints or ()})
                == len(self.topology_spread_constraints or ())
            ),
            "topologySpreadConstraints",
        ),
    )

    labels: Annotated[dict[str, Value], Field(max_length=MAX_LABELS)] | None = None
    """More labels of the pods."""
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=MAX_LABELS)] | None = (
        None
    )
    """More annotations of the pods. Cluster Autoscaler and Karpenter are told to leave the pods alone
    (cluster-autoscaler.kubernetes.io/safe-to-evict "false", karpenter.sh/do-not-disrupt "true"), and Istio that they
    need no sidecar (sidecar.istio.io/inject "false"), unless these say otherwise."""
    affinity: Affinity | None = None
    """Which nodes the pods go to, and near which pods."""
    topology_spread_constraints: Annotated[list[TopologySpreadConstraint], Field(max_length=8)] | None = None
    """How the pods spread over nodes and zones; over nodes, where that is possible, if unset."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the pods."""
    dns_config: DNSConfig | None = None
    """How names are looked up, beside the cluster's own ways."""
    host_aliases: Annotated[list[HostAlias], Field(max_length=16)] | None = None
    """Lines of the pods' /etc/hosts."""
