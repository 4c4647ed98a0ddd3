"""What a job's pods need of the cluster beside nodes and resources."""

import re
from ipaddress import ip_address
from typing import Annotated, ClassVar

from pydantic import Field

from trl_contract.affinity import LABEL_KEY, Affinity, TopologySpreadConstraint, Value
from trl_contract.base import Key, Model, Name, Rule, for_cel
from trl_contract.podvolumes import PodVolume

OURS = (
    r"^(([a-z0-9.-]+\.)?(trl-operator\.io|training\.kubeflow\.org|trainer\.kubeflow\.org|kueue\.x-k8s\.io"
    r"|jobset\.sigs\.k8s\.io|batch\.kubernetes\.io|scheduling\.(x-k8s\.io|k8s\.io|volcano\.sh)|iam\.amazonaws\.com"
    r"|(apparmor\.security\.beta|seccomp\.security\.alpha)\.kubernetes\.io)/.*"
    r"|app\.kubernetes\.io/(managed-by|name|instance)|controller-uid|job-name)$"
)
"""Labels and annotations by which controllers and Services know pods: the operator's own, and those of what runs its
attempts; and those that give a pod another security profile or a cloud's role."""
MAX_LABELS = 32
_RESERVED_FAMILIES = "LD_|PYTHON|KUBERNETES_|KUBEFLOW_|TRL_|MASTER_|PET_|TORCHELASTIC_"
_RESERVED_NAMES = "PATH|RANK|LOCAL_RANK|WORLD_SIZE|CUDA_VISIBLE_DEVICES|HOME|DISABLE_KUBEFLOW_INTEGRATION"
RESERVED_ENV = rf"^(({_RESERVED_FAMILIES}).*|{_RESERVED_NAMES})$"
"""Variables that are the operator's, or change how the trainer starts."""
RESERVED_PREFIX = rf"^(({_RESERVED_FAMILIES}).*|LOCAL_|WORLD_|CUDA_|CUDA_VISIBLE_|DISABLE_|DISABLE_KUBEFLOW_)$"
"""What reserved variables begin with, of all that ends in an underscore: keys behind it might give such a variable."""


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
            " controller-uid), scheduling.x-k8s.io/, scheduling.k8s.io/, scheduling.volcano.sh/ and"
            " app.kubernetes.io/managed-by, name, instance; iam.amazonaws.com/, apparmor.security.beta.kubernetes.io/"
            " and seccomp.security.alpha.kubernetes.io/ give rights: remove it",
            lambda self: not any(re.fullmatch(OURS, key) for key in getattr(self, attribute) or {}),
            field,
        ),
    )


def _unique(field: str, attribute: str) -> Rule:
    return Rule(
        f"!has(self.volumes) || self.volumes.all(v, self.volumes.exists_one(w, w.{field} == v.{field}))",
        f"no two may have the same {field}: change one",
        lambda self: len({getattr(each, attribute) for each in self.volumes or ()}) == len(self.volumes or ()),
        "volumes",
    )


class DNSConfigOption(Model):
    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Option of resolv.conf, like ndots."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Its value, if it has one."""


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class DNSConfig(Model):
    rules: ClassVar = (
        Rule(
            "!has(self.nameservers) || self.nameservers.all(a, isIP(a))",
            "each is an IP address, like 10.0.0.9",
            lambda self: all(_is_ip(address) for address in self.nameservers or ()),
            "nameservers",
        ),
    )

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


class ConfigMapEnv(Model):
    name: Name
    """A ConfigMap in the job's namespace; each of its keys is a variable."""


class SecretEnv(Model):
    name: Name
    """A Secret in the job's namespace; each of its keys is a variable."""


class EnvFrom(Model):
    """Variables from all keys of an object: exactly one of configMapRef and secretRef."""

    rules: ClassVar = (
        Rule(
            "has(self.configMapRef) != has(self.secretRef)",
            "give exactly one of configMapRef, secretRef",
            lambda self: (self.config_map_ref is None) != (self.secret_ref is None),
        ),
        Rule(
            f"!self.prefix.matches('{RESERVED_PREFIX}')",
            "variables that begin so are set by the operator or change how the trainer starts: choose another one",
            lambda self: re.fullmatch(RESERVED_PREFIX, self.prefix) is None,
            "prefix",
        ),
    )

    prefix: Annotated[str, Field(min_length=2, max_length=64, pattern=r"^[A-Z][A-Z0-9_]*_$")]
    """Begins the name of each variable, before the key, and ends with an underscore: no key can give a variable that
    is the operator's, and logs and records are cleaned of what a Secret's variables hold. env has
    variables of any other name."""
    config_map_ref: ConfigMapEnv | None = None
    """A ConfigMap."""
    secret_ref: SecretEnv | None = None
    """A Secret."""


class CABundle(Model):
    name: Name
    """A ConfigMap in the job's namespace."""
    key: Key = "ca.crt"
    """Key in that ConfigMap: certificates in PEM, one after another."""


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
        _unique("name", "name"),
        _unique("mountPath", "mount_path"),
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
    service_account_name: Name | None = None
    """ServiceAccount of the pods, for what a cloud gives to it; the admin says which ones jobs may have. Its token is
    not mounted."""
    volumes: Annotated[list[PodVolume], Field(max_length=16)] | None = None
    """More volumes."""
    env_from: Annotated[list[EnvFrom], Field(max_length=16)] | None = None
    """Variables from all keys of ConfigMaps and Secrets. Those that the operator sets, and those of env, win."""
    ca_bundle: CABundle | None = None
    """Certificates that the trainer trusts beside the system's: requests, httpx, Python's ssl, git and curl all do."""
