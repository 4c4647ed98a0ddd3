"""A reward service over HTTP."""

import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from trl_contract.rewards import HttpReward
from trl_trainer.errors import TrainerError
from trl_trainer.launch.network import patiently
from trl_trainer.rewards.limits import time_limit
from trl_trainer.rewards.score import Batch, Score

TRIES = 3
BACKOFF_SECONDS = (1, 4)
"""Waits before the second and the third try."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class HttpScorer:
    """Posts {prompts, completions, columns} and expects {rewards: [one number, or null, per completion]}.

    It asks the host of the url itself: a proxy of the environment would get the rows and the token, whatever hosts the
    admin allows.

    Without a connection it waits for the network. What else may pass (a time-out, 429, 5xx) is tried three times, then
    TrainerError(RewardUnavailable); anything else the service answers is raised at once.
    """

    def __init__(self, given: HttpReward, token: str | None) -> None:
        self._url = given.url
        self._seconds = given.timeout_seconds
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def __call__(self, batch: Batch) -> list[Score]:
        body = json.dumps(
            {"prompts": batch.prompts, "completions": batch.completions, "columns": batch.columns}, default=str
        ).encode()
        rewards = self._post(body).get("rewards")
        if not isinstance(rewards, list):
            raise TrainerError("RewardError", f"{self._url} answered without a list of rewards")
        return [
            value if value is None or _is_number(value) else f"{self._url} answered {value!r:.200}" for value in rewards
        ]

    def _post(self, body: bytes) -> dict[str, Any]:
        failure = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(BACKOFF_SECONDS[attempt - 1])
            try:
                answer = patiently(self._url, lambda: self._once(body))
            except urllib.error.HTTPError as error:
                if error.code != 429 and error.code < 500:
                    raise TrainerError("RewardError", f"{self._url} answered {error.code} {error.reason}") from error
                failure = f"{error.code} {error.reason}"
            except (OSError, HTTPException) as error:  # TimeoutError is an OSError
                failure = str(getattr(error, "reason", error)) or type(error).__name__
            else:
                return answer
        raise TrainerError("RewardUnavailable", f"{self._url} failed {TRIES} times; the last time: {failure}")

    def _once(self, body: bytes) -> dict[str, Any]:
        request = urllib.request.Request(self._url, data=body, headers=self._headers, method="POST")
        with time_limit(self._seconds), self._opener.open(request, timeout=self._seconds) as response:
            text = response.read()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise TrainerError("RewardError", f"{self._url} answered no JSON object")
        return answer


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
