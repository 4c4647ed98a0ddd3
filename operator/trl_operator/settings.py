"""What the installation decides: read once from the environment, by names that start with TRL_OPERATOR_."""

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationInfo, field_validator

from trl_contract.base import Model
from trl_contract.cluster import BackendName
from trl_operator import jobdefaults
from trl_operator.jobdefaults import JobDefaults

PREFIX = "TRL_OPERATOR_"


class PodSecurity(Model):
    """Who the processes of jobs' pods are; what is unset is left to the cluster, like OpenShift's ranges."""

    run_as_user: Annotated[int, Field(ge=1)] | None = None
    run_as_group: Annotated[int, Field(ge=0)] | None = None
    fs_group: Annotated[int, Field(ge=0)] | None = None
    se_linux_options: dict[str, str] | None = None


USER = PodSecurity(run_as_user=1000, run_as_group=1000, fs_group=1000)
"""The user of the trainer's image."""


class Shared(BaseModel):
    """Settings of both processes; the chart sets those without a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    watch_namespaces: str = ""
    """Namespaces to work in, separated by commas; all if empty."""
    health_port: int = 8080
    """Port of /healthz, /readyz and /metrics."""
    bind_address: str | None = None
    """Address that all ports listen on; unset: all addresses, of IPv4 and of IPv6."""
    relist_seconds: float = 600
    """Everything is listed and compared with what is known after so long."""

    @property
    def namespaces(self) -> list[str]:
        return [name for name in self.watch_namespaces.split(",") if name]


class ReceiverSettings(Shared):
    """Settings of the receiver."""

    receiver_port: int = 10443
    """Port of the receiver."""
    tls_folder: str = "/etc/trl-operator/tls"
    """Folder with tls.crt and tls.key, which may change at any time."""
    progress_seconds: float = 10
    """At most one write of progress per job in so long, but for the last one."""
    writes_per_second: Annotated[float, Field(gt=0)] = 25
    """Writes of progress of this replica; jobs that report more than that are written more seldom."""


class Settings(Shared):
    """Settings of the controller."""

    namespace: str
    """Namespace of the operator itself: its lease and its Secrets live there."""
    identity: str
    """Name of this replica, unique among the replicas."""
    trainer_image: str
    """Image of jobs that name none."""
    receiver_url: Annotated[str, Field(pattern=r"^https://[^/]+$")]
    """Where pods reach the receiver; its host name goes into the serving certificate."""
    backend: BackendName = "pytorchjob"
    """What runs jobs whose spec names no backend."""
    other_backends: Annotated[str, Field(pattern=r"^((pytorchjob|trainjob)(,(pytorchjob|trainjob))*)?$")] = ""
    """Backends that a spec may name beside it, separated by commas."""
    secret_name: str = "trl-operator-receiver"
    """Secret with the receiver's serving certificate, which the receiver mounts."""
    ca_secret_name: str = "trl-operator-receiver-ca"
    """Secret with the receiver's CA and its key, which nobody mounts."""
    certificate_seconds: float = 60
    """Both Secrets are looked at after so long."""
    lease_name: str = "trl-operator"
    """Lease of the leader election."""
    lease_seconds: float = 15
    """A leader that is not heard of for so long has lost the lease."""
    renew_seconds: float = 10
    """A leader that could not renew for so long gives up."""
    retry_seconds: float = 2
    """Pause between two looks at the lease."""
    pod_security: Json[PodSecurity] = USER
    """User, group, fsGroup and seLinuxOptions of jobs' pods, as JSON."""
    copied_labels: str = ""
    """Labels of jobs that all their children get, separated by commas."""
    copied_annotations: str = ""
    """The same of annotations."""
    job_defaults: Json[tuple[JobDefaults, ...]] = ()
    """What jobs have where their specs say nothing, as JSON; a later set wins."""
    kueue: bool = False
    """Read what Kueue says of workloads."""
    checkpoint_aware_preemption: bool = False
    """Have Kueue prefer attempts that have yet to publish a checkpoint."""
    workers: int = 10
    """Jobs that are looked at at the same time."""

    @property
    def backends(self) -> set[str]:
        """All backends that jobs may use."""
        return {self.backend, *filter(None, self.other_backends.split(","))}

    @field_validator("job_defaults")
    @classmethod
    def _can_be_had(cls, sets: tuple[JobDefaults, ...], info: ValidationInfo) -> tuple[JobDefaults, ...]:
        others = info.data.get("other_backends", "").split(",")
        jobdefaults.check(sets, {info.data.get("backend", ""), *others})
        return sets


S = TypeVar("S", bound=Shared)


def from_environment(model: type[S], environment: Mapping[str, str]) -> S:
    """Return the settings; raises ValueError that names what is missing, wrong or unknown."""
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    return model.model_validate(given)
