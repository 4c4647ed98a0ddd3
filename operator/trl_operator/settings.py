"""What the installation decides: read once from the environment, by names that start with TRL_OPERATOR_."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PREFIX = "TRL_OPERATOR_"


class Settings(BaseModel):
    """All settings; the chart sets those without a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    namespace: str
    """Namespace of the operator itself: its lease and its Secret live there."""
    identity: str
    """Name of this replica, unique among the replicas."""
    trainer_image: str
    """Image of jobs that name none."""
    receiver_url: Annotated[str, Field(pattern=r"^https://[^/]+$")]
    """Where pods reach the receiver; its host name goes into the serving certificate."""
    watch_namespaces: str = ""
    """Namespaces to work in, separated by commas; all if empty."""
    receiver_port: int = 10443
    """Port of the receiver."""
    health_port: int = 8080
    """Port of /healthz, /readyz and /metrics."""
    bind_address: str = "0.0.0.0"
    """Address that both listen on."""
    secret_name: str = "trl-operator-receiver"
    """Secret with the receiver's CA and serving certificate."""
    lease_name: str = "trl-operator"
    """Lease of the leader election."""
    lease_seconds: float = 15
    """A leader that is not heard of for so long has lost the lease."""
    renew_seconds: float = 10
    """A leader that could not renew for so long gives up."""
    retry_seconds: float = 2
    """Pause between two looks at the lease."""
    workers: int = 10
    """Jobs that are looked at at the same time."""
    relist_seconds: float = 600
    """Everything is listed and compared with the cache after so long."""
    progress_seconds: float = 10
    """At most one write of progress per job in so long, but for the last one."""

    @property
    def namespaces(self) -> list[str]:
        return [name for name in self.watch_namespaces.split(",") if name]


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Return the settings; raises ValueError that names what is missing, wrong or unknown."""
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    return Settings.model_validate(given)
