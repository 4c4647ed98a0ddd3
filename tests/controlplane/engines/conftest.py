"""All tests of this folder run on the control plane that has JobSet, Trainer and Kueue."""

import pytest

from devcluster.controlplane import ControlPlane


@pytest.fixture(scope="session")
def control_plane(engines_control_plane: ControlPlane) -> ControlPlane:
    return engines_control_plane
