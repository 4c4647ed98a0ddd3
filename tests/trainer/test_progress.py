"""Progress: the receiver may be down, slow or refusing; training neither waits nor fails."""

import json
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainer_kit import KILL, Warm, at_step, free_port, job_file, metrics, preference_pairs, wait_for, write_jsonl

from trl_contract.jobfile import JobFile
from trl_contract.report import Progress, ProgressReport, TrainerStatus
from trl_trainer.launch import network
from trl_trainer.reports import progress, tracking
from trl_trainer.reports.progress import Reporter, Sender, StepClock, TokenRate, keep_metrics_until, metrics_of


@contextmanager
def receiver(answer: Callable[[int], int]) -> Iterator[tuple[str, list[int]]]:
    """Serve; `answer` gives the status of the n-th request; yields the URL and the steps that were accepted."""
    steps: list[int] = []
    count = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal count
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code = answer(count)
            count += 1
            if code == 200:
                steps.append(body["trl"]["step"])
            self.send_response(code)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", steps
    server.shutdown()


def report(step: int) -> ProgressReport:
    return ProgressReport(
        trainer_status=TrainerStatus(last_updated_time="t"), trl=Progress(step=step, last_update_time="t")
    )


def test_a_slow_receiver_sees_the_newest_report_and_nobody_waits() -> None:
    all_put = threading.Event()
    with receiver(lambda n: 200 if all_put.wait(60) else 500) as (url, steps):
        sender = Sender({"KUBEFLOW_TRAINER_SERVER_URL": url}, interval=0.0)
        for step in range(1000):
            sender.put(report(step))
        # Nothing has been answered so far.
        all_put.set()
        sender.close()
        assert steps[-1] == 999
        assert len(steps) <= 2


def test_a_refusing_receiver_is_tried_again_later_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "MAX_BACKOFF_SECONDS", 0.05)
    with receiver(lambda n: 503 if n < 2 or 3 <= n < 9 else 200) as (url, steps):
        sender = Sender({"KUBEFLOW_TRAINER_SERVER_URL": url}, interval=0.0)
        sender.put(report(1))
        wait_for(lambda: steps == [1], 10)
        assert capsys.readouterr().out == "", "a receiver may be away for a moment"
        sender.put(report(2))
        wait_for(lambda: steps == [1, 2], 10)
        sender.close()
        told = capsys.readouterr().out.splitlines()
        assert told == ["progress: reports do not arrive, training goes on: HTTP Error 503: Service Unavailable"]


def test_a_receiver_that_talks_nonsense_is_tried_again_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = []

        def serve() -> None:
            for answer in (b"what?\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
                connection, _ = server.accept()
                with connection:
                    asked.append(connection.recv(65536))
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        sender = Sender({"KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{server.getsockname()[1]}/"}, interval=0.0)
        sender.put(report(1))
        wait_for(lambda: len(asked) == 2, 10)
        sender.close()


def test_no_report_goes_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # What urlopen has kept of an earlier environment.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with receiver(lambda n: 200) as (url, steps):
        sender = Sender({"KUBEFLOW_TRAINER_SERVER_URL": url})
        sender.put(report(7))
        sender.close()
        assert steps == [7]


def test_a_certificate_that_cannot_be_read_costs_the_reports_only(capsys: pytest.CaptureFixture[str]) -> None:
    url = {"KUBEFLOW_TRAINER_SERVER_URL": "https://127.0.0.1/", "KUBEFLOW_TRAINER_SERVER_CA_CERT": "/nowhere"}
    sender = Sender(url)
    sender.put(report(1))
    sender.close()
    assert "nothing is reported, /nowhere cannot be read" in capsys.readouterr().out


def test_metrics_that_cannot_be_written_do_not_end_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(0, tmp_path / "no-folder" / "metrics.jsonl", Sender({}))
    state = SimpleNamespace(global_step=1, max_steps=2)
    for _ in range(2):
        reporter.on_log(None, state, None, logs={"loss": 1.0})  # type: ignore[arg-type]
    assert [(metric.name, metric.value) for metric in reporter.state.metrics] == [("loss", "1")]
    assert capsys.readouterr().out.count("cannot be written") == 1


def test_what_was_lost_with_an_attempt_does_not_count_from_the_beginning_of_the_next_one(tmp_path: Path) -> None:
    reporter = Reporter(1, tmp_path / "metrics.jsonl", Sender({}))
    assert reporter.state.training_seconds is None, "which checkpoint it goes on from is not known yet"
    reporter.trained = 40.4
    state, model = SimpleNamespace(global_step=4, max_steps=8), SimpleNamespace(parameters=list)
    reporter.on_train_begin(None, state, None, model=model)  # type: ignore[arg-type]
    assert (reporter.state.step, reporter.state.training_seconds) == (4, 40)


def test_a_tracker_that_hangs_does_not_hold_a_finished_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.2)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda: time.sleep(30)))
    started = time.monotonic()
    tracking.finish()
    assert time.monotonic() - started < 10


def test_without_a_receiver_nothing_is_sent() -> None:
    sender = Sender({})
    sender.put(report(1))
    sender.close()


def test_closing_with_a_dead_receiver_takes_bounded_time() -> None:
    sender = Sender({"KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{free_port()}/"}, interval=0.0)
    sender.put(report(1))
    started = time.monotonic()
    sender.close(timeout=1)
    assert time.monotonic() - started < 1 + 2


