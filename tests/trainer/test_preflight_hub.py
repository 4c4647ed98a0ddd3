"""Models of the hub are looked at without a download of weights, from a local HTTP server that plays the hub."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from safetensors.torch import save
from trainer_kit import free_port
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_trainer.rewards.reward_model import RewardModelScorer
from trl_trainer.rewards.score import Batch

COMMIT = "a" * 40
FILES = {"good": ["config.json", "model.safetensors"], "pickle": ["config.json", "pytorch_model.bin"]}
CONFIG = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 40, "hidden_size": 16}

READ = """
import contextlib, io, json, sys, time
# The hub's own client waits for long before it says that there is nobody.
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.1))
from trl_trainer.launch import network
from trl_trainer.local import cli
from trl_trainer.models import source
from trl_trainer.preflight import architecture
from trl_trainer.errors import TrainerError, UserError
folder, *repos = sys.argv[1:]
try:
    source.read_config("org/good", None, "model")
except TrainerError as error:
    print(json.dumps([error.reason, error.message]), flush=True)
network.be_patient(1800)
for repo in repos:
    try:
        read = source.read_config(repo, None, "model").hidden_size
    except UserError as error:
        read = [error.reason, error.message]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(["explain", f"{folder}/{repo}.yaml"])
    print(json.dumps([read, code, said.getvalue()]))
from trl_contract.jobfile import JobFile
from trl_trainer import rewards
from trl_trainer.preflight import _reward_models
def job(**said):
    hub = {"repo": "org/judge", "revision": "main", **said}
    return JobFile.model_validate({
        "kind": "GRPOJob", "namespace": "n", "name": "j", "uid": "u", "paths": {"storage": folder, "model": folder},
        "spec": {
            "model": {"hub": {"repo": "org/base", "tokenSecretRef": {"name": "a"}}},
            "dataset": {"train": {"inline": [{"prompt": "x"}]}}, "training": {"precision": "fp32"},
            "grpo": {"rewards": [{"name": "judge", "rewardModel": {"source": {"hub": hub}}}]},
        },
    })
try:
    rewards.build(job())
except UserError as error:
    print(json.dumps([error.reason, error.message]))
private = job(tokenSecretRef={"name": "b"})
[scorer] = rewards.build(private).functions
print(json.dumps([_reward_models(private), scorer(["where is "], ["my order"])]))
try:
    config = source.read_config("org/good", None, "model")
    architecture.covered("org/good", None, config, "model", classifier=False)
except UserError as error:
    print(error.message)
"""


def write_job(path, repo):
    pair = {"prompt": "Where is it?", "chosen": "I will look at once.", "rejected": "no idea"}
    spec = {"model": {"hub": {"repo": repo}}, "dataset": {"train": {"inline": [pair] * 8}}, "storage": {"size": "1Gi"}}
    job = {"apiVersion": "trl-operator.io/v1alpha1", "kind": "DPOJob", "metadata": {"name": "tune"}, "spec": spec}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(job))


class Hub(BaseHTTPRequestHandler):
    """Just as much of the hub's API as transformers and huggingface_hub ask for."""

    judge = None
    """Folder of a private reward model."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if "/org/judge" in path:
            self.private(path)
            return
        name = next((name for name in (*FILES, "gated") if f"/{name}" in path), None)
        if name is None:
            self.reply(404, error="RepoNotFound")
        elif name == "gated":
            self.reply(403, error="GatedRepo")
        elif path.startswith("/api/models/"):
            self.reply(200, [{"type": "file", "path": file, "size": 1, "oid": "b" * 40} for file in FILES[name]])
        elif path.endswith("/config.json"):
            self.reply(200, CONFIG)
        elif path.endswith("/model.safetensors") and (self.command == "HEAD" or "range" in self.headers):
            self.reply(200, save({"model.norm.weight": torch.zeros(16)}))
        else:
            assert not path.endswith((".safetensors", ".bin")), "weights were asked for"
            self.reply(404, error="EntryNotFound")

    def private(self, path):
        files = {file.name: file.read_bytes() for file in Hub.judge.iterdir()}
        name = path.rpartition("/")[2]
        if self.headers.get("authorization") != "Bearer token-of-b":
            self.reply(401, error="RepoNotFound")
        elif "/tree/" in path:
            self.reply(200, [{"type": "file", "path": f, "size": len(b), "oid": "b" * 40} for f, b in files.items()])
        elif "/resolve/" in path and name in files:
            first, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
            part = files[name][int(first) : int(last) + 1 if last else None]
            # What has the same one is kept once.
            self.reply(206 if "Range" in self.headers else 200, part, etag=name)
        elif "/resolve/" in path:
            self.reply(404, error="EntryNotFound")
        else:
            self.reply(200, {"id": "org/judge", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]})

    def reply(self, code, body=None, error=None, etag="1"):
        body = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def hub_at(port):
    server = ThreadingHTTPServer(("127.0.0.1", port), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_is_waited_for_and_its_models_are_read_without_their_weights(tmp_path, model_folder):
    torch.manual_seed(3)
    judge = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    judge.score.weight.data.normal_()
    judge.save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "judge")
    Hub.judge = tmp_path / "judge"
    port = free_port()
    hub = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_TOKEN": "token-of-a", "TRL_HUB_1_TOKEN": "token-of-b"}
    repos = ["org/good", "org/pickle", "org/gated", "org/missing"]
    for repo in repos:
        write_job(tmp_path / f"{repo}.yaml", repo)
    child = subprocess.Popen(
        [sys.executable, "-c", READ, tmp_path, *repos],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # Nobody waits who was not told to, and the first word that somebody does is what brings the hub back.
    reason, message = json.loads(child.stdout.readline())
    assert (reason, message.splitlines()) == ("NetworkUnavailable", [message])
    assert message.startswith(f"the hub does not answer: We couldn't connect to '{hub}'")
    waits = child.stdout.readline()
    assert waits.startswith(f"{message}; asking again in 1 s, for "), waits
    with hub_at(port):
        said, complaints = child.communicate(timeout=180)
    assert child.returncode == 0, complaints
    *lines, lacking = (line for line in said.splitlines() if "asking again" not in line)
    good, pickle, gated, missing, refused, scored = map(json.loads, lines)
    assert good[0] == 16
    assert pickle[0] == ["ModelNotFound", "model: org/pickle has no safetensors, and pickle weights are not loaded"]
    assert gated[0] == ["AccessDenied", "model: org/gated is gated: give tokenSecretRef and ask for access"]
    assert missing[0][0] == "ModelNotFound"
    assert missing[0][1].startswith("model: org/missing is not on the hub, or is private")
    # A whole job says the same, as the first thing that it finds.
    assert [code for _, code, _ in (good, pickle, gated, missing)] == [10, 10, 10, 10]
    assert good[2].startswith("error: ModelNotFound: model: org/good has no tokenizer")
    for (reason, message), _, said in (pickle, gated, missing):
        assert said.startswith(f"error: {reason}: {message.splitlines()[0]}")
    # A reward model of the hub is read with the token of its own.
    assert refused[0] == "ModelNotFound"
    assert refused[1].startswith("grpo.rewards.judge: org/judge is not on the hub, or is private")
    expected = RewardModelScorer(str(tmp_path / "judge"), "r", "fp32")(Batch(["where is "], ["my order"], {}))
    assert scored == [4 * judge.num_parameters(), expected]
    # Of the weights only the header is asked for: these are a norm and nothing else.
    assert lacking.startswith("model: the files in org/good lack ")
    assert "weights of a Qwen3ForCausalLM, or have them in another shape (lm_head.weight, model.embed" in lacking
