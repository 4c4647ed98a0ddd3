"""What a trainer sends to the receiver."""

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from devcluster.fakenode import FakeNode

TOKENS = "/var/run/secrets/trl"
ATTEMPT = "/etc/trl"


class Trainer:
    """Rank 0 as far as the receiver sees it: it has what is mounted into its pod, and nothing else."""

    def __init__(self, node: FakeNode, pod: Any) -> None:
        files = node.files(pod, ATTEMPT)
        env = {variable["name"]: variable.get("value") for variable in pod["spec"]["containers"][0]["env"]}
        assert env["KUBEFLOW_TRAINER_SERVER_CA_CERT"] == f"{ATTEMPT}/ca.crt"
        assert env["KUBEFLOW_TRAINER_SERVER_TOKEN"] == f"{TOKENS}/token"
        self.url = env["KUBEFLOW_TRAINER_SERVER_URL"]
        self.tls = ssl.create_default_context(cadata=files["ca.crt"])
        self.token = node.files(pod, TOKENS)["token"]

    def post(self, body: Any, token: str | None = None) -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url, data=data, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=20, context=self.tls) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def report(step: int, second: int = 0, attempt: int = 0, **fields: Any) -> dict[str, Any]:
    told = f"2026-11-21T06:{step % 60:02d}:{second:02d}.000000Z"
    ours = {"attempt": attempt, "activity": "training", "step": step, "totalSteps": 40, "lastUpdateTime": told}
    return {"trainerStatus": {"progressPercentage": 1, "lastUpdatedTime": told}, "trl": {**ours, **fields}}