def test_training_ends_well_with_the_receiver_down(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    job = job_file(tmp_path, model_folder, spec={}, numProcPerNode=1)
    ended = warm.run(job, 1, environment={"KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{free_port()}/"})
    assert ended.codes == [0], ended.logs
    found = ended.records[0].progress
    assert found is not None
    assert found.step == found.total_steps == 8, "the end does not depend on the receiver"


def test_eta_after_a_restart_is_from_this_attempts_steps(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    """Steps of 0.3 s after the restart, of 1 s before it; a rate over the whole job would be far off."""
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(60))
    spec = {"training": {"maxSteps": 12}, "checkpoint": {"everySteps": 4}}

    def slow(seconds: float) -> list[str]:
        code = f"""
import time
from trl_trainer.checkpoints.publisher import FiniteGuard
FiniteGuard.on_pre_optimizer_step = lambda self, *a, **k: time.sleep({seconds})
"""
        return [code]

    run = {"world": 1}
    killed = warm.run(
        job_file(tmp_path, model_folder, spec=spec, numProcPerNode=1), **run, prelude=[*slow(1), *at_step(6, KILL, 0)]
    )
    assert killed.codes == [-9], killed.logs
    with receiver(lambda n: 200) as (url, _):
        etas: list[int | None] = []
        sender = progress.Sender({"KUBEFLOW_TRAINER_SERVER_URL": url})
        sender.close()
        ranks = warm.start(
            job_file(tmp_path, model_folder, spec=spec, numProcPerNode=1, attempt=1), **run,
            prelude=[*slow(0.3), _record_etas(tmp_path / "etas")],
        )  # fmt: skip
        assert ranks.wait().codes == [0], ranks.logs()
        etas = json.loads((tmp_path / "etas").read_text())
    assert etas[0] is None, "the first step of an attempt is no measure"
    expected = [0.3 * steps for steps in range(6, -1, -1)]
    for eta, seconds in zip(etas[1:], expected, strict=True):
        assert eta is not None
        assert seconds - 1 <= eta <= seconds * 1.7 + 1


def _record_etas(path: Path) -> str:
    return f"""
import json
from trl_trainer.reports.progress import Reporter
original = Reporter.on_step_end
etas = []
def on_step_end(self, *args, **kwargs):
    original(self, *args, **kwargs)
    etas.append(self.state.eta_seconds)
    open({str(path)!r}, 'w').write(json.dumps(etas))
Reporter.on_step_end = on_step_end
"""


def test_the_first_step_is_no_measure() -> None:
    clock = StepClock()
    clock.begin()
    clock.end()
    assert clock.remaining(5) is None


def test_token_rate_survives_a_count_that_falls() -> None:
    rate = TokenRate()
    assert rate.update(100, 10.0) is None
    assert rate.update(300, 12.0) == 100.0
    assert rate.update(50, 13.0) is None, "TRL counts from 0 again after a resume"
    assert rate.update(150, 14.0) == 100.0
    assert rate.update(None, 15.0) is None


def test_only_finite_numbers_are_metrics() -> None:
    found = metrics_of({"loss": 0.5, "bad": float("nan"), "huge": float("inf"), "text": "x", "n": 3})
    assert [(metric.name, metric.value) for metric in found] == [("loss", "0.5"), ("n", "3")]


def test_metrics_of_steps_that_are_trained_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    keep_metrics_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    keep_metrics_until(tmp_path / "none", 2)


def test_a_tracker_that_comes_back_is_begun_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    said: list[str] = []

    def init(**arguments: Any) -> None:
        said.append("init")
        if len(said) == 1:
            raise wandb.errors.CommError("context deadline exceeded")

    # What is left of a run that could not begin: "run ID uid is in use".
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: said.append("teardown"))
    monkeypatch.setattr(network, "_patience", 60)
    monkeypatch.setattr(network.time, "sleep", lambda seconds: None)
    spec = {"tracking": {"wandb": {"project": "p"}}}
    job = JobFile.model_validate_json(job_file(tmp_path, tmp_path, spec=spec).read_text())
    tracking.begin(job, tmp_path, is_main=True)
    assert said == ["init", "teardown", "init"]


def test_a_hub_that_does_not_answer_is_told_without_frames(warm: Warm, model_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    path = job_file(tmp_path, model_folder, spec={}, numProcPerNode=1)
    job = json.loads(path.read_text())
    job["spec"]["model"], job["paths"]["model"] = {"hub": {"repo": "org/model"}}, None
    path.write_text(json.dumps(job))
    ended = warm.run(path, 1)
    assert ended.codes == [15], ended.logs
    record = ended.records[0]
    assert (record.reason, record.log) == ("NetworkUnavailable", "")
    assert record.message.startswith("the hub does not answer: We couldn't connect")
    assert "Traceback" not in ended.logs[0]
    assert "asking again" not in ended.logs[0], "the environment forbids the hub: there is nothing to wait for"


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_trackers_record_the_run_on_the_storage_volume(
    kind: str, warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    tracking = {"tensorboard": {"path": "tb"}} if kind == "tensorboard" else {"wandb": {"project": "p", "tags": ["a"]}}
    job = job_file(tmp_path, model_folder, spec={"tracking": tracking}, numProcPerNode=1)
    ended = warm.run(job, 1)
    assert ended.codes == [0], ended.logs
    work = tmp_path / "storage" / "uid-1"
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(work / "tb"))
        events.Reload()
        assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-5)
    else:
        [run] = (work / "wandb").glob("offline-run-*-uid-1")
        [log] = run.glob("*.wandb")
        content = log.read_bytes()
        assert b"train/loss" in content
        assert b"train/global_step" in content
