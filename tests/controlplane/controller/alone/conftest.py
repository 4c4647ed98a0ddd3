"""These tests kill, stop or replace operators, or want none: on their control plane no other one works."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chaos import through
from zygote import Zygote

from devcluster.controlplane import ControlPlane
from devcluster.faultproxy import FaultProxy


@pytest.fixture
def control_plane(second_control_plane: ControlPlane) -> ControlPlane:
    return second_control_plane


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[FaultProxy]:
    with FaultProxy(control_plane.url, control_plane.ca) as made:
        yield made


@pytest.fixture
def quick_operator(make_operator: Callable[..., Any], proxy: FaultProxy, zygote: Zygote) -> Any:
    """Of the test's namespace, behind the proxy, and quick to start."""
    made = make_operator()
    made.zygote = zygote
    through(made, proxy)
    return made
