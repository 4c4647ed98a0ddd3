"""A reward service: real HTTP to a local server that misbehaves on demand."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trl_contract.rewards import HttpReward
from trl_trainer.errors import TrainerError
from trl_trainer.launch import network
from trl_trainer.rewards import http
from trl_trainer.rewards.http import HttpScorer
from trl_trainer.rewards.score import Batch

BATCH = Batch(["p", "p"], ["a", "bb"], {"answer": [1, None]})


class Service(ThreadingHTTPServer):
    """Answers each POST with the next of `plan` (status and body, or hang, drip, drop), the last one for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.requests, self.stop = [], [], threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.headers.get("Authorization"), body))
        answer = self.server.plan.pop(0) if len(self.server.plan) > 1 else self.server.plan[0]
        if answer == "drop":
            self.connection.close()
            return
        if answer == "hang":
            self.server.stop.wait(30)
            return
        if answer == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                if not self.server.stop.wait(0.2):
                    self.wfile.write(b" ")
            return
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/other")
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(http, "BACKOFF_SECONDS", (0.01, 0.02))
    server = Service()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_proxy_of_the_environment_gets_the_rows_or_the_token(service, monkeypatch):
    service.plan = [(200, {"rewards": [1, 2]})]
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert scorer(service, token="t")(BATCH) == [1, 2]


def scorer(service, seconds=10, token=None):
    # Only https and addresses inside the cluster pass the schema; this server is neither.
    url = f"http://127.0.0.1:{service.server_port}/score"
    return HttpScorer(HttpReward.model_construct(url=url, timeout_seconds=seconds), token)


def test_rewards_come_back_and_the_token_is_sent(service):
    service.plan = [{"rewards": [1, 0.5]}]
    assert scorer(service, token="secret")(BATCH) == [1, 0.5]
    expected = {"prompts": ["p", "p"], "completions": ["a", "bb"], "columns": {"answer": [1, None]}}
    assert service.requests == [("Bearer secret", expected)]


@pytest.mark.parametrize("failure", [(503, "busy"), (429, ""), "drop"])
def test_what_may_pass_is_tried_three_times(service, failure):
    service.plan = [failure, failure, {"rewards": [1, 2]}]
    assert scorer(service)(BATCH) == [1, 2]
    assert len(service.requests) == 3


def test_after_three_tries_the_service_counts_as_unavailable(service):
    service.plan = [(500, "oops")]
    with pytest.raises(
        TrainerError, match=r"/score failed 3 times; the last time: 500 Internal Server Error"
    ) as caught:
        scorer(service)(BATCH)
    assert caught.value.reason == "RewardUnavailable"
    assert len(service.requests) == 3


@pytest.mark.parametrize("answer", ["hang", "drip"])
def test_a_service_that_hangs_or_never_ends_is_given_up_in_bounded_time(service, answer):
    service.plan = [answer]
    start = time.monotonic()
    with pytest.raises(TrainerError, match=r"failed 3 times; the last time: (took longer than 1 s|timed out)"):
        scorer(service, seconds=1)(BATCH)
    assert time.monotonic() - start < 10


def test_a_service_that_nobody_can_connect_to_is_waited_for(service, monkeypatch):
    made = scorer(service)
    there, made._url = made._url, "http://127.0.0.1:9/score"
    with pytest.raises(TrainerError, match=r"^http://127.0.0.1:9/score does not answer: .*refused") as caught:
        made(BATCH)
    assert caught.value.reason == "NetworkUnavailable"

    def comes_back(seconds):
        made._url = there

    service.plan = [{"rewards": [1, 2]}]
    monkeypatch.setattr(network, "_patience", 60)
    monkeypatch.setattr(network, "_silent_since", {})
    monkeypatch.setattr(network.time, "sleep", comes_back)
    assert made(BATCH) == [1, 2]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((403, ""), "answered 403 Forbidden"),
        ((302, ""), "answered 302 Found"),
        (b"<html>", "answered no JSON object"),
        ([1, 2], "answered no JSON object"),
        ({"scores": [1, 2]}, "answered without a list of rewards"),
    ],
)
def test_a_wrong_answer_is_not_asked_for_again(service, answer, why):
    service.plan = [answer]
    with pytest.raises(TrainerError, match=why):
        scorer(service, token="secret")(BATCH)
    assert len(service.requests) == 1


def test_what_is_no_number_has_a_reason(service):
    service.plan = [{"rewards": [None, True]}]
    nothing, wrong = scorer(service)(BATCH)
    assert nothing is None
    assert wrong.endswith("/score answered True")


def test_patience_is_whole_again_once_somebody_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_patience", 60)
    monkeypatch.setattr(network, "_silent_since", {})
    monkeypatch.setattr(network.time, "sleep", lambda seconds: None)
    answers: list[Exception] = [ConnectionRefusedError("refused"), ValueError("no JSON")]

    def ask() -> None:
        raise answers.pop(0)

    with pytest.raises(ValueError, match="no JSON"):
        network.patiently("a server", ask)
    assert network._silent_since == {}
