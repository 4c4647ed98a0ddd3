"""The demo's data, its judge of answers, and what `make demo` says when a job fails."""

import importlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import demo

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/demo"
PROMPT = [{"role": "user", "content": "My kettle from order #482 has not arrived."}]


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The scripts of examples/demo that need no torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("data", "check", "make_base")})


def test_there_are_2000_pairs_to_train_on_and_no_held_out_prompt_is_among_them(scripts: Any) -> None:
    train, held_out = scripts.data.pairs()
    assert len(train) >= 2000
    assert len(held_out) >= 200
    assert len({json.dumps(row["prompt"]) for row in train + held_out}) == len(train) + len(held_out)
    assert all(row["prompt"][-1]["role"] == "user" for row in train + held_out)
    assert {len(row["prompt"]) for row in train} == {1, 3}
    assert {row["intent"] for row in held_out} == set(scripts.data.PHRASES["intents"])


def test_the_base_model_reads_no_prompt_of_a_pair(scripts: Any) -> None:
    prompts = {json.dumps(row["prompt"]) for rows in scripts.data.pairs() for row in rows}
    corpus = scripts.data.conversations()
    assert prompts.isdisjoint(json.dumps(next(corpus)[:-2]) for _ in range(3000))


def test_the_data_follows_from_its_seed(scripts: Any, tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        random.seed(name)
        (tmp_path / name).mkdir()
        scripts.data.write(tmp_path / name)
        texts.append([(tmp_path / name / file).read_bytes() for file in ("train.jsonl", "eval.jsonl")])
    assert texts[0] == texts[1]


def test_every_chosen_reply_acts_and_no_rejected_one_does(scripts: Any) -> None:
    check = scripts.check
    for row in scripts.data.pairs()[1]:
        prompt, intent = row["prompt"], row["intent"]
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert check.acts(prompt, intent, chosen, True), chosen
        assert check.is_well_formed(prompt, rejected, True), rejected
        assert not check.acts(prompt, intent, rejected, True), rejected


@pytest.mark.parametrize(
    ("answer", "ended", "well_formed", "acts"),
    [
        ("Thank you for your message. I have told the carrier that your kettle is late.", True, True, True),
        ("Thank you for your message. I have told the carrier that your kettle is late.", False, False, False),
        ("Thank you for your message. I have told the carrier that your camera is late.", True, False, False),
        ("Thank you for your message. I have told the carrier that kettle.", True, False, False),
        ("Thank you for your message. Thank you for your message.", True, False, False),
        ("Thank you for your message. I have sent you a return label.", True, True, False),
        ("Thank you for your message. Have a nice day.", True, True, False),
        ("I have moved your parcel to express delivery. Case closed.", True, True, False),
        ("No. Wait longer.", True, True, False),
        ("", True, False, False),
    ],
)
def test_an_answer_acts_only_if_it_is_well_formed_and_does_what_the_customer_needs(
    scripts: Any, answer: str, ended: bool, well_formed: bool, acts: bool
) -> None:
    assert scripts.check.is_well_formed(PROMPT, answer, ended) is well_formed
    assert scripts.check.acts(PROMPT, "late", answer, ended) is acts


def test_a_base_model_that_was_interrupted_is_made_anew_and_a_whole_one_kept(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(scripts.make_base, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scripts.make_base.main(tmp_path)
    assert not (tmp_path / "base").exists()

    monkeypatch.setattr(scripts.make_base, "make", lambda folder: (folder / "model").touch())
    scripts.make_base.main(tmp_path)
    scripts.make_base.main(tmp_path)
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["model"]
    assert {path.name for path in tmp_path.iterdir()} == {"base", scripts.make_base.scripts_hash()}


def test_a_row_of_the_table_has_phase_step_loss_margin_eta_and_time() -> None:
    progress = {"display": "20/60", "loss": "0.41234", "eta": "35s"}
    progress["metrics"] = [{"name": "rewards/margins", "value": "1.5"}]
    row = demo.row_of({"phase": "Running", "progress": progress}, 31.4)
    assert row == ["Running", "20/60", "0.4123", "1.5000", "35s", "31 s"]
    assert demo.row_of({}, 0.2) == ["Pending", "-", "-", "-", "-", "0 s"]


def test_a_failed_job_ends_the_demo_with_reason_hint_log_and_command() -> None:
    cluster: Any = SimpleNamespace(hint=lambda arguments: f"kubectl {arguments}")
    failure = {"reason": "DataFormatError", "message": "row 3 has no chosen", "hint": "mend row 3", "log": "ValueError"}
    with pytest.raises(demo.DemoError) as error:
        demo.must_have_succeeded(cluster, {"phase": "Failed", "failure": failure})
    for part in ("Failed", "DataFormatError: row 3 has no chosen", "ValueError", "mend row 3", "kubectl logs", "make"):
        assert part in str(error.value)


class FakeCluster:
    """A cluster in which the Job has the status and the log given."""

    def __init__(self, status: dict[str, Any], log: str) -> None:
        self.status, self.log = status, log

    def __call__(self, *arguments: str) -> str:
        return self.log if arguments[0] == "logs" else ""

    def apply(self, *objects: Any) -> None:
        pass

    def get(self, *arguments: str) -> dict[str, Any]:
        return {"status": self.status}

    def hint(self, arguments: str) -> str:
        return f"kubectl {arguments}"


@pytest.mark.parametrize(
    ("status", "seconds", "what"),
    [
        ({"conditions": [{"type": "Failed", "status": "True"}]}, 60, "job/demo-base failed"),
        ({"active": 1}, -1, "job/demo-base has not ended after -1 s"),
    ],
)
def test_a_kubernetes_job_that_fails_or_hangs_ends_the_demo_with_its_log_and_a_command(
    status: dict[str, Any], seconds: float, what: str
) -> None:
    cluster: Any = FakeCluster(status, "ValueError: no such phrase")
    with pytest.raises(demo.DemoError) as error:
        demo.run_job(cluster, demo.manifest("base-job"), seconds, lambda line: None)
    for part in (what, "ValueError: no such phrase", "kubectl describe jobs,pods"):
        assert part in str(error.value)


def test_a_comparison_without_one_of_the_models_ends_the_demo_with_a_command() -> None:
    cluster: Any = FakeCluster({"succeeded": 1}, '{"model": "base", "accuracy": 0.2}')
    with pytest.raises(demo.DemoError, match=r"without the measures of tuned(.|\n)*kubectl logs job/demo-evaluate"):
        demo.evaluate(cluster, {"artifacts": [{"type": "model", "path": "uid/final"}]})


def test_a_demo_that_fails_says_so_in_its_exit_code() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "hack"), "CLUSTER": "nonsense"}
    done = subprocess.run([sys.executable, ROOT / "hack/demo.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "CLUSTER=nonsense: must be one of" in done.stderr
    assert "demo: devcluster up failed" in done.stderr
    assert "look at:  make cluster-logs" in done.stderr


def test_the_readme_shows_the_base_model_and_the_prompts_that_the_scripts_make(scripts: Any) -> None:
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"/models/(\w+): is there already", readme) == [scripts.make_base.scripts_hash()]
    held_out = scripts.data.pairs()[1][: demo.PROMPTS]
    said = [message["content"] for row in held_out for message in row["prompt"]]
    assert re.findall(r"^ *(?:customer|agent): (.*)$", readme, re.M) == said
