"""Writes events: whoever has written a status says so, once, and nobody else does."""

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import uuid4

from trl_operator.errors import ApiError
from trl_operator.kube import EVENTS, Kube
from trl_operator.status.events import Event, manifest

logger = logging.getLogger(__name__)


async def tell(kube: Kube, obj: dict[str, Any], found: Iterable[Event], reporter: str, now: datetime) -> None:
    """Write events about the job `obj`, after the write of its status that they tell of: one that is lost between the
    two, with its process or in a namespace that refuses it, is not told again, and none is told twice."""
    metadata = obj["metadata"]
    for event in found:
        body = manifest(event, obj, name=f"{metadata['name']}.{uuid4().hex[:16]}", reporter=reporter, now=now)
        try:
            await kube.create(EVENTS, body, metadata["namespace"])
        except ApiError as error:
            # An event is a courtesy: it must not stop the job.
            logger.warning("event %s of %s/%s: %s", event.reason, metadata["namespace"], metadata["name"], error)
