"""The leader's lease, with an API server that stops answering."""

import asyncio
from typing import Any

import pytest

from trl_operator import lease as module
from trl_operator.errors import ApiError, LeaseLost
from trl_operator.lease import Lease
from trl_operator.settings import Settings


class Kube:
    """Takes the lease, and then answers no read any more."""

    def __init__(self) -> None:
        self.hangs = False

    async def get(self, *_: Any) -> None:
        if self.hangs:
            await asyncio.sleep(3600)

    async def create(self, *_: Any) -> None:
        self.hangs = True


def test_a_leader_whose_reads_hang_gives_up_before_its_lease_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.2)
    required = {"namespace": "trl", "identity": "one", "trainer_image": "t", "receiver_url": "https://op:1"}
    settings = Settings(**required, lease_seconds=20, renew_seconds=0.5, retry_seconds=0.01)

    async def main() -> None:
        lease = Lease(Kube(), settings)  # type: ignore[arg-type]
        await lease.acquire()
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(lease.keep(), 10)
        assert lease.outlasts(0), "nobody else can lead yet"
        with pytest.raises(ApiError, match="not read within"):
            await asyncio.wait_for(lease.release(), 10)

    asyncio.run(main())
