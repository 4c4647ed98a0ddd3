"""These tests kill, stop or replace operators, or want none: on their control plane no other one works."""

import pytest

from devcluster.controlplane import ControlPlane


@pytest.fixture
def control_plane(second_control_plane: ControlPlane) -> ControlPlane:
    return second_control_plane
