"""As alone/test_kills.py: jobs that run as TrainJobs, and jobs in the queues of a real Kueue.

`make test` does it to the writes of one operation, `make kill-matrix` to all calls of all.
"""

from typing import Any

import pytest
from chaos import World
from killing import kill_at_every_call
from operations import ENGINES, FULL

from devcluster.faultproxy import FaultProxy

SHORT = [("RewardJob", "admitted")]


@pytest.mark.parametrize(("kind", "name"), ENGINES if FULL else SHORT)
def test_killed_at_any_call_it_comes_to_the_same_end(
    kind: str, name: str, world: World, quick_operator: Any, proxy: FaultProxy, quota: Any
) -> None:
    quota(1000)
    kill_at_every_call(world, quick_operator, proxy, kind, name, ENGINES[kind, name])
