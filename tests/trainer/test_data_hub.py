"""Data sets of the hub, from a local HTTP server that plays the hub."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trl_contract.jobfile import JobFile
from trl_trainer import data, stages
from trl_trainer.errors import TrainerError

COMMIT = "a" * 40
ROWS = b"".join(
    json.dumps({"question": f"What is {i} ?", "chosen": "x", "rejected": "y"}).encode() + b"\n" for i in range(9)
)

LARGE = ROWS * 200_000
TOKENS = {"org/first": "token-of-a", "org/second": "token-of-b"}
"""Repositories that only these may read."""

LOAD = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from trl_contract.jobfile import JobFile
from trl_trainer import data, errors
from trl_trainer.data.rows import prompted_pair
# All that the rows need of the kind; its own file would bring TRL along.
stage = SimpleNamespace(shape=prompted_pair, check_row=lambda job, row: None)
for spec in json.loads(sys.argv[2]):
    job = JobFile.model_validate(spec)
    try:
        loaded = data.write(job, stage, None, Path(sys.argv[1], job.uid, "data"))
        print(json.dumps([len(loaded.train), len(loaded.eval), list(loaded.train.take([0])[0])]))
    except errors.UserError as error:
        print(json.dumps([error.reason, error.message]))
"""


class Hub(BaseHTTPRequestHandler):
    """Just as much of the hub's API as `datasets` asks for: a small data set, a large and a gated one, nothing else."""

    sent = 0
    """Bytes of the large one."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        private = next((token for repo, token in TOKENS.items() if repo in path), None)
        if private is not None:
            if self.headers.get("authorization") == f"Bearer {private}":
                self.repository(path, ROWS)
            else:
                self.reply(401, error="RepoNotFound")
        elif "org/gated" in path:
            self.reply(401 if "authorization" not in self.headers else 403, error="GatedRepo")
        elif "org/large" in path:
            self.repository(path, LARGE)
        elif "org/pairs" in path:
            self.repository(path, ROWS)
        else:
            self.reply(404, error="RepoNotFound")

    def repository(self, path, rows):
        if "/resolve/" in path and path.endswith("/train.jsonl"):
            first, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
            part = rows[int(first) : int(last) + 1 if last else None]
            if self.command == "GET" and rows is LARGE:
                Hub.sent += len(part)
            self.reply(206 if "Range" in self.headers else 200, part)
        elif "/resolve/" in path:
            self.reply(404, error="EntryNotFound")
        elif "/tree/" in path:
            self.reply(200, [{"type": "file", "path": "train.jsonl", "size": len(rows), "oid": "b" * 40}])
        else:
            self.reply(200, {"id": "org/any", "sha": COMMIT, "siblings": [{"rfilename": "train.jsonl"}], "tags": []})

    def reply(self, code, body=b"", error=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def job(uid, limit=None, held_out=None, of_model=None, **hub):
    return {
        "kind": "DPOJob",
        "namespace": "a",
        "name": "b",
        "uid": uid,
        "paths": {"storage": "/unused"},
        "spec": {
            "model": {"hub": {"repo": "org/model", **(of_model or {})}},
            "dataset": {
                "train": {"hub": {"repo": "org/pairs", **hub}},
                **({"eval": {"hub": held_out}} if held_out else {}),
                "columns": {"prompt": "question"},
                "maxExamples": limit,
            },
        },
    }


def load(tmp_path, endpoint, *jobs):
    """Load each job's data in a process of its own, since huggingface_hub reads HF_ENDPOINT when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_TOKEN": TOKENS["org/first"], "TRL_HUB_1_TOKEN": TOKENS["org/second"]}
    arguments = [sys.executable, "-c", LOAD, str(tmp_path), json.dumps(jobs)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_of_the_hub_is_loaded_and_what_is_missing_is_named(hub, tmp_path):
    first = {"repo": "org/first", "tokenSecretRef": {"name": "a"}}
    second = {"repo": "org/second", "tokenSecretRef": {"name": "b"}}
    loaded, part, missing, gated, split, config, few, both, turned, other = load(
        tmp_path,
        hub,
        job("all"),
        job("part", split="train[:5]", revision="main"),
        job("missing", repo="org/nothing"),
        job("gated", repo="org/gated"),
        job("split", split="validation"),
        job("config", config="german"),
        job("few", limit=20, repo="org/large"),
        # Rows to train on are downloaded, and those held out read as they come.
        job("both", **first, held_out={**second, "split": "train"}),
        job("second", **second, of_model={"tokenSecretRef": {"name": "a"}}, held_out={**first, "split": "train"}),
        job("other", **second),
    )
    assert loaded == [8, 1, ["prompt", "chosen", "rejected"]]
    assert part == [4, 1, ["prompt", "chosen", "rejected"]]
    assert missing[0] == "DatasetNotFound"
    assert "org/nothing' doesn't exist on the Hub or cannot be accessed" in missing[1]
    assert gated[0] == "AccessDenied"
    assert "org/gated' is a gated dataset" in gated[1]
    assert split[0] == "DatasetNotFound"
    assert "Unknown split \"validation\". Should be one of ['train']" in split[1]
    assert config[0] == "DatasetNotFound"
    assert "'german' not found. Available: ['default']" in config[1]
    assert few == [18, 2, ["prompt", "chosen", "rejected"]]
    assert both == turned == [9, 9, ["prompt", "chosen", "rejected"]], "each with its own token"
    assert other[0] == "DatasetNotFound", "the only Secret that a job names is HF_TOKEN"
    assert 0 < Hub.sent < len(LARGE) / 2, "downloaded whole for 20 rows"
    assert not (tmp_path / "all/data/hub").exists(), "the rows are kept twice"


def test_a_hub_that_may_not_be_asked_is_not_the_users_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    asked = JobFile.model_validate(job("u"))
    with pytest.raises(TrainerError, match=r"^the hub does not answer: Couldn't reach 'org/pairs' .*Offline") as caught:
        data.write(asked, stages.of(asked), None, tmp_path)
    assert caught.value.reason == "NetworkUnavailable"
