"""A stored custom resource as typed values."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from trl_contract import profiles
from trl_contract.base import Broken
from trl_contract.cluster import ClusterSpec
from trl_contract.spec import TrainingSpec
from trl_contract.upstreams import Upstream
from trl_operator import jobdefaults
from trl_operator.api.kinds import KINDS, KindInfo
from trl_operator.api.status import Defaults
from trl_operator.constants import API_VERSION, GROUP, LABEL_QUEUE, VERSION
from trl_operator.settings import USER, PodSecurity


@dataclass(frozen=True)
class Job:
    """One custom resource: who it is and what it asks for. `cluster` and `training` are the two parts of its spec."""

    info: KindInfo
    namespace: str
    name: str
    uid: str
    generation: int
    cluster: ClusterSpec
    training: TrainingSpec
    origins: Mapping[str, str] = field(default_factory=dict)
    """Of each field that has its value from elsewhere than the user or our defaults: where from."""
    builds_on: tuple[Upstream, ...] = ()
    """Earlier jobs in place of whose names `training` has their results."""
    queue_label: str = ""
    """Queue that its label names; empty: none."""

    security: PodSecurity = USER
    """Who the processes of its pods are, as the installation says."""
    copied_labels: Mapping[str, str] = field(default_factory=dict)
    """Those of its labels that all its children get, as the installation says."""
    copied_annotations: Mapping[str, str] = field(default_factory=dict)
    """The same of its annotations."""

    own: ClusterSpec | None = None
    """`cluster` as it was written, without jobDefaults; None: as it is."""
    offered: jobdefaults.Defaults = field(default_factory=dict)
    """What jobDefaults now say for it, whatever it says itself."""
    defaults: Defaults | None = None
    """What of jobDefaults is in `cluster`, for its status."""

    @property
    def queue_name(self) -> str:
        """The queue that its attempts wait in; empty: none."""
        return self.cluster.queue.name if self.cluster.queue else self.queue_label

    @property
    def queue_priority(self) -> str:
        """The WorkloadPriorityClass of its attempts; empty: none."""
        return (self.cluster.queue.priority_class if self.cluster.queue else None) or ""

    @property
    def audience(self) -> str:
        return audience(self.info, self.namespace, self.name, self.uid)

    @property
    def owner_reference(self) -> dict[str, Any]:
        return {
            "apiVersion": API_VERSION,
            "kind": self.info.kind,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def child_name(self, attempt: int) -> str:
        """Name of an attempt's workload and ConfigMap."""
        return child_name(self.info, self.name, attempt)

    @property
    def storage_claim(self) -> str:
        """Name of the claim that the job writes to."""
        return self.cluster.storage.claim_name or self.base_name

    @property
    def base_name(self) -> str:
        """Name of what all attempts share: the claim and the ConfigMap of the run."""
        return f"{self.name}-{self.info.suffix}"


def child_name(info: KindInfo, name: str, attempt: int) -> str:
    """Return the name of the workload of a job's attempt."""
    return f"{name}-{info.suffix}-{attempt}"


def audience(info: KindInfo, namespace: str, name: str, uid: str) -> str:
    """Return the audience of the tokens that a job's pods report with; it holds for this very object only."""
    return f"{GROUP}/{VERSION}/namespaces/{namespace}/{info.plural}/{name}/{uid}"


def parse_known(obj: dict[str, Any]) -> tuple[Job, list[str]]:
    """Return the typed form of a stored object, without the fields of its spec that our models do not have, and the
    paths of these. Raises ValidationError if it has another fault."""
    try:
        return parse_job(obj), []
    except ValidationError as error:
        unknown = [found["loc"] for found in error.errors() if found["type"] == "extra_forbidden"]
        if len(unknown) < error.error_count():
            raise
    obj = {**obj, "spec": deepcopy(obj["spec"])}
    for *path, last in unknown:
        section: Any = obj["spec"]
        for part in path:
            section = section[part]
        del section[last]
    return parse_job(obj), [".".join(str(part) for part in path) for path in unknown]


def why_refused(error: ValidationError) -> str:
    """Return the first thing that is wrong with a stored spec: its field, and what the API server would say of it."""
    first = error.errors(include_url=False)[0]
    said, place = first["msg"].removeprefix("Value error, "), ".".join(str(part) for part in first["loc"])
    broken = first.get("ctx", {}).get("error")
    if isinstance(broken, Broken):
        rule = broken.rules[0]
        place, said = ".".join(part for part in (place, rule.field) if part), rule.message
    # What is wrong between sections begins with the field.
    return f"spec.{place}: {said}" if place else f"spec.{said}"


def parse_job(obj: dict[str, Any]) -> Job:
    """Return the typed form of an object that the API server accepted; raises ValidationError if it is none."""
    info = KINDS[obj["kind"]]
    metadata = obj["metadata"]
    filled, by_profile = profiles.fill(info.kind, obj["spec"])
    spec = info.spec.model_validate(filled)
    training = {name: getattr(spec, name) for name in info.training.model_fields}
    return Job(
        info=info,
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        cluster=spec,
        training=info.training.model_validate(training),
        origins=dict.fromkeys(by_profile, f"profile {spec.profile}"),
        queue_label=metadata.get("labels", {}).get(LABEL_QUEUE, ""),
    )
