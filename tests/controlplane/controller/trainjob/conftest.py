"""All tests of this folder run jobs as TrainJobs, on the control plane that has Trainer and JobSet."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devcluster.controlplane import ControlPlane


@pytest.fixture(scope="session")
def control_plane(engines_control_plane: ControlPlane) -> ControlPlane:
    return engines_control_plane


@pytest.fixture(scope="session")
def operator(engines_control_plane: ControlPlane, run_clusterwide: Callable[..., Any]) -> Iterator[Any]:
    with run_clusterwide(engines_control_plane, "trainjob") as made:
        yield made


@pytest.fixture
def jobs(jobs: Any) -> Any:
    jobs.workloads, jobs.kind = "trainjobs", "TrainJob"
    return jobs
