"""What the API server says of a token, asked seldom and at a bounded pace."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256

from trl_operator.kube import TOKEN_REVIEWS, Kube
from trl_operator.receiver.turns import Busy, Pace, Turns

REMEMBER_SECONDS = 60.0
"""A token is not asked about again for so long, whatever the answer was."""
MAX_REMEMBERED = 10_000
PER_SECOND = 50.0
"""Token reviews of this process. A thousand jobs need 17 a second."""
WAIT_SECONDS = 4.0
"""Trainers give up after 5."""
POD_UID = "authentication.kubernetes.io/pod-uid"

Question = tuple[str, str]
"""A token's digest, and the audience."""


class Memory:
    """The latest answers, each for a while; the oldest make room."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers: OrderedDict[Question, tuple[float, str]] = OrderedDict()

    def get(self, question: Question) -> str | None:
        until, answer = self._answers.get(question, (0.0, ""))
        return answer if self._clock() < until else None

    def put(self, question: Question, answer: str) -> None:
        self._answers[question] = (self._clock() + REMEMBER_SECONDS, answer)
        self._answers.move_to_end(question)
        if len(self._answers) > MAX_REMEMBERED:
            self._answers.popitem(last=False)


class Reviews:
    """Asks which pod a token is bound to. Refusals never push out what was found valid."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic, per_second: float = PER_SECOND) -> None:
        self._kube = kube
        self._valid, self._refused = Memory(clock), Memory(clock)
        self.turns = Turns(Pace(per_second, clock))

    async def pod_uid(self, token: str, audience: str, source: str) -> str | None:
        """Return the uid of the pod that the token is bound to; None if the token is not valid for this audience.

        Raises Busy when it is not this source's turn for too long, and ApiError.
        """
        question = (sha256(token.encode()).hexdigest(), audience)
        if (known := self._valid.get(question)) is not None:
            return known
        if self._refused.get(question) is not None:
            return None
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self.turns.take(source)
        except TimeoutError as error:
            raise Busy from error
        uid = await self._ask(token, audience)
        if uid is None:
            self._refused.put(question, "")
        else:
            self._valid.put(question, uid)
        return uid

    async def _ask(self, token: str, audience: str) -> str | None:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
        review = await self._kube.create(TOKEN_REVIEWS, body | {"spec": {"token": token, "audiences": [audience]}})
        status = review["status"]
        uids = status.get("user", {}).get("extra", {}).get(POD_UID, [])
        if not status.get("authenticated") or audience not in status.get("audiences", ()) or len(uids) != 1:
            return None
        return str(uids[0])
