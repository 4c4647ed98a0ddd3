"""What one must know of the cluster's part of a spec to run a resource without a cluster."""

import re
from typing import Annotated

from pydantic import ConfigDict, Field

from trl_contract.base import Int32, Model, Name, RelativePath

API_VERSION = "trl-operator.io/v1alpha1"

CLUSTER_FIELDS = frozenset(
    {
        "numNodes", "numProcPerNode", "resources", "storage", "sharedMemory", "nodeSelector", "tolerations",
        "priorityClassName", "image", "imagePullSecrets", "env", "runPolicy",
    }
)  # fmt: skip
"""Fields of a spec that are the cluster's and not the trainer's; tests compare them with the operator's models."""

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_NAME_LENGTH = 40

_GPU = re.compile(r"^(nvidia\.com/gpu|amd\.com/gpu|nvidia\.com/mig-[a-z0-9.]+)$")


class _Part(Model):
    """A part of a section: the operator's models check the rest."""

    model_config = ConfigDict(extra="ignore")


class Resources(_Part):
    limits: dict[str, Annotated[int, Field(ge=0)] | str] = {}


class Storage(_Part):
    claim_name: Name | None = None
    sub_path: RelativePath | None = None


class RunPolicy(_Part):
    stall_timeout_seconds: Annotated[Int32, Field(ge=1)] = 1800
    termination_grace_period_seconds: Annotated[Int32, Field(ge=1)] = 300


class Variable(_Part):
    name: str
    value: str | None = None
    """None: it comes from a Secret."""


class Cluster(_Part):
    """The few cluster fields that mean something on one machine too."""

    num_nodes: Annotated[Int32, Field(ge=1, le=1024)] = 1
    num_proc_per_node: Annotated[Int32, Field(ge=1, le=64)] | None = None
    resources: Resources = Resources()
    storage: Storage = Storage()
    run_policy: RunPolicy = RunPolicy()
    env: list[Variable] = []

    @property
    def num_gpus(self) -> int:
        """GPUs per node."""
        counts = [str(count) for name, count in self.resources.limits.items() if _GPU.match(name)]
        return sum(int(count) for count in counts if count.isdecimal())

    @property
    def processes_per_node(self) -> int:
        """As given, else the number of GPUs, else 1."""
        return self.num_proc_per_node or self.num_gpus or 1
