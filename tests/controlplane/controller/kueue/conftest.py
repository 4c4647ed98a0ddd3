"""An operator of the test's namespace, and Kueue."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane

Obj = dict[str, Any]
API = "kueue.x-k8s.io/v1beta2"


@pytest.fixture
def control_plane(engines_control_plane: ControlPlane) -> ControlPlane:
    return engines_control_plane


@pytest.fixture
def make_operator(control_plane: ControlPlane, namespace: str, new_operator: Any, install_chart: Any) -> Any:
    values = (f"scope.namespaces={{{namespace}}}", "kueue.enabled=true", "otherBackends={trainjob}")
    install_chart(control_plane, namespace, *values)
    return partial(new_operator, KUEUE="true", OTHER_BACKENDS="trainjob")


@pytest.fixture
def operator(make_operator: Callable[..., Any]) -> Any:
    made = make_operator()
    made.start()
    return made


@pytest.fixture
def priorities(control_plane: ControlPlane) -> None:
    """WorkloadPriorityClasses of all tests."""
    control_plane.apply(*(kueue_object("WorkloadPriorityClass", name, value=value) for name, value in PRIORITIES))


PRIORITIES = (("low", 1), ("high", 1000))


@pytest.fixture
def quota(control_plane: ControlPlane, namespace: str) -> Iterator[Callable[..., None]]:
    """Write a ClusterQueue of the test's own, with so many cpus; it preempts what has a lower priority."""

    def write(cpus: int, **spec: Any) -> None:
        flavor = {"name": namespace, "resources": [{"name": "cpu", "nominalQuota": cpus}]}
        groups = [{"coveredResources": ["cpu"], "flavors": [flavor]}]
        preemption = {"withinClusterQueue": "LowerPriority"}
        body = {"namespaceSelector": {}, "resourceGroups": groups, "preemption": preemption, **spec}
        control_plane.apply(
            kueue_object("ResourceFlavor", namespace, spec={}), kueue_object("ClusterQueue", namespace, spec=body)
        )

    yield write
    control_plane.kubectl("delete", "clusterqueue", "--ignore-not-found", "--wait=false", namespace)


@pytest.fixture
def local_queue(control_plane: ControlPlane, namespace: str) -> Callable[[str], None]:
    """Create a LocalQueue of the test's ClusterQueue."""

    def create(name: str) -> None:
        found = kueue_object("LocalQueue", name, spec={"clusterQueue": namespace})
        found["metadata"]["namespace"] = namespace
        control_plane.apply(found)

    return create


@pytest.fixture(scope="module")
def managing_all(engines_control_plane: ControlPlane) -> Iterator[None]:
    """Kueue manages jobs that name no queue too."""
    with engines_control_plane.configured("kueue", manageJobsWithoutQueueName=True):
        yield


@pytest.fixture(name="kueue_object")
def give_kueue_object() -> Callable[..., Obj]:
    """`kueue_object(kind, name, **fields)`."""
    return kueue_object


def kueue_object(kind: str, name: str, **fields: Any) -> Obj:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, **fields}
