"""The leader's lease, with an API server that stops answering."""

import asyncio
from collections.abc import Callable
from copy import deepcopy
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


SETTINGS = Settings(namespace="trl", identity="one", trainer_image="t", receiver_url="https://op:1", retry_seconds=0.5)


class Store:
    """Keeps one lease, as the API server does; `before_write` may change it in between."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.before_write: Callable[[], None] = lambda: None
        self.reads = self.writes = 0

    async def get(self, *_: Any) -> dict[str, Any] | None:
        self.reads += 1
        return deepcopy(self.lease)

    async def create(self, _: Any, body: dict[str, Any], *__: Any) -> dict[str, Any]:
        self.before_write()
        if self.lease is not None:
            raise ApiError(409, "already exists")
        return self._store(body)

    async def replace(self, *arguments: Any) -> dict[str, Any]:
        self.before_write()
        body = arguments[-1]
        if self.lease is None:
            raise ApiError(404, "not found")
        if body.get("version") != self.lease.get("version"):
            raise ApiError(409, "has been modified")
        return self._store(body)

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.writes += 1
        self.lease = {**body, "version": self.writes}
        return deepcopy(self.lease)


def held_by(identity: str) -> dict[str, Any]:
    return {"version": 99, "spec": {"holderIdentity": identity, "renewTime": "t", "leaseDurationSeconds": 15}}


@pytest.mark.parametrize("how", ["taken away", "deleted and taken before it is made again"])
def test_a_leader_ends_at_once_when_another_replica_holds_the_lease(how: str) -> None:
    async def main() -> None:
        store = Store()
        lease = Lease(store, SETTINGS)  # type: ignore[arg-type]
        await lease.acquire()
        if how == "taken away":
            store.lease = held_by("two")
        else:
            store.lease = None
            store.before_write = lambda: setattr(store, "lease", held_by("two"))
        with pytest.raises(LeaseLost, match="two holds the lease"):
            await asyncio.wait_for(lease.keep(), 0.9)

    asyncio.run(main())


def test_a_leader_makes_a_lease_that_was_deleted_again_and_goes_on() -> None:
    async def main() -> None:
        store = Store()
        lease = Lease(store, SETTINGS)  # type: ignore[arg-type]
        await lease.acquire()
        store.lease = None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lease.keep(), 0.8)
        assert store.lease is not None
        assert store.lease["spec"]["holderIdentity"] == "one"

    asyncio.run(main())


def test_a_renewal_is_one_request() -> None:
    async def main() -> None:
        store = Store()
        lease = Lease(store, SETTINGS.model_copy(update={"retry_seconds": 0.01}))  # type: ignore[arg-type]
        await lease.acquire()
        keeper = asyncio.create_task(lease.keep())
        async with asyncio.timeout(5):
            while store.writes < 6:
                await asyncio.sleep(0.005)
        keeper.cancel()
        assert store.reads == 1

    asyncio.run(main())
