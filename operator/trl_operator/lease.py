"""Leader election by a Lease: one replica works, the others stand by."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from trl_operator.errors import ApiError, LeaseLost
from trl_operator.kube import LEASES, WRITE_SECONDS, Kube
from trl_operator.settings import Settings

logger = logging.getLogger(__name__)


class Lease:
    """Held while renewals succeed. `outlasts` says whether a write may still be sent."""

    def __init__(self, kube: Kube, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._settings = settings
        self._clock = clock
        self._renewed: float | None = None
        self._seen: tuple[Any, float] = (None, 0.0)
        self._written: dict[str, Any] | None = None
        """As this replica wrote it last: while nobody else writes, a renewal need not read it."""

    def outlasts(self, seconds: float) -> bool:
        """Return whether nobody else can lead before `seconds` are over."""
        return self._renewed is not None and self._clock() + seconds < self._renewed + self._settings.lease_seconds

    def check(self) -> None:
        """Raise LeaseLost unless a write that starts now ends within the lease."""
        if not self.outlasts(WRITE_SECONDS):
            raise LeaseLost("the lease does not outlast another write")

    async def acquire(self) -> None:
        """Return once this replica leads."""
        while not await self._try():
            await asyncio.sleep(self._settings.retry_seconds)
        logger.info("this replica leads now")

    async def keep(self) -> None:
        """Renew the lease for ever; raise LeaseLost when it cannot be held, at once when another replica holds it."""
        while True:
            await asyncio.sleep(self._settings.retry_seconds)
            assert self._renewed is not None, "acquire comes first"
            if not await self._try() and self._clock() > self._renewed + self._settings.renew_seconds:
                raise LeaseLost("the lease could not be renewed")

    async def release(self) -> None:
        """Let another replica lead at once."""
        if not self.outlasts(WRITE_SECONDS):
            return
        lease = await self._read()
        if lease and lease["spec"].get("holderIdentity") == self._settings.identity:
            self._renewed = None
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._kube.replace(LEASES, self._settings.namespace, self._settings.lease_name, lease)

    async def _try(self, again: bool = False) -> bool:
        started = self._clock()
        try:
            if not await self._take():
                return False
        except ApiError as error:
            logger.warning("lease: %s", error)
            # Somebody else has written or deleted it: who holds it now is looked at without a pause, once.
            return error.status in (404, 409) and not again and await self._try(again=True)
        self._renewed = started
        return True

    async def _read(self) -> dict[str, Any] | None:
        """Return the lease; a read that hangs must end before the lease does."""
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                return await self._kube.get(LEASES, self._settings.namespace, self._settings.lease_name)
        except TimeoutError as error:
            raise ApiError(0, f"not read within {WRITE_SECONDS:g} s") from error

    async def _take(self) -> bool:
        """Create, renew or take over the lease; raises ApiError 409 if another replica was faster."""
        settings = self._settings
        lease, self._written = self._written or await self._read(), None
        if lease is None:
            metadata = {"name": settings.lease_name, "namespace": settings.namespace}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
            self._written = await self._kube.create(LEASES, body | {"spec": self._spec({})}, settings.namespace)
            return True
        spec = lease["spec"]
        holder = spec.get("holderIdentity") or settings.identity
        if holder != settings.identity and self._renewed is not None:
            raise LeaseLost(f"{holder} holds the lease")
        if holder != settings.identity and not self._expired(spec):
            return False
        body = lease | {"spec": self._spec(spec)}
        self._written = await self._kube.replace(LEASES, settings.namespace, settings.lease_name, body)
        return True

    def _expired(self, spec: dict[str, Any]) -> bool:
        """Whether the holder was silent for the lease's length by our own clock; clocks of others are not trusted."""
        seen = (spec.get("holderIdentity"), spec.get("renewTime"))
        if seen != self._seen[0]:
            self._seen = (seen, self._clock())
        return self._clock() > self._seen[1] + float(spec.get("leaseDurationSeconds") or 0)

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = before.get("holderIdentity") == self._settings.identity
        return {
            "holderIdentity": self._settings.identity,
            "leaseDurationSeconds": max(int(self._settings.lease_seconds), 1),
            "acquireTime": before["acquireTime"] if mine else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions", 0)) + (0 if mine else 1),
        }
